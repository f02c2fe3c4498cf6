"""Callbacks: the caller's functions around each attempted step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..control.controller import Decision
from ..core.scalars import ScalarLike, any_true, logical_not, where
from ..core.validate import function
from .loop import TryStep
from .problem import Problem
from .step_attempt import State, StepAttempt
from .stop_tracker import StopTracker

Callback = Callable[[Any, Any, Any], Any]
"""(t0, y0, dt): the start of the step, the state there, and its length (positive, also where time runs backwards)."""


@dataclass(frozen=True)
class Callbacks:
    """Functions (t0, y0, dt) to call around each attempted step; what they return is not looked at.

    t0, dt: tensors of shape (), or (B,) with per_sample. y0: the state in the caller's structure. step: before every
    attempt. accept, reject: after one that was accepted, or was not; with per_sample, by any sample.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None

    def __post_init__(self) -> None:
        for name in ("step", "accept", "reject"):
            if (given := getattr(self, name)) is not None:
                function(name, given, f"{name}(t0, y0, dt)")

    def wrap(self, try_step: TryStep) -> TryStep:
        """`try_step`, with the callbacks called."""

        def watched(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
            left = (tracker.target(s.stop) - s.t) * tracker.sign
            ahead: ScalarLike = where(s.h * p.stops.rule.stretch >= left, left, s.h)
            about = (s.time.detach(), p.f.pack(s.y), torch.as_tensor(ahead, dtype=s.time.dtype, device=s.time.device))
            if self.step is not None:
                self.step(*about)
            attempt, decision = try_step(p, tracker, s)
            if self.accept is not None and any_true(attempt.accept):
                self.accept(*about)
            if self.reject is not None and any_true(logical_not(attempt.accept)):
                self.reject(*about)
            return attempt, decision

        return watched
