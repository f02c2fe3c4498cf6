"""Solves inside `torch.func.vmap`: all numbers are tensors, and no value of one sample decides for another."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, differentiable, select
from ..core.torch_func import any_true
from .observer import Observer
from .output_rule import blank_outputs, fill_outputs, output_times, outputs_due
from .problem import Problem
from .step_attempt import StepAttempt


def replace_failed_starts(p: Problem, failed: Tensor) -> Problem:
    """The problem with ones as initial state of samples that fail at ts[0], and in place of their non-finite args.

    They take no step. Autograd would meet a non-finite value with a cotangent of zero, as in `mask_nonfinite`.
    """
    any_failed = failed.any() if p.batched else failed
    f = p.f.map_args(lambda x: torch.where(any_failed & ~torch.isfinite(x), 1.0, x))
    return replace(p, f=f, y0=select(failed, tuple(torch.ones_like(y) for y in p.y0), p.y0))


@final
class VmapRecorder(Observer):
    """Records the solution at every output time, for the samples whose step reached it.

    evaluations: of f, for the outputs at ts[0].
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.evaluations, slope = p, 0, None
        times = output_times(p).detach()
        if differentiable(p.ts) and any_true((times[1] - times[0]) * p.direction <= 0):
            slope, self.evaluations = p.f(p.ts[..., 0], p.y0), 1
        self.values = blank_outputs(p, slope)

    def observe(self, attempt: StepAttempt) -> None:
        due = outputs_due(self.p, attempt)
        if any_true(due):
            self.values = fill_outputs(self.p, attempt, due, self.values)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...)."""
        return tuple(y.movedim(0, int(self.p.batched)) for y in self.values)
