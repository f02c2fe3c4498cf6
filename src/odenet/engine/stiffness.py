"""Whether stability, and not accuracy, holds the steps of a solve down: told once, early.

The error estimate of an explicit method is E = dt sum_i e_i k_i, of slopes k_i at the states g_i of its stages. The
weights e_i sum to zero, so with D = sum_i e_i g_i a linear f has E = dt J D. Both are small but for the fastest modes:
(E, D) / (D, D) is dt times the fastest eigenvalue, from slopes that are there already. Where steps are as long as the
method is stable for, it lies at the end of the stability interval, step after step, within a tenth; where accuracy
decides, well inside. Hairer & Wanner II, IV.2, "Detecting Stiffness", compare two stages to the same end.
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

_FIRST = 50  # attempts before the first look; later ones after twice, four times as many
_LOOKS = 18  # steps that are looked at one after the other
_ENOUGH = 12  # of them that have to be at the bound
_FEW = 4  # looks that end the matter where none of them is
_BAND = (0.75, 2.0)  # parts of the stability interval
_LEFT = 1000.0  # further steps from which on it is worth telling

CURE = "take an implicit method: method='esdirk54', or 'radauIIA5' for tight tolerances"


def can_detect_stiffness(p: Problem) -> bool:
    return p.controller.adaptive and p.method.stability_interval > 0.0 and not p.traced


@torch.no_grad()
def at_stability_bound(attempt: StepAttempt) -> Tensor:
    """Lanes of which an accepted step is about as long as the method is stable for; 0-d for a joint solve."""
    p = attempt.problem
    accept = torch.as_tensor(attempt.accept)
    parts = p.method.stiff_part(attempt.step)
    if parts is None:
        return torch.zeros_like(accept)
    scale = tolerance_scale(tuple(y.detach() for y in attempt.y), p.rtol, p.atol)
    error, states = (_over(x, scale) for x in parts)
    part = -dot(error, states, p.batched) / dot(states, states, p.batched) / p.method.stability_interval
    return accept & (part > _BAND[0]) & (part < _BAND[1])


def _over(x: Leaves, scale: Leaves) -> Leaves:
    return tuple(a.detach() / s for a, s in zip(x, scale, strict=True))


@final
class StiffnessDetector:
    """Looks now and then at some steps in a row; one object for a solve, also where that is several legs."""

    def __init__(self) -> None:
        self.wait = _FIRST
        self.warned = False
        self._rest(_FIRST)

    def _rest(self, attempts: int) -> None:
        self.left, self.looks = attempts, 0
        self.count: Tensor | None = None  # of steps at the bound
        self.longest: Tensor | None = None  # of them: others may have been cut short, to end at an event

    def wrap(self, try_step: TryStep) -> TryStep:
        """`try_step`, watched."""

        def watched(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
            attempt, decision = try_step(p, tracker, s)
            self.left -= 1
            if self.left < 0 and not self.warned:
                self.inspect(attempt)
            return attempt, decision

        return watched

    def inspect(self, attempt: StepAttempt) -> None:
        if attempt.accept is False:
            return
        held, step = at_stability_bound(attempt), (attempt.time1 - attempt.time0).detach().abs()
        if self.count is None or self.longest is None or self.count.shape != held.shape:  # or samples have left
            self.count, self.longest = torch.zeros_like(held, dtype=torch.int64), torch.zeros_like(step)
        self.count = self.count + held
        self.longest = torch.where(held, torch.maximum(step, self.longest), self.longest)
        self.looks += 1
        if self.looks not in (_FEW, _LOOKS):  # a device is waited for no more often
            return
        most = int(self.count.max())
        if most >= _ENOUGH:
            self._tell(attempt, self.count >= _ENOUGH, self.longest)
        if self.looks == _LOOKS or not most:
            self._rest(self.wait)
            self.wait *= 2

    def _tell(self, attempt: StepAttempt, held: Tensor, step: Tensor) -> None:
        p, t = attempt.problem, attempt.time1.detach()
        left = torch.where(held, (p.ts.detach()[..., -1] - t).abs() / step, 0.0)
        if float(left.max()) < _LEFT:
            return
        self.warned, whose = True, ""
        if p.batched:
            row = int(left.argmax())
            t, step, left = t[row], step[row], left[row]
            whose = f", sample {int(p.samples.sample_numbers(row))}"
        warn(
            f"The problem is stiff (t={float(t):.3g}{whose}): steps of {float(step):.1g} are as long as method="
            f"{p.method.name!r} is stable for, though not as long as rtol and atol allow, and some {float(left):.0e} "
            f"more lead to the end. For fewer steps {CURE}.",
            StiffnessWarning,
        )
