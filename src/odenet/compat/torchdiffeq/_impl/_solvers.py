"""Solver classes of torchdiffeq's private modules, and their tableaus; see the package's own text."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....methods import METHODS, ExplicitRK, Method
from ._functions import _handle_unused_kwargs

_ButcherTableau = namedtuple("_ButcherTableau", "alpha, beta, c_sol, c_error")
_RungeKuttaState = namedtuple("_RungeKuttaState", "y1, f1, t0, t1, dt, interp_coeff")


# --- solvers


class FixedGridODESolver:
    """Base class of clients' own fixed-step solvers: they define `_step_func(func, t0, dt, t1, y0) -> (dy, f0)`."""

    order: int = 1

    def __init__(
        self, func: Any, y0: Tensor, step_size: Any = None, grid_constructor: Any = None, interp: str = "linear",
        perturb: bool = False, **unused: Any,
    ) -> None:  # fmt: skip
        self.atol = unused.pop("atol", None)
        self.rtol = unused.pop("rtol", None)
        unused.pop("norm", None)
        _handle_unused_kwargs(self, unused)
        if step_size is not None and grid_constructor is not None:
            raise ValueError("step_size and grid_constructor exclude each other: give one of them")
        self.func, self.y0, self.dtype, self.device = func, y0, y0.dtype, y0.device
        self.step_size, self.interp, self.perturb = step_size, interp, perturb
        if step_size is not None:
            grid_constructor = self._grid_constructor_from_step_size(step_size)
        self.grid_constructor = grid_constructor or (lambda func, y0, t: t)

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return {"callback_step"}

    @staticmethod
    def _grid_constructor_from_step_size(step_size: Any) -> Callable[..., Tensor]:
        def grid(func: Any, y0: Any, t: Tensor) -> Tensor:
            count = math.ceil(float((t[-1] - t[0]).abs()) / float(step_size) - 1e-9)
            sign = 1 if t[-1] >= t[0] else -1
            inner = t[0] + sign * float(step_size) * torch.arange(count, dtype=t.dtype, device=t.device)
            return torch.cat([inner, t[-1:]])

        return grid

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a fixed-step solver defines _step_func(func, t0, dt, t1, y0) -> (dy, f0)")


def _one_step(method: Method, func: Any, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    rise, stages = method.increment(lambda t, y: (func(t, y[0]),), t0, t1, (y0,))
    return rise[0], stages[0][0]


def _fixed(name: str, method: str) -> type[FixedGridODESolver]:
    own = METHODS[method]

    def step(self: Any, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        return _one_step(own, func, t0, t1, y0)

    return type(name, (FixedGridODESolver,), {"order": own.order, "_step_func": step, "__doc__": f"One {method} step."})


def rk4_alt_step_func(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None = None, perturb: bool = False
) -> Tensor:
    """The increment of one step by the 3/8 rule."""
    return _one_step(METHODS["rk4_38"], func, t0, t1, y0)[0]


def _runge_kutta_step(
    func: Any, y0: Tensor, f0: Tensor, t0: Tensor, dt: Tensor, t1: Tensor, tableau: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y1, the last slope, the error, and all slopes on a last axis."""
    k = [f0]
    for c, row in zip(tableau.alpha.tolist(), tableau.beta, strict=True):
        moved = y0 + dt * sum(a * x for a, x in zip(row.tolist(), k, strict=True))
        k.append(func(t1 if c == 1.0 else t0 + c * dt, moved))
    y1 = y0 + dt * sum(b * x for b, x in zip(tableau.c_sol.tolist(), k, strict=True))
    error = dt * sum(b * x for b, x in zip(tableau.c_error.tolist(), k, strict=True))
    return y1, k[-1], error, torch.stack(k, -1)


class AdaptiveStepsizeODESolver:
    """Named by clients; adaptive solves run in this library's own loop."""

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return set()


class RKAdaptiveStepsizeODESolver(AdaptiveStepsizeODESolver):
    """The same, with a tableau to read."""

    order: int
    tableau: Any

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return {"callback_step", "callback_accept_step", "callback_reject_step"}


def _tableau(method: str) -> Any:
    """Rows without the first stage, as torchdiffeq has them."""
    own = METHODS[method]
    assert isinstance(own, ExplicitRK) and own.tableau.error is not None
    t, wide = own.tableau, torch.float64
    return _ButcherTableau(
        torch.tensor(t.c[1:], dtype=wide), [torch.tensor(row, dtype=wide) for row in t.a[1:]],
        torch.tensor(t.b, dtype=wide), torch.tensor(t.error, dtype=wide),
    )  # fmt: skip


def _adaptive(name: str, method: str) -> type[RKAdaptiveStepsizeODESolver]:
    body = {"order": METHODS[method].order, "tableau": _tableau(method), "__doc__": f"The tableau of {method}."}
    return type(name, (RKAdaptiveStepsizeODESolver,), body)
