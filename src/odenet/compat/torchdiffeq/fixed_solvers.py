"""torchdiffeq's fixed-step solver classes, for programs that build, step or subclass them.

`odeint` itself runs in this library's loop. These classes are plain PyTorch operations: differentiable by autograd,
without the loop's features. func gets (t, y), with y a single tensor; it must be a `PerturbFunc` only with
perturb=True.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.dense import hermite
from ...methods import Adams, ExplicitRK, ImplicitRK, Method
from ...methods.method import StepInput
from .solver_functions import Perturb, callback, evaluate_func, find_event, handle_unused_kwargs, interp_evaluate


def grid_from_step_size(step_size: Any) -> Callable[..., Tensor]:
    """A grid_constructor: the times t[0] + n * step_size up to t[-1], backwards too."""

    def grid(func: Any, y0: Any, t: Tensor) -> Tensor:
        count = max(1, math.ceil(float((t[-1] - t[0]).detach().abs()) / float(step_size) - 1e-9))
        sign = 1 if t[-1] >= t[0] else -1
        inner = t[0] + sign * float(step_size) * torch.arange(count, dtype=t.dtype, device=t.device)
        return torch.cat([inner, t[-1:]])

    return grid


class FixedGridODESolver:
    """Base class of fixed-step solvers: a subclass defines `_step_func(func, t0, dt, t1, y0) -> (dy, f0)`."""

    order: int = 1

    def __init__(
        self, func: Any, y0: Tensor, step_size: Any = None, grid_constructor: Any = None, interp: str = "linear",
        perturb: bool = False, **unused: Any,
    ) -> None:  # fmt: skip
        self.atol = unused.pop("atol", None)
        self.rtol = unused.pop("rtol", None)
        unused.pop("norm", None)
        handle_unused_kwargs(self, unused)
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
        return grid_from_step_size(step_size)

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a fixed-step solver defines _step_func(func, t0, dt, t1, y0) -> (dy, f0)")

    def integrate(self, t: Tensor) -> Tensor:
        """The solution at all of t, increasing, (len(t), *y0.shape)."""
        grid = self.grid_constructor(self.func, self.y0, t)
        ends, outputs = grid.tolist(), t.tolist()  # floats, as comparing tensors costs as much as a stage
        if ends[0] != outputs[0] or ends[-1] != outputs[-1]:
            raise AssertionError("grid_constructor must give a grid from t[0] to t[-1]")
        y0, solution, separate_grid = self.y0, [self.y0], grid is not t
        callback_step = callback(self.func, "callback_step")
        for (t0, t1), end in zip(pairwise(grid.unbind()), ends[1:], strict=True):
            dt = t1 - t0
            callback_step(t0, y0, dt)
            dy, f0 = self._step_func(self.func, t0, dt, t1, y0)
            y1 = y0 + dy
            if not separate_grid:  # every step ends at an output
                solution.append(y1)
            while separate_grid and len(solution) < len(outputs) and end >= outputs[len(solution)]:
                solution.append(self._interpolant(t0, t1, y0, y1, f0)(t[len(solution)]))
            y0 = y1
        return torch.stack(solution)

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> tuple[Tensor, Tensor]:
        """The time at which event_fn(t, y) changes its sign, and the solution at t0 and there."""
        if self.step_size is None:
            raise AssertionError("a fixed-step solver needs step_size to look for an event")
        t0, y0 = t0.to(self.y0.abs().dtype), self.y0
        sign = torch.sign(event_fn(t0, y0))
        for _ in range(20_000):
            t1 = t0 + self.step_size
            dy, f0 = self._step_func(self.func, t0, t1 - t0, t1, y0)
            y1 = y0 + dy
            if bool(torch.sign(event_fn(t1, y1)) != sign):
                tol = 1e-9 if self.atol is None else float(self.atol)
                time, y1 = find_event(self._interpolant(t0, t1, y0, y1, f0), sign, t0, t1, event_fn, tol)
                return time, torch.stack([self.y0, y1])
            t0, y0 = t1, y1
        raise RuntimeError("no event in 20,000 steps")

    def _interpolant(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, f0: Tensor) -> Callable[[Tensor], Tensor]:
        """The solution within a step as a function of t, by `interp`."""
        if self.interp == "linear":
            return lambda t: self._linear_interp(t0, t1, y0, y1, t)
        if self.interp == "cubic":
            f1 = self.func(t1, y1)
            return lambda t: self._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)
        raise ValueError(f"interp must be 'linear' or 'cubic'; got {self.interp!r}")

    def _linear_interp(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
        if bool(t == t1):  # y1 itself, with the derivative of the line by t
            return y1 + ((t - t1) / (t1 - t0)).to(y0.abs().dtype) * (y1 - y0) if t.requires_grad else y1
        return y0 + ((t - t0) / (t1 - t0)).to(y0.abs().dtype) * (y1 - y0)

    def _cubic_hermite_interp(
        self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, f1: Tensor, t: Tensor
    ) -> Tensor:
        dt = (t1 - t0).to(y0.abs().dtype)
        coefficients = hermite((dt,), (y0,), (y1,), (f0,), (f1,))
        return interp_evaluate([y0, *(c[0] for c in coefficients)], t0, t1, t)


class MethodSolver(FixedGridODESolver):
    """A solver class whose step is that of a method of this library."""

    method: ClassVar[Method]

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        f0 = evaluate_func(func, t0, y0, Perturb.NEXT if self.perturb else Perturb.NONE)
        if self.method.num_stages == 1 and isinstance(
            self.method, ExplicitRK
        ):  # Euler's, to which what follows comes down
            return (dt if dt.dtype == y0.dtype else dt.to(y0.abs().dtype)) * f0, f0
        first_slope = [f0]  # every method evaluates this first

        def field(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if first_slope:
                return (first_slope.pop(),)
            at_end = self.perturb and bool(t == t1)
            return (evaluate_func(func, t, y[0], Perturb.PREV if at_end else Perturb.NONE),)

        return self.method.increment(StepInput(field, torch.as_tensor(t0), torch.as_tensor(t1), (y0,)))[0][0], f0


class FixedGridFIRKODESolver(MethodSolver):
    """An implicit Runge-Kutta method that solves for all stages together."""

    tableau: ClassVar[Any]

    def __init__(self, func: Any, y0: Tensor, *args: Any, max_iters: int = 100, **options: Any) -> None:
        super().__init__(func, y0, *args, **options)
        self.max_iters = max_iters
        if isinstance(self.method, ImplicitRK):
            self.method = ImplicitRK(self.method.tableau, max_iters)  # pyright: ignore[reportAttributeAccessIssue]


class FixedGridDIRKODESolver(FixedGridFIRKODESolver):
    """An implicit Runge-Kutta method that solves for its stages one after another."""


class AdamsBashforthMoulton(FixedGridODESolver):
    """The implicit Adams method. It stores the slopes of its steps: use one instance per solve."""

    order = 4

    def __init__(
        self, func: Any, y0: Tensor, rtol: Any = 1e-3, atol: Any = 1e-4, implicit: bool = True, max_iters: int = 4,
        max_order: int = 12, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(func, y0, rtol=rtol, atol=atol, **options)
        if max_order > 12:
            raise AssertionError(f"max_order must be at most 12; got {max_order}")
        self.implicit, self.max_iters, self.max_order = implicit, max_iters, int(max_order)
        tolerances = {name: float(torch.as_tensor(x).min()) for name, x in (("rtol", rtol), ("atol", atol))}
        self._adams = Adams(max(self.max_order, 1), implicit, max_iters, start="short", **tolerances)
        self._carry: tuple[Tensor, ...] | None = None

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        slopes: list[Tensor] = []

        def field(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            slopes.append(func(t, y[0]))
            return (slopes[-1],)

        start, end = (torch.as_tensor(t, dtype=torch.float64) for t in (t0, t1))
        carry = self._adams.init(field, start, (y0,)) if self._carry is None else self._carry
        step = self._adams.step(StepInput(field, start, end, (y0,), carry))
        self._carry = step.carry
        return step.y[0] - y0, slopes[0]


class AdamsBashforth(AdamsBashforthMoulton):
    """The explicit Adams method."""

    def __init__(self, func: Any, y0: Tensor, **options: Any) -> None:
        super().__init__(func, y0, implicit=False, **options)
