"""Steps without error control: of constant size, or on a grid."""

from __future__ import annotations

import sys
from typing import final

from ..core.scalars import ScalarLike, isfinite, logical_not
from ..core.serialization import settings_repr
from ..core.validate import boolean, number
from .controller import Attempt, Controller, ControllerState, Decision
from .stop_times import Times, check_times


class UncontrolledSteps(Controller):
    """Accepts every step with a finite end. An attempt is of size `step`, or shorter where the next stop time is."""

    adaptive = False
    step: float

    def init_state(self, h: ScalarLike) -> ControllerState:
        return ()

    def initial_step(self, h: ScalarLike) -> ScalarLike:
        return h * 0.0 + self.step

    def constant_decision(self) -> Decision | None:
        return Decision(True, self.step, (), False)

    def decide(self, attempt: Attempt, state: ControllerState) -> Decision:
        accept = isfinite(attempt.ratio)
        return Decision(accept, self.initial_step(attempt.h), (), logical_not(accept))


@final
class ConstantStep(UncontrolledSteps):
    """Steps of size `step`, in the unit of time. The last one before each output time is shortened to end there.

    every_output: False: only the last step of the solve is shortened, and outputs before its end are interpolated.
    step_ts, jump_ts: further times that end a step; f is evaluated again after a jump time. perturb, finite: see
        `Controller`.
    """

    stretch = 1.0001

    def __init__(
        self,
        step: float,
        *,
        every_output: bool = True,
        step_ts: Times | None = None,
        jump_ts: Times | None = None,
        perturb: bool = False,
        finite: bool = True,
    ) -> None:
        self.step, self.step_ts, self.jump_ts = number("step", step), step_ts, jump_ts
        self.every_output = boolean("every_output", every_output)
        self.perturb, self.finite = boolean("perturb", perturb), boolean("finite", finite)
        check_times("step_ts", step_ts)
        check_times("jump_ts", jump_ts)
        if not 0.0 < self.step < float("inf"):
            raise ValueError(f"step must be positive and finite; got {step!r} (ts gives the direction of time)")

    def __repr__(self) -> str:
        return settings_repr(self)


@final
class Grid(UncontrolledSteps):
    """One step from each time of a grid to the next.

    times: the inner times of the grid (times outside ts are ignored), or a callable from ts to them; gradients reach
    them. Outputs between them are interpolated. None: the grid is ts. perturb, finite: see `Controller`.
    """

    stretch = 1.0
    step = sys.float_info.max  # longer than any interval, so that each attempt ends at the next stop time

    def __init__(self, times: Times | None = None, *, perturb: bool = False, finite: bool = True) -> None:
        check_times("times", times)
        self.step_ts, self.every_output = times, times is None
        self.perturb, self.finite = boolean("perturb", perturb), boolean("finite", finite)

    def __repr__(self) -> str:
        return settings_repr(self)

    @property
    def times(self) -> Times | None:
        return self.step_ts
