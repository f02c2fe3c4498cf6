"""Callbacks: the caller's functions around each attempted step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..control.controller import Decision
from ..core.scalars import Number, negate, some, where
from ..core.validate import function
from .advance import Clock, Move, State
from .loop import Trial
from .problem import Problem

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

    def around(self, attempt: Trial) -> Trial:
        """`attempt`, with the callbacks called."""

        def watched(p: Problem, clock: Clock, s: State) -> tuple[Move, Decision]:
            left = (clock.target(s.stop) - s.t) * clock.sign
            ahead: Number = where(s.h * p.stops.rule.stretch >= left, left, s.h)
            about = (s.time.detach(), p.f.pack(s.y), torch.as_tensor(ahead, dtype=s.time.dtype, device=s.time.device))
            if self.step is not None:
                self.step(*about)
            move, decision = attempt(p, clock, s)
            if self.accept is not None and some(move.accept):
                self.accept(*about)
            if self.reject is not None and some(negate(move.accept)):
                self.reject(*about)
            return move, decision

        return watched
