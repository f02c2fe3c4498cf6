"""Callbacks: the caller's functions around each attempted step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..control.controller import Decision
from ..core.scalars import ScalarLike, any_true, logical_not, where
from ..core.serialization import settings_repr
from ..core.validate import function
from .loop import TryStep
from .problem import Problem
from .step_attempt import State, StepAttempt
from .stop_tracker import StopTracker

Callback = Callable[[Any, Any, Any], Any]
"""(t0, y0, dt): the start of the step, the state there, and its length (positive, also where time runs backwards)."""


@dataclass(frozen=True, repr=False)
class Callbacks:
    """Functions (t0, y0, dt) to call around each attempted step; their results are ignored.

    t0, dt: tensors of shape (), or (B,) with per_sample. y0: the state in the caller's structure. step: called before
    every attempt. accept, reject: called after an accepted, a rejected attempt; with per_sample, where any sample
    accepted or rejected it.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None

    def __post_init__(self) -> None:
        for name in ("step", "accept", "reject"):
            if (callback := getattr(self, name)) is not None:
                function(name, callback, f"{name}(t0, y0, dt)")

    def __repr__(self) -> str:
        return settings_repr(self)

    def wrap(self, try_step: TryStep) -> TryStep:
        """`try_step` with the callbacks around it."""

        def with_callbacks(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
            remaining = (tracker.target(s.stop) - s.t) * tracker.sign
            length: ScalarLike = where(s.h * p.stops.rule.stretch >= remaining, remaining, s.h)
            dt = torch.as_tensor(length, dtype=s.time.dtype, device=s.time.device)
            arguments = (s.time.detach(), p.f.pack(s.y), dt)
            if self.step is not None:
                self.step(*arguments)
            attempt, decision = try_step(p, tracker, s)
            if self.accept is not None and any_true(attempt.accept):
                self.accept(*arguments)
            if self.reject is not None and any_true(logical_not(attempt.accept)):
                self.reject(*arguments)
            return attempt, decision

        return with_callbacks
