"""Norms, interpolation and the other functions of torchdiffeq's private modules; see the package's own text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ....control.first_step import hairer
from ....core.roots import Sought, first_roots, nodes
from .. import inputs as _inputs
from .. import methods as _methods


class Perturb(Enum):
    """Where func is to be evaluated: at t, or at its neighbour before or after."""

    NONE = 0
    PREV = 1
    NEXT = 2


# --- norms, and what adaptive solvers decide with


def _rms_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().pow(2).mean().sqrt()


def _mixed_norm(tensors: Sequence[Tensor]) -> Any:
    return max((_rms_norm(x) for x in tensors), default=0.0)


def _linf_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def _compute_error_ratio(error: Tensor, rtol: Any, atol: Any, y0: Tensor, y1: Tensor, norm: Any) -> Tensor:
    return norm(error / (atol + rtol * torch.maximum(y0.abs(), y1.abs()))).abs()


@torch.no_grad()
def _optimal_step_size(last: Tensor, ratio: Tensor, safety: Any, ifactor: Any, dfactor: Any, order: int) -> Tensor:
    if ratio == 0:
        return last * ifactor
    least = 1.0 if ratio < 1 else float(dfactor)
    return last * min(float(ifactor), max(float(safety) / float(ratio) ** (1 / order), least))


def _select_initial_step(
    func: Any, t0: Tensor, y0: Tensor, order: int, rtol: Any, atol: Any, norm: Any, f0: Tensor | None = None
) -> Tensor:
    slope = func(t0, y0) if f0 is None else f0
    tolerances = ([x] for x in (rtol, atol))
    return hairer(
        lambda t, y: (func(t, y[0]),), t0, torch.full_like(t0, 1e300), (y0,), (slope,), order, *tolerances,
        norm=lambda leaves: torch.as_tensor(norm(leaves[0])),
    ).to(t0.dtype)  # fmt: skip


# --- states and functions of them


def _flat_to_shape(tensor: Tensor, length: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    parts = tensor.split([s.numel() for s in shapes], -1)
    return tuple(part.reshape((*length, *s)) for part, s in zip(parts, shapes, strict=True))


class _TupleFunc(nn.Module):
    def __init__(self, base_func: Any, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.base_func, self.shapes = base_func, shapes

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.reshape(-1) for x in self.base_func(t, _flat_to_shape(y, (), self.shapes))])


class _ReverseFunc(nn.Module):
    def __init__(self, base_func: Any, mul: float = 1.0) -> None:
        super().__init__()
        self.base_func, self.mul = base_func, mul

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.mul * self.base_func(-t, y)


class _PerturbFunc(nn.Module):
    def __init__(self, base_func: Any) -> None:
        super().__init__()
        self.base_func = base_func

    def forward(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        t = (t.real if t.is_complex() else t).to(y.abs().dtype)
        if perturb is not Perturb.NONE:
            towards = torch.full_like(t, math.inf if perturb is Perturb.NEXT else -math.inf)
            t = t + (torch.nextafter(t, towards) - t).detach()
        return self.base_func(t, y)


def _null_callback(*args: Any, **kwargs: Any) -> None:
    return None


def _decreasing(t: Tensor) -> Tensor:
    return (t[1:] < t[:-1]).all()


def _handle_unused_kwargs(solver: Any, unused: dict[str, Any]) -> None:
    if unused:
        warnings.warn(f"{type(solver).__name__}: unexpected arguments {unused} are not used", UserWarning, stacklevel=3)


def _check_inputs(
    func: Any, y0: Any, t: Any, rtol: Any, atol: Any, method: Any, options: Any, event_fn: Any, solvers: Any
) -> tuple[Any, ...]:
    """torchdiffeq's ten values: a tuple as one vector, time running forwards."""
    checked = _inputs.Inputs.of(func, y0, t, rtol, atol, event_fn)
    options, name = dict(options or {}), _methods.known(method)
    shapes = None if isinstance(y0, Tensor) else [x.shape for x in y0]
    whole: Any = func if shapes is None else _TupleFunc(func, shapes)
    state = checked.y0 if isinstance(checked.y0, Tensor) else torch.cat([x.reshape(-1) for x in checked.y0])
    options.setdefault("norm", _rms_norm if shapes is None else lambda x: _mixed_norm(_flat_to_shape(x, (), shapes)))
    backwards = len(t) > 1 and bool(t[0] > t[1])
    if backwards:
        whole, event_fn = _ReverseFunc(whole, -1.0), None if event_fn is None else _ReverseFunc(event_fn)
    times = -checked.t if backwards else checked.t
    return shapes, _PerturbFunc(whole), state, times, rtol, atol, name, options, event_fn, backwards


def handle_adjoint_norm_(adjoint_options: dict[str, Any], shapes: Any, state_norm: Callable[[Tensor], Any]) -> None:
    """Put the norm of the whole backward state (t, y, adj_y, *params) into adjoint_options."""
    given = adjoint_options.get("norm")

    def norm(state: Sequence[Tensor]) -> Any:
        t, y, a, *params = state
        if callable(given):
            both = (y, a) if shapes is None else (*_flat_to_shape(y, (), shapes), *_flat_to_shape(a, (), shapes))
            return given((t, *both, *params))
        parts = [t.abs(), state_norm(y), state_norm(a)]
        return max(parts if given == "seminorm" else [*parts, _mixed_norm(params)])

    adjoint_options["norm"] = norm


# --- interpolation and events


def _interp_fit(y0: Tensor, y1: Tensor, y_mid: Tensor, f0: Tensor, f1: Tensor, dt: Any) -> list[Tensor]:
    """The quartic with both ends, both slopes and the middle; coefficients from the constant one up."""
    a, b = dt * f0, dt * f1
    rise, half = y1 - y0, y_mid - y0
    return [
        y0,
        a,
        16 * half - 5 * rise + b - 4 * a,
        14 * rise - 32 * half + 5 * a - 3 * b,
        16 * half - 8 * rise + 2 * (b - a),
    ]


def _interp_evaluate(coefficients: Sequence[Tensor], t0: Tensor, t1: Tensor, t: Tensor) -> Tensor:
    x = ((t - t0) / (t1 - t0)).to(coefficients[0].abs().dtype)
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


@torch.no_grad()
def find_event(interp_fn: Any, sign0: Tensor, t0: Tensor, t1: Tensor, event_fn: Any, tol: float) -> tuple[Tensor, Any]:
    """The first time in [t0, t1] at which event_fn loses the sign it had, and the state there."""

    def value(x: float) -> float:
        t = t0 + x * (t1 - t0)
        return float(event_fn(t, interp_fn(t)))

    def values(x: Tensor, live: Tensor) -> Tensor:
        return x.new_tensor([value(float(x))])

    zero = torch.zeros(1, dtype=torch.float64)
    samples = zero.new_tensor([[value(x) for x in nodes()]])
    where = float(first_roots(values, samples, Sought(zero, zero + float(sign0), zero, zero == 0)).where)
    t = t1 if math.isinf(where) else t0 + where * (t1 - t0)
    return t, interp_fn(t)
