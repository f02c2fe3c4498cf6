"""Gustafsson's predictive step-size control, the default of adaptive implicit methods."""

from __future__ import annotations

from typing import final

from ..core.scalars import ScalarLike, full_like, minimum, round_to_float32, where
from .controller import Attempt, ControllerState
from .error_control import ErrorControl


@final
class Predictive(ErrorControl):
    """Gustafsson's predictive controller: extrapolates the error of the next step from the last two.

    K. Gustafsson, Control-theoretic techniques for stepsize selection in implicit Runge-Kutta methods, ACM TOMS 20
    (1994), 496-517; Hairer & Wanner II, (IV.8.25); that of RADAU5 and of SciPy's Radau. It works with any method that
    estimates its error. With r_n the error of step n over the tolerance, and k the order of the error estimate,

        h_(n+1) = safety h_n r_n^(-1/k) min(1, (h_n / h_(n-1)) (r_(n-1) / r_n)^(1/k)).

    The hint of an implicit method (`StepSizeHint`) limits it further. Parameters: those of `ErrorControl`, which are
    those of `PID` without its coefficients. The controller state is (h_(n-1), r_(n-1)), with h = 0 before the first
    step.
    """

    def init_state(self, h: ScalarLike) -> ControllerState:
        return (full_like(h, 0.0), full_like(h, 1.0))

    def factor(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ScalarLike:
        last_h, last_ratio = state
        plain = round_to_float32(ratio ** (-1.0 / attempt.order))
        has_last = last_h > 0.0
        growth = attempt.h / where(has_last, last_h, 1.0)
        predicted = growth * round_to_float32((last_ratio / ratio) ** (1.0 / attempt.order))
        return plain * minimum(where(has_last, predicted, 1.0), 1.0)

    def next_state(self, ratio: ScalarLike, attempt: Attempt, state: ControllerState) -> ControllerState:
        return (attempt.h, ratio)
