"""Step-size control by the error estimate: the common base of PID and predictive control."""

from __future__ import annotations

from abc import abstractmethod

from ..core.scalars import (
    ScalarLike,
    clip,
    isfinite,
    logical_not,
    maximum,
    minimum,
    round_to_float32,
    select_all,
    where,
)
from ..core.serialization import settings_repr
from ..core.validate import function, number
from ..methods.method import Norm
from .controller import Attempt, Controller, ControllerState, Decision
from .stop_times import Times, check_times

_MIN_RATIO = 1e-10  # error ratios are raised to this: all smaller ones are far within the tolerance, and 1/0 overflows


class ErrorControl(Controller):
    """Accepts a step whose error is within the tolerance, and chooses the next size by `factor`, within limits.

    safety, factor_min, factor_max: the next step is the present one times a factor in [factor_min, factor_max], which
        includes `safety`. Right after a rejection no step grows.
    min_step, max_step: limits of the step size, in the unit of time. A step of at most min_step is accepted whatever
        its error, unless the new state or its error is not finite.
    first_step: size of the first attempt; default: Hairer's formula (`initial_step_size`).
    step_ts: times that end a step. jump_ts: the same, at jumps of f or of a derivative of f: f is evaluated just before
        the time for the step that ends there, and again just after it. Both: times, or a callable from ts to times.
    norm: callable from the leaves of error / tolerance to a number (with per_sample, a tensor (B,)); default: RMS.
    """

    adaptive = True
    every_output = False
    stretch = 1.01

    def __init__(
        self,
        *,
        safety: float = 0.9,
        factor_min: float = 0.2,
        factor_max: float = 10.0,
        min_step: float = 0.0,
        max_step: float = float("inf"),
        first_step: float | None = None,
        step_ts: Times | None = None,
        jump_ts: Times | None = None,
        norm: Norm | None = None,
    ) -> None:
        self.safety, self.factor_min = number("safety", safety), number("factor_min", factor_min)
        self.factor_max, self.min_step, self.max_step = (
            number(name, value)
            for name, value in (("factor_max", factor_max), ("min_step", min_step), ("max_step", max_step))
        )
        self.first_step = None if first_step is None else number("first_step", first_step)
        if norm is not None:
            function("norm", norm, "norm(leaves)")
        self.step_ts, self.jump_ts, self.norm = step_ts, jump_ts, norm
        check_times("step_ts", step_ts)
        check_times("jump_ts", jump_ts)
        if not 0.0 < self.safety <= 1.0:
            raise ValueError(f"safety must lie in (0, 1]; got {self.safety!r}")
        if not 0.0 < self.factor_min < 1.0 <= self.factor_max:
            raise ValueError(
                f"factor_min must lie in (0, 1) and factor_max be at least 1; got factor_min={self.factor_min!r}, "
                f"factor_max={self.factor_max!r}"
            )
        if self.max_step <= 0.0:
            raise ValueError(f"max_step must be positive; got max_step={self.max_step!r}")
        if not 0.0 <= self.min_step <= self.max_step:
            raise ValueError(
                f"min_step must lie in [0, max_step]; got min_step={self.min_step!r}, max_step={self.max_step!r}"
            )
        if self.first_step is not None and not 0.0 < self.first_step < float("inf"):
            raise ValueError(f"first_step must be positive and finite; got {self.first_step!r}")

    def __repr__(self) -> str:
        return settings_repr(self)

    def initial_step(self, h: ScalarLike) -> ScalarLike:
        if self.first_step is not None:
            h = h * 0.0 + self.first_step
        return clip(h, self.min_step, self.max_step)

    @abstractmethod
    def factor(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ScalarLike:
        """The next step size over this one, before safety and limits. ratio: error over tolerance, >= 1e-10."""

    @abstractmethod
    def next_state(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ControllerState:
        """The controller state after this step; used where the step is accepted."""

    def decide(self, attempt: Attempt, state: ControllerState) -> Decision:
        h, finite = attempt.h, isfinite(attempt.ratio)
        ratio = round_to_float32(maximum(where(finite, attempt.ratio, 1.0), _MIN_RATIO))
        at_minimum = h <= self.min_step
        accept = finite & ((ratio <= 1.0) | at_minimum)
        factor = self.safety * self.factor(ratio, attempt, state)
        factor = maximum(where(finite, round_to_float32(factor), self.factor_min), self.factor_min)
        # a rejected step shrinks, even where earlier errors in the controller state ask for growth
        upper = self.factor_max if attempt.rejected is False else attempt.max_factor(self.factor_max)
        factor = minimum(factor, where(accept, upper, self.safety))
        factor = factor if attempt.step_hint is None else attempt.apply_hint(accept, factor)
        accepted_state = self.next_state(ratio, attempt, state)
        state = select_all(accept, accepted_state, state)
        return Decision(accept, clip(h * factor, self.min_step, self.max_step), state, logical_not(finite) & at_minimum)
