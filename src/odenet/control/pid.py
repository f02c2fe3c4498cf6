"""PID step-size control; I and PI control are settings of it."""

from __future__ import annotations

from typing import final

from ..core.scalars import ScalarLike, full_like
from ..core.validate import number
from ..methods.method import Norm
from .controller import Attempt, ControllerState
from .error_control import ErrorControl
from .stop_times import Times

_MAX_COEFFICIENT = 10.0  # 1e-10, the smallest error ratio, to powers of such exponents is still far from overflow


@final
class PID(ErrorControl):
    """Soderlind's PID controller (Soderlind 2003, "Digital filters in adaptive time-stepping", table 1).

    With r_n the error of step n over the tolerance and k the order of the error estimate, the next step size is
    h * safety * r_n^(-b1/k) * r_(n-1)^(-b2/k) * r_(n-2)^(-b3/k), b1 = p + i + d, b2 = -(p + 2d), b3 = d, with the
    factor of h clipped to [factor_min, factor_max].

    pcoeff, icoeff, dcoeff: p, i, d. (0, 1, 0) is the I controller of most codes, (0.4, 0.3, 0) Hairer & Wanner's PI,
        (-1/6, 1/3, 0) Soderlind's H211PI.
    min_step, max_step: limits of the step size, in the unit of time. A step of at most min_step is accepted whatever
        its error, unless the new state or its error is not finite.
    first_step: size of the first attempt; default: Hairer's formula.
    step_ts: times that end a step. jump_ts: the same, at jumps of f or of a derivative of f: f is evaluated just before
        the time for the step that ends there, and again just after it. Both: times, or a callable from ts to times.
    norm: callable from the leaves of error / tolerance to a number (with per_sample, a tensor (B,)); default: RMS.
    """

    def __init__(
        self,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
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
        pcoeff, icoeff, dcoeff = number("pcoeff", pcoeff), number("icoeff", icoeff), number("dcoeff", dcoeff)
        if max(abs(pcoeff), abs(icoeff), abs(dcoeff)) > _MAX_COEFFICIENT:
            raise ValueError(
                f"pcoeff, icoeff and dcoeff must lie between -{_MAX_COEFFICIENT} and {_MAX_COEFFICIENT}; "
                f"got {pcoeff!r}, {icoeff!r}, {dcoeff!r}"
            )
        self.pcoeff, self.icoeff, self.dcoeff = pcoeff, icoeff, dcoeff
        self.beta = (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
        super().__init__(
            safety=safety, factor_min=factor_min, factor_max=factor_max, min_step=min_step, max_step=max_step,
            first_step=first_step, step_ts=step_ts, jump_ts=jump_ts, norm=norm,
        )  # fmt: skip

    def init_state(self, h: ScalarLike) -> ControllerState:
        return (full_like(h, 1.0), full_like(h, 1.0))

    def factor(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ScalarLike:
        b1, b2, b3 = self.beta
        factor = ratio ** (-b1 / attempt.order)
        if b2 != 0.0 or b3 != 0.0:
            factor = factor * state[0] ** (-b2 / attempt.order) * state[1] ** (-b3 / attempt.order)
        return factor

    def next_state(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ControllerState:
        return (ratio, state[0])
