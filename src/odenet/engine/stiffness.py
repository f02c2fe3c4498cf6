"""Stiffness: whether stability, not accuracy, limits the steps of a solve. Reported once, by a warning.

The error estimate of an explicit method is E = dt sum_i e_i k_i, of slopes k_i at the states g_i of its stages. The
weights e_i sum to zero, so with D = sum_i e_i g_i a linear f has E = dt J D. Both are small except in the fastest
modes: (E, D) / (D, D) is dt times the fastest eigenvalue, from slopes that are known already. Where steps are as long
as the method is stable for, it lies at the end of the stability interval, step after step, within a tenth; where
accuracy decides, well inside. Hairer & Wanner II, IV.2, "Detecting Stiffness", compare two stages to the same end.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..control.controller import Decision
from ..core.leaves import Leaves, dot
from ..core.norms import tolerance_scale
from ..errors import StiffnessWarning, warn
from .loop import TryStep
from .problem import Problem
from .step_attempt import State, StepAttempt
from .stop_tracker import StopTracker

_FIRST_WAIT = 50  # attempts before the first series of inspected steps; doubled for each later one
_SERIES = 18  # steps inspected in a row
_ENOUGH = 12  # steps of a series at the stability bound that make the problem stiff
_EARLY_END = 4  # steps after which a series ends if none of them is at the bound
_BOUND = (0.75, 2.0)  # in units of the stability interval: the range that counts as at the bound
_WORTH_A_WARNING = 1000.0  # steps of this size still to take

CURE = "take an implicit method: method='esdirk54', or 'radauIIA5' for tight tolerances"


def can_detect_stiffness(p: Problem) -> bool:
    return p.controller.adaptive and p.method.stability_interval > 0.0 and not p.traced


@torch.no_grad()
def at_stability_bound(attempt: StepAttempt) -> Tensor:
    """(B,), or () in a joint solve: accepted steps about as long as the method is stable for."""
    p = attempt.problem
    accept = torch.as_tensor(attempt.accept)
    stiffness_pair = p.method.stiffness_pair(attempt.step)
    if stiffness_pair is None:
        return torch.zeros_like(accept)
    scale = tolerance_scale(tuple(y.detach() for y in attempt.y), p.rtol, p.atol)
    error, states = (_scaled(x, scale) for x in stiffness_pair)
    length = -dot(error, states, p.batched) / dot(states, states, p.batched) / p.method.stability_interval
    return accept & (length > _BOUND[0]) & (length < _BOUND[1])


def _scaled(x: Leaves, scale: Leaves) -> Leaves:
    return tuple(a.detach() / s for a, s in zip(x, scale, strict=True))


@final
class StiffnessDetector:
    """Inspects a series of steps now and then; one object for a solve, also for one of several segments.

    wait: attempts between the last series and the next. countdown: attempts until the next series. inspected: steps of
    the current series so far. count: those of them at the stability bound, (B,) or (). longest: the longest of these.
    """

    def __init__(self) -> None:
        self.wait = _FIRST_WAIT
        self.warned = False
        self._end_series(_FIRST_WAIT)

    def _end_series(self, wait: int) -> None:
        self.countdown, self.inspected = wait, 0
        self.count: Tensor | None = None
        self.longest: Tensor | None = None  # not the last: that may have been cut short to end at an event

    def wrap(self, try_step: TryStep) -> TryStep:
        """`try_step` with the inspection after it."""

        def inspected(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
            attempt, decision = try_step(p, tracker, s)
            self.countdown -= 1
            if self.countdown < 0 and not self.warned:
                self.inspect(attempt)
            return attempt, decision

        return inspected

    def inspect(self, attempt: StepAttempt) -> None:
        if attempt.accept is False:
            return
        at_bound, step = at_stability_bound(attempt), (attempt.time1 - attempt.time0).detach().abs()
        if self.count is None or self.longest is None or self.count.shape != at_bound.shape:  # samples left the batch
            self.count, self.longest = torch.zeros_like(at_bound, dtype=torch.int64), torch.zeros_like(step)
        self.count = self.count + at_bound
        self.longest = torch.where(at_bound, torch.maximum(step, self.longest), self.longest)
        self.inspected += 1
        if self.inspected not in (_EARLY_END, _SERIES):  # reading the counts waits for the device
            return
        most = int(self.count.max())
        if most >= _ENOUGH:
            self._warn(attempt, self.count >= _ENOUGH, self.longest)
        if self.inspected == _SERIES or not most:
            self._end_series(self.wait)
            self.wait *= 2

    def _warn(self, attempt: StepAttempt, stiff: Tensor, step: Tensor) -> None:
        """Warn if so many steps remain that a warning helps. stiff: samples at the bound. step: their longest step."""
        p, t = attempt.problem, attempt.time1.detach()
        remaining = torch.where(stiff, (p.ts.detach()[..., -1] - t).abs() / step, 0.0)
        if float(remaining.max()) < _WORTH_A_WARNING:
            return
        self.warned, sample = True, ""
        if p.batched:
            row = int(remaining.argmax())
            t, step, remaining = t[row], step[row], remaining[row]
            sample = f", sample {int(p.samples.sample_numbers(row))}"
        warn(
            f"The problem is stiff (t={float(t):.3g}{sample}): steps of {float(step):.1g} are as long as method="
            f"{p.method.name!r} is stable for, though shorter than rtol and atol require, and about "
            f"{float(remaining):.0e} more of them lead to the end. For fewer steps {CURE}.",
            StiffnessWarning,
        )
