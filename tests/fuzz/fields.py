"""Equations whose solutions are known, on any structure of states: the field that a call gets, and the closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odenet.core.pytrees import flatten, unflatten

Leaves = list[Tensor]


class Point(NamedTuple):
    x: Any
    v: Any


STRUCTURES: dict[str, Any] = {
    "tensor": 0,
    "one": [0],
    "dict": {"b": 0, "a": 0},
    "tuple": (0, 0),
    "named": Point(0, [0]),
    "nested": {"p": (0, [0, {"q": 0}]), "e": [], "n": Point(0, ())},
}
PLAIN = ("tensor", "one", "tuple")

MATRICES = {  # the last axis' size -> generator of the flow
    1: [[-0.7]],
    2: [[0.0, 1.0], [-1.0, -0.2]],
    3: [[-0.5, 1.0, 0.0], [-1.0, -0.5, 0.3], [0.2, 0.0, -1.0]],
}


def spread(lane: Tensor, x: Tensor) -> Tensor:
    """A number, or one for each row of x, so that it multiplies x."""
    return lane.reshape(lane.shape + (1,) * (x.ndim - lane.ndim)) if lane.ndim else lane


def matrix(x: Tensor) -> Tensor:
    return torch.tensor(MATRICES[x.shape[-1]], dtype=torch.float64)


def _along(x: Tensor, m: Tensor) -> Tensor:
    """m (n, n), or one for each row of x, applied to the last axis."""
    m = m.to(x.dtype)
    if m.ndim == 2:
        return x @ m.T
    return (x.reshape(len(x), -1, x.shape[-1]) @ m.mT).reshape(x.shape)


class Known(NamedTuple):
    """slope(s, leaves) with s = t / unit, and flow(leaves, k, s0, s1): y' = k / unit * slope.

    linear: the flow is. autonomous: the slope knows no time. rows: each element is on its own, so that a row solved
    alone takes the same operations.
    """

    slope: Callable[[Tensor, Leaves], Leaves]
    flow: Callable[[Leaves, Tensor, Tensor, Tensor], Leaves]
    linear: bool
    autonomous: bool
    rows: bool


def _scale(k: Tensor, phase: Tensor, x: Tensor) -> Tensor:
    return x * torch.exp(spread(k * phase, x)).to(x.dtype)


def _turn(x: Tensor) -> complex:
    """What decays also turns, where the state is complex."""
    return 1.0 - 0.8j if x.is_complex() else 1.0


def _decay(ys: Leaves, k: Tensor, s0: Tensor, s1: Tensor) -> Leaves:
    return [x * torch.exp(-spread(k * (s1 - s0), x) * _turn(x)).to(x.dtype) for x in ys]


def _matrix_flow(ys: Leaves, k: Tensor, s0: Tensor, s1: Tensor) -> Leaves:
    length = k * (s1 - s0)
    return [_along(x, torch.linalg.matrix_exp(matrix(x) * length.reshape(*length.shape, 1, 1))) for x in ys]


def _swap(s: Tensor, ys: Leaves) -> Leaves:
    """Pairs of leaves turn around each other; a last one alone decays."""
    out: Leaves = []
    for a, b in zip(ys[::2], ys[1::2], strict=False):
        out += [-b, a]
    return out + [-x for x in ys[len(out) :]]


def _swap_flow(ys: Leaves, k: Tensor, s0: Tensor, s1: Tensor) -> Leaves:
    angle, out = k * (s1 - s0), []
    for a, b in zip(ys[::2], ys[1::2], strict=False):
        c, s = (spread(g(angle), a).to(a.dtype) for g in (torch.cos, torch.sin))
        out += [a * c - b * s, a * s + b * c]
    return out + [_scale(-k, s1 - s0, x) for x in ys[len(out) :]]


def _logistic_flow(ys: Leaves, k: Tensor, s0: Tensor, s1: Tensor) -> Leaves:
    return [1 / (1 + (1 / x - 1) * torch.exp(-spread(k * (s1 - s0), x))) for x in ys]


def _polynomial(s: Tensor) -> Tensor:
    return 1 - 2 * s + 0.75 * s**2


def _integral(s: Tensor) -> Tensor:
    return s - s**2 + 0.25 * s**3


FIELDS: dict[str, Known] = {
    "scale": Known(
        lambda s, ys: [-_turn(x) * x for x in ys], _decay, linear=True, autonomous=True, rows=True,
    ),
    "forced": Known(
        lambda s, ys: [spread(torch.cos(s), x).to(x.dtype) * x for x in ys],
        lambda ys, k, s0, s1: [_scale(k, torch.sin(s1) - torch.sin(s0), x) for x in ys],
        linear=True, autonomous=False, rows=True,
    ),
    "polynomial": Known(
        lambda s, ys: [spread(_polynomial(s), x).to(x.dtype) + 0 * x for x in ys],
        lambda ys, k, s0, s1: [x + spread(k * (_integral(s1) - _integral(s0)), x).to(x.dtype) for x in ys],
        linear=False, autonomous=False, rows=True,
    ),
    "logistic": Known(
        lambda s, ys: [x * (1 - x) for x in ys], _logistic_flow, linear=False, autonomous=True, rows=True,
    ),
    "matrix": Known(
        lambda s, ys: [_along(x, matrix(x)) for x in ys], _matrix_flow, linear=True, autonomous=True, rows=False,
    ),
    "swap": Known(_swap, _swap_flow, linear=True, autonomous=True, rows=True),
}  # fmt: skip
REAL_ONLY = ("logistic",)


class Rate(nn.Module):
    """The field as a module with one parameter."""

    def __init__(self, f: Callable[..., Any], k: Tensor) -> None:
        super().__init__()
        self.f, self.k = f, nn.Parameter(k.detach().clone(), requires_grad=k.requires_grad)

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.f(t, y, self.k)


def as_called(known: Known, unit: float, passing: str, k: Tensor) -> tuple[Any, tuple[Any, ...], Tensor]:
    """f, args, and the tensor to differentiate by, with k handed over in the way that `passing` says."""

    def slope(t: Tensor, y: Any, k: Tensor) -> Any:
        leaves, spec = flatten(y)
        out = known.slope(t / unit, leaves)
        return unflatten([spread(k / unit, x).to(x.dtype) * x for x in out], spec)

    if passing == "closure":
        return lambda t, y: slope(t, y, k), (), k
    if passing == "partial":
        return functools.partial(slope, k=k), (), k
    if passing == "module":
        module = Rate(slope, k)
        return module, (), module.k
    if passing == "tree":
        return lambda t, y, p, name: slope(t, y, p[name][0]), ({"k": [k], "n": 3}, "k"), k
    return slope, (k,), k  # "args", "rows"
