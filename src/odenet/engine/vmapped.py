"""Solves inside `torch.func.vmap`: every lane in tensors, and no value of one lane decides for another."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, differentiable, select
from ..core.torch_func import any_true
from .observer import Observer
from .output_rule import blank_outputs, outputs_due, fill_outputs, output_times
from .problem import Problem
from .step_attempt import StepAttempt


def replace_failed_starts(p: Problem, stuck: Tensor) -> Problem:
    """The problem with ones in the place of where lanes that fail at ts[0] start, and of what is not finite in args.

    They take no step. Autograd would meet what is not finite there with zeros, as in `without_poison`.
    """
    lane = stuck.any() if p.batched else stuck
    f = p.f.map_args(lambda x: torch.where(lane & ~torch.isfinite(x), 1.0, x))
    return replace(p, f=f, y0=select(stuck, tuple(torch.ones_like(y) for y in p.y0), p.y0))


@final
class VmapRecorder(Observer):
    """The solution at every output time, each asked for by the lanes whose step reached it.

    evaluations: what the outputs at ts[0] took.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.evaluations, slope = p, 0, None
        times = output_times(p).detach()
        if differentiable(p.ts) and any_true((times[1] - times[0]) * p.direction <= 0):
            slope, self.evaluations = p.f(p.ts[..., 0], p.y0), 1
        self.values = blank_outputs(p, slope)

    def observe(self, attempt: StepAttempt) -> None:
        given = outputs_due(self.p, attempt)
        if any_true(given):
            self.values = fill_outputs(self.p, attempt, given, self.values)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...)."""
        return tuple(y.movedim(0, int(self.p.batched)) for y in self.values)
