"""The functions that torchdiffeq's solver classes use: wrappers of func, step sizes, steps, interpolation, roots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...control.first_step import initial_step_size
from ...errors import warn
from ...events.chebyshev import nodes
from ...events.roots import RootQuery, first_roots
from .adjoint_norms import flat_to_shape


class Perturb(Enum):
    """Where to evaluate func: at t, or at the floating-point neighbour before or after it."""

    NONE = 0
    PREV = 1
    NEXT = 2


# --- adaptive step sizes


def compute_error_ratio(error: Tensor, rtol: Any, atol: Any, y0: Tensor, y1: Tensor, norm: Any) -> Tensor:
    return norm(error / (atol + rtol * torch.maximum(y0.abs(), y1.abs()))).abs()


@torch.no_grad()
def optimal_step_size(last: Tensor, ratio: Tensor, safety: Any, ifactor: Any, dfactor: Any, order: int) -> Tensor:
    if ratio == 0:
        return last * ifactor
    smallest_factor = 1.0 if ratio < 1 else float(dfactor)
    return last * min(float(ifactor), max(float(safety) / float(ratio) ** (1 / order), smallest_factor))


def select_initial_step(
    func: Any, t0: Tensor, y0: Tensor, order: int, rtol: Any, atol: Any, norm: Any, f0: Tensor | None = None
) -> Tensor:
    slope = func(t0, y0) if f0 is None else f0
    tolerances = ([x] for x in (rtol, atol))
    span = torch.full_like(t0, 1e18, dtype=torch.float64)
    size = initial_step_size(
        lambda t, y: (func(t, y[0]),), t0, span, (y0,), (slope,), order, *tolerances,
        norm=lambda leaves: torch.as_tensor(norm(leaves[0])),
    )  # fmt: skip
    return torch.as_tensor(size).to(t0.dtype)


# --- wrappers of func


class TupleFunc(nn.Module):
    """func on a tuple state flattened into one vector."""

    def __init__(self, base_func: Any, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.base_func, self.shapes = base_func, shapes

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.reshape(-1) for x in self.base_func(t, flat_to_shape(y, (), self.shapes))])


class TupleInputOnlyFunc(nn.Module):
    """An event function on a tuple state flattened into one vector; its value stays as it is."""

    def __init__(self, base_func: Any, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.base_func, self.shapes = base_func, shapes

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.base_func(t, flat_to_shape(y, (), self.shapes))


class ReverseFunc(nn.Module):
    """func in reversed time: mul * base_func(-t, y)."""

    def __init__(self, base_func: Any, mul: float = 1.0) -> None:
        super().__init__()
        self.base_func, self.mul = base_func, mul

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.mul * self.base_func(-t, y)


def nextafter(x1: Tensor, x2: Tensor) -> Tensor:
    """The floating-point neighbour of x1 towards x2, differentiable by x1."""
    return x1 + (torch.nextafter(x1, x2) - x1).detach()


class PerturbFunc(nn.Module):
    """func(t, y, perturb=...), which evaluates just beside t if asked."""

    def __init__(self, base_func: Any) -> None:
        super().__init__()
        self.base_func = base_func

    def forward(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        t = (t.real if t.is_complex() else t).to(y.abs().dtype)
        if perturb is not Perturb.NONE:
            t = nextafter(t, torch.full_like(t, math.inf if perturb is Perturb.NEXT else -math.inf))
        return self.base_func(t, y)


def null_callback(*args: Any, **kwargs: Any) -> None:
    return None


def decreasing(t: Tensor) -> Tensor:
    return (t[1:] < t[:-1]).all()


def callback(func: Any, name: str) -> Callable[..., Any]:
    """The callback of func with this name, or a function that does nothing."""
    return getattr(func, name, null_callback)


def handle_unused_kwargs(solver: Any, unused: dict[str, Any]) -> None:
    if unused:
        warn(f"{type(solver).__name__}: unexpected arguments {unused} are not used")


# --- one step


class ButcherTableau(NamedTuple):
    """The tableau of an explicit pair, without the row of the first stage.

    alpha (s,), beta: the stages. c_sol, c_error (s + 1,): weights of y1 and of its error.
    """

    alpha: Tensor
    beta: list[Tensor]
    c_sol: Tensor
    c_error: Tensor


class RungeKuttaState(NamedTuple):
    """See `RKAdaptiveStepsizeODESolver`."""

    y1: Tensor
    f1: Tensor
    t0: Tensor
    t1: Tensor
    dt: Tensor
    interp_coeff: list[Tensor]


class UncheckedAssign(torch.autograd.Function):
    """Assigns `value` to scratch[index] in place, without autograd's version check."""

    @staticmethod
    def forward(ctx: Any, scratch: Tensor, value: Tensor, index: Any) -> Tensor:
        ctx.index = index
        scratch.data[index] = value
        return scratch

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bar, bar[ctx.index], None


def dot_product(x: Iterable[Any], y: Iterable[Any]) -> Any:
    return sum(a * b for a, b in zip(x, y, strict=False))


def evaluate_func(func: Any, t: Tensor, y: Tensor, perturb: Perturb = Perturb.NONE) -> Tensor:
    """func at (t, y), or just beside t; func is then a `PerturbFunc`."""
    return func(t, y) if perturb is Perturb.NONE else func(t, y, perturb=perturb)


def _explicit_increment(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None, perturb: bool, table: Any
) -> Tensor:
    """The increment of an explicit step by a table of rows (c, a_1, a_2, ...), with the weights in the last row."""
    *rows, weights = table
    perturb_start, before = (Perturb.NEXT, Perturb.PREV) if perturb else (Perturb.NONE, Perturb.NONE)
    k = [evaluate_func(func, t0, y0, perturb_start) if f0 is None else f0]
    for row in rows[1:]:
        y_stage = y0 + dt * dot_product(row[1:], k)
        k.append(evaluate_func(func, t1, y_stage, before) if row[0] == 1.0 else func(t0 + dt * row[0], y_stage))
    return dt * dot_product(weights[1:], k)


_CLASSICAL = ([0.0], [0.5, 0.5], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 1.0], [0.0, 1 / 6, 1 / 3, 1 / 3, 1 / 6])
_THREE_EIGHTHS = ([0.0], [1 / 3, 1 / 3], [2 / 3, -1 / 3, 1.0], [1.0, 1.0, -1.0, 1.0], [0.0, 1 / 8, 3 / 8, 3 / 8, 1 / 8])


def rk4_step_func(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None = None, perturb: bool = False
) -> Tensor:
    """The increment of one step of the classical method of order 4."""
    return _explicit_increment(func, t0, dt, t1, y0, f0, perturb, _CLASSICAL)


def rk4_alt_step_func(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None = None, perturb: bool = False
) -> Tensor:
    """The increment of one step by the 3/8 rule."""
    return _explicit_increment(func, t0, dt, t1, y0, f0, perturb, _THREE_EIGHTHS)


def rk3_step_func(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, butcher_tableu: Any = None, f0: Tensor | None = None,
    perturb: bool = False,
) -> Tensor:  # fmt: skip
    """The increment of one explicit step by a table of rows (c, a_1, a_2, ...), with the weights in the last row."""
    if butcher_tableu is None:
        raise TypeError("butcher_tableu must be the rows of a table, [[c_1, ...], ..., [0, b_1, b_2, ...]]; got None")
    return _explicit_increment(func, t0, dt, t1, y0, f0, perturb, butcher_tableu)


rk2_step_func = rk3_step_func


def runge_kutta_step(
    func: Any, y0: Tensor, f0: Tensor, t0: Tensor, dt: Tensor, t1: Tensor, tableau: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y1, the last slope, the error, and all slopes on a last axis."""
    t0, dt, t1 = (x.to(y0.abs().dtype) for x in (t0, dt, t1))
    k = [f0]
    for c, row in zip(tableau.alpha.tolist(), tableau.beta, strict=True):
        y_stage = y0 + dt * dot_product(row.tolist(), k)
        # func may jump at the end of the step; only a PerturbFunc can be evaluated just before it
        before = Perturb.PREV if c == 1.0 and isinstance(func, PerturbFunc) else Perturb.NONE
        k.append(evaluate_func(func, t1 if c == 1.0 else t0 + c * dt, y_stage, before))
    y1 = y0 + dt * dot_product(tableau.c_sol.tolist(), k)
    error = dt * dot_product(tableau.c_error.tolist(), k)
    return y1, k[-1], error, torch.stack(k, -1)


# --- interpolation and events


def interp_fit(y0: Tensor, y1: Tensor, y_mid: Tensor, f0: Tensor, f1: Tensor, dt: Any) -> list[Tensor]:
    """The quartic through both ends, both slopes and the middle; coefficients in ascending powers."""
    a, b = dt * f0, dt * f1
    increment, half_increment = y1 - y0, y_mid - y0
    return [
        y0,
        a,
        16 * half_increment - 5 * increment + b - 4 * a,
        14 * increment - 32 * half_increment + 5 * a - 3 * b,
        16 * half_increment - 8 * increment + 2 * (b - a),
    ]


def interp_evaluate(coefficients: Sequence[Tensor], t0: Tensor, t1: Tensor, t: Tensor) -> Tensor:
    x = ((t - t0) / (t1 - t0)).to(coefficients[0].abs().dtype)
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


@torch.no_grad()
def find_event(interp_fn: Any, sign0: Tensor, t0: Tensor, t1: Tensor, event_fn: Any, tol: float) -> tuple[Tensor, Any]:
    """The first time in [t0, t1] at which event_fn loses its initial sign, and the state there."""

    def value(x: float) -> float:
        t = t0 + x * (t1 - t0)
        return float(event_fn(t, interp_fn(t)))

    def values(x: Tensor, live: Tensor) -> Tensor:
        return x.new_tensor([value(float(x))])

    zero = torch.zeros(1, dtype=torch.float64)
    samples = zero.new_tensor([[value(x) for x in nodes()]])
    position = float(first_roots(values, samples, RootQuery(zero, zero + float(sign0), zero, zero == 0)).where)
    t = t1 if math.isinf(position) else t0 + position * (t1 - t0)
    return t, interp_fn(t)


def combine_event_functions(event_fn: Any, t0: Tensor, y0: Any) -> Callable[[Tensor, Any], Tensor]:
    """The value nearest to zero of several, each counted as positive at the start."""
    with torch.no_grad():
        signs = torch.sign(event_fn(t0, y0))
    return lambda t, y: torch.min(event_fn(t, y) * signs)


def sort_tvals(tvals: Tensor, t0: Tensor) -> Tensor:
    return torch.sort(tvals[tvals >= t0]).values
