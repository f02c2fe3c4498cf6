"""torchdiffeq's adaptive solver classes, and that of SciPy: see fixed_solvers.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .adjoint_norms import rms_norm
from .solver_functions import (
    ButcherTableau,
    Perturb,
    RungeKuttaState,
    callback,
    compute_error_ratio,
    evaluate_func,
    find_event,
    handle_unused_kwargs,
    interp_evaluate,
    interp_fit,
    optimal_step_size,
    runge_kutta_step,
    select_initial_step,
    sort_tvals,
)

Solution = tuple[Tensor, Tensor]


class AdaptiveStepsizeODESolver:
    """Base class of adaptive solvers: a subclass defines `_advance(next_t)`."""

    def __init__(self, dtype: torch.dtype, y0: Tensor, norm: Any = rms_norm, **unused: Any) -> None:
        handle_unused_kwargs(self, unused)
        self.y0, self.dtype, self.norm = y0, dtype, norm

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return set()

    def _before_integrate(self, t: Any) -> None:
        """Called with the times before the first step."""

    def _advance(self, next_t: Tensor) -> Tensor:
        raise NotImplementedError("an adaptive solver defines _advance(next_t) -> y")

    def integrate(self, t: Tensor) -> Tensor:
        """The solution at all of t, increasing: (len(t), *y0.shape)."""
        t = t.to(self.dtype)
        self._before_integrate(t)
        return torch.stack([self.y0, *(self._advance(x) for x in t[1:])])


class AdaptiveStepsizeEventODESolver(AdaptiveStepsizeODESolver):
    """Base class of adaptive solvers with events: a subclass defines `_advance_until_event(event_fn)`."""

    def _advance_until_event(self, event_fn: Any) -> Solution:
        raise NotImplementedError("an adaptive solver with events defines _advance_until_event(event_fn) -> (t, y)")

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> Solution:
        """The time at which event_fn(t, y) changes its sign, and the solution at t0 and at that time."""
        self._before_integrate(t0.to(self.y0.device, self.dtype).reshape(-1))
        time, y1 = self._advance_until_event(event_fn)
        return time, torch.stack([self.y0, y1])


class RKAdaptiveStepsizeODESolver(AdaptiveStepsizeEventODESolver):
    """An explicit Runge-Kutta pair. tableau: its coefficients; mid: weights of the slopes for the middle of a step.

    rk_state: y1, f1 and t1 at the current time, t0 at the start of the last step, dt of the next attempt, and the
    coefficients of the last step's quartic, for `interp_evaluate`.
    """

    order: int
    tableau: Any
    mid: Tensor

    def __init__(
        self, func: Any, y0: Tensor, rtol: Any, atol: Any, min_step: Any = 0, max_step: Any = math.inf,
        first_step: Any = None, step_t: Any = None, jump_t: Any = None, safety: Any = 0.9, ifactor: Any = 10.0,
        dfactor: Any = 0.2, max_num_steps: Any = 2**31 - 1, dtype: torch.dtype = torch.float64, **options: Any,
    ) -> None:  # fmt: skip
        real = y0.abs().dtype
        super().__init__(torch.promote_types(dtype, real), y0, **options)

        def number(x: Any) -> Tensor:
            return torch.as_tensor(x, dtype=self.dtype, device=y0.device)

        def cast(x: Tensor) -> Tensor:
            return x.to(y0.device, real)

        self.func, self.rtol, self.atol = func, number(rtol), number(atol)
        self.min_step, self.max_step = number(min_step), number(max_step)
        self.first_step = None if first_step is None else number(first_step)
        self.safety, self.ifactor, self.dfactor = number(safety), number(ifactor), number(dfactor)
        self.max_num_steps = max_num_steps
        self.step_t = None if step_t is None else number(step_t)
        self.jump_t = None if jump_t is None else number(jump_t)
        table = self.tableau
        self.tableau = ButcherTableau(
            cast(table.alpha), [cast(row) for row in table.beta], cast(table.c_sol), cast(table.c_error)
        )
        self.mid = cast(self.mid)
        # FSAL: the last slope of a step is that at its end
        weights = self.tableau.c_sol
        self._fsal = bool(weights[-1] == 0) and torch.equal(weights[:-1], self.tableau.beta[-1])

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return super().valid_callbacks() | {"callback_step", "callback_accept_step", "callback_reject_step"}

    def _before_integrate(self, t: Any) -> None:
        t0 = t[0]
        f0 = self.func(t0, self.y0)
        first = self.first_step
        if first is None:
            first = select_initial_step(
                self.func, t0, self.y0, self.order - 1, self.rtol, self.atol, self.norm, f0=f0
            )  # fmt: skip
        self.rk_state = RungeKuttaState(self.y0, f0, t0, t0, first, [self.y0] * 5)
        empty = torch.zeros(0, dtype=self.dtype, device=self.y0.device)
        self.step_t, self.jump_t = (empty if x is None else sort_tvals(x, t0) for x in (self.step_t, self.jump_t))
        all_times = torch.cat([self.step_t, self.jump_t])
        if len(all_times.unique()) < len(all_times):
            raise ValueError("step_t and jump_t must not repeat a time, within one of them or across both")

    def _advance(self, next_t: Tensor) -> Tensor:
        """The solution at next_t, by steps up to or past it."""
        self._steps_while(lambda: bool(next_t > self.rk_state.t1))
        return interp_evaluate(self.rk_state.interp_coeff, self.rk_state.t0, self.rk_state.t1, next_t)

    def _advance_until_event(self, event_fn: Any) -> Solution:
        sign = torch.sign(event_fn(self.rk_state.t1, self.rk_state.y1))
        if bool(sign == 0):
            return self.rk_state.t1, self.rk_state.y1
        self._steps_while(lambda: bool(torch.sign(event_fn(self.rk_state.t1, self.rk_state.y1)) == sign))
        state = self.rk_state

        def interpolate(t: Tensor) -> Tensor:
            return interp_evaluate(state.interp_coeff, state.t0, state.t1, t)

        return find_event(interpolate, sign, state.t0, state.t1, event_fn, float(self.atol.min()))

    def _steps_while(self, condition: Callable[[], bool]) -> None:
        count = 0
        while condition():
            if count >= self.max_num_steps:
                raise AssertionError(f"max_num_steps exceeded ({count}>={self.max_num_steps})")
            self.rk_state = self._adaptive_step(self.rk_state)
            count += 1

    def _adaptive_step(self, rk_state: Any) -> Any:
        """The state after one attempt: at t1 if the step is accepted, else at t0 with another dt."""
        y0, f0, _, t0, dt, coefficients = rk_state
        dt = torch.where(torch.isfinite(dt), dt, self.min_step).clamp(self.min_step, self.max_step)
        callback(self.func, "callback_step")(t0, y0, dt)
        if not bool(t0 + dt > t0):
            raise AssertionError(f"underflow in dt {float(dt)} at t={float(t0)}")
        if not bool(torch.isfinite(y0).all()):
            raise AssertionError(f"non-finite values in the state at t={float(t0)}: {y0}")
        t1, jumps = self._end(t0, dt)
        dt = torch.minimum(dt, t1 - t0)  # t1 is rounded
        y1, f1, error, k = runge_kutta_step(self.func, y0, f0, t0, dt, t1, self.tableau)
        ratio = compute_error_ratio(error, self.rtol, self.atol, y0, y1, self.norm)
        accept = bool(dt <= self.min_step) or (bool(ratio <= 1) and not bool(dt > self.max_step))
        callback(self.func, "callback_accept_step" if accept else "callback_reject_step")(t0, y0, dt)
        next_dt = optimal_step_size(dt, ratio, self.safety, self.ifactor, self.dfactor, self.order)
        next_dt = torch.as_tensor(next_dt).clamp(self.min_step, self.max_step)
        if not accept:
            return RungeKuttaState(y0, f0, t0, t0, next_dt, coefficients)
        if not self._fsal:
            f1 = self.func(t1, y1)
        coefficients = self._interp_fit(y0, y1, torch.cat([k[..., :-1], f1.unsqueeze(-1)], -1), dt)
        if jumps:
            f1 = evaluate_func(self.func, t1, y1, Perturb.NEXT)
        return RungeKuttaState(y1, f1, t0, t1, next_dt, coefficients)

    def _end(self, t0: Tensor, dt: Tensor) -> tuple[Tensor, bool]:
        """The end of a step, after dt or at an earlier step_t or jump_t; and whether func jumps there."""
        t1, jumps = t0 + dt, False
        for times, jumping in ((self.step_t, False), (self.jump_t, True)):
            if times is not None and bool(((times > t0) & (times < t1)).any()):
                t1, jumps = times[(times > t0) & (times < t1)][0], jumping
        return t1, jumps

    def _interp_fit(self, y0: Tensor, y1: Tensor, k: Tensor, dt: Tensor) -> list[Tensor]:
        dt = dt.to(y0.abs().dtype)
        middle = y0 + dt * (k * self.mid).sum(-1)
        return interp_fit(y0, y1, middle, k[..., 0], k[..., -1], dt)


class ScipyWrapperODESolver:
    """SciPy's solve_ivp, without a gradient; `odeint` provides one."""

    def __init__(
        self, func: Any, y0: Tensor, rtol: Any, atol: Any, min_step: Any = 0, max_step: Any = math.inf,
        solver: str = "LSODA", **unused: Any,
    ) -> None:  # fmt: skip
        for name in ("norm", "grid_points", "eps"):
            unused.pop(name, None)
        handle_unused_kwargs(self, unused)
        self.func, self.y0, self.rtol, self.atol, self.solver = func, y0, rtol, atol, solver
        self.limits: dict[str, Any] = {"max_step": float(max_step)} | (
            {"min_step": float(min_step)} if solver == "LSODA" else {}
        )

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return set()

    @torch.no_grad()
    def integrate(self, t: Tensor) -> Tensor:
        """The solution at all of t, (len(t), *y0.shape)."""
        from scipy.integrate import solve_ivp

        like = self.y0

        def f(time: float, y: Any) -> Any:
            slope = self.func(torch.as_tensor(time).to(t), torch.as_tensor(y).to(like).reshape(like.shape))
            return slope.reshape(-1).cpu().numpy()

        times = t.cpu().numpy()
        result: Any = solve_ivp(
            f, (times[0], times[-1]), like.reshape(-1).cpu().numpy(), self.solver, times, rtol=self.rtol,
            atol=self.atol, **self.limits,
        )  # fmt: skip
        if not result.success:
            raise AssertionError(f"SciPy's {self.solver} failed: {result.message}")
        return torch.as_tensor(result.y.T.copy()).to(like).reshape(-1, *like.shape)
