"""Progress: the fraction of time solved, reported to the caller after each attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from ..core.scalars import any_true, where
from .observer import Observer
from .step_attempt import StepAttempt


@final
@dataclass
class ProgressReporter(Observer):
    """Calls the caller back with the fraction of time solved (that of the slowest sample) and the counts so far."""

    callback: Callable[[float, dict[str, int]], Any]
    accepted: int = 0
    attempts: int = 0

    def observe(self, attempt: StepAttempt) -> None:
        ts = attempt.problem.ts.detach()
        t = torch.as_tensor(where(attempt.accept, attempt.time1, attempt.time0)).detach()
        self.attempts += 1
        self.accepted += any_true(attempt.accept)
        span = ts[..., -1] - ts[..., 0]
        fraction = torch.where(span == 0, 1.0, (t - ts[..., 0]) / span).min()
        stats = {"nfe": attempt.problem.f.calls, "accepted": self.accepted, "rejected": self.attempts - self.accepted}
        self.callback(float(fraction), stats)
