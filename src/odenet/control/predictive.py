"""Predictive step-size control for implicit methods."""

from __future__ import annotations

from typing import final

from ..core.scalars import ScalarLike, full_like, minimum, round_to_float32, where
from .controller import Attempt, ControllerState
from .error_control import ErrorControl


@final
class Predictive(ErrorControl):
    """Gustafsson's predictive controller: the error of the next step is foreseen from those of the last two.

    K. Gustafsson, Control-theoretic techniques for stepsize selection in implicit Runge-Kutta methods, ACM TOMS 20
    (1994), 496-517; Hairer & Wanner II, (IV.8.25). With r_n the error of step n in units of the tolerance, and k the
    order of the estimate, the next step is the shorter one of h_n safety r_n^(-1/k), and that times
    (h_n / h_(n-1)) (r_(n-1) / r_n)^(1/k). What an implicit method asks for (`StepSizeHint`) limits it further. Settings: those
    of `ErrorControl`.
    """

    def init_state(self, h: ScalarLike) -> ControllerState:
        return (full_like(h, 0.0), full_like(h, 1.0))

    def factor(self, r: ScalarLike, attempt: Attempt, state: ControllerState) -> ScalarLike:
        last_h, last_r = state
        plain = round_to_float32(r ** (-1.0 / attempt.order))
        known = last_h > 0.0
        ratio = attempt.h / where(known, last_h, 1.0)
        return plain * minimum(where(known, ratio * round_to_float32((last_r / r) ** (1.0 / attempt.order)), 1.0), 1.0)

    def next_state(self, r: ScalarLike, attempt: Attempt, state: ControllerState) -> ControllerState:
        return (attempt.h, r)
