"""One step of a solve, differentiable by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, new_leaves, select
from ..core.scalars import MaskLike
from ..engine.advance import next_carry
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import TapeStep
from ..methods.method import Cotangents, Field, Stage


@dataclass
class StepGraph:
    """One step, differentiable: `attempt` and the carry after it, attached to leaves (the move's y, carry, time0, time1).

    ends_bar: cotangents of time0 and time1 that do not come through `attempt`.
    """

    attempt: StepAttempt
    carry1: Leaves
    ends_bar: tuple[Tensor | None, Tensor | None] = (None, None)


def leaf_ends(q: Problem, e: TapeStep, times_needed: bool) -> tuple[Tensor, Tensor]:
    """Both ends of a step, as leaves where their gradients are wanted."""
    time0, time1 = e.end_times(q)
    if times_needed:
        time0.requires_grad_()
        time1.requires_grad_()
    return time0, time1


def attached_step(q: Problem, e: TapeStep, times_needed: bool, y: Leaves, carry: Leaves) -> StepGraph:
    """The step taken again, from leaves."""
    time0, time1 = leaf_ends(q, e, times_needed)
    attempt = e.replay(q, time0, time1, new_leaves(y), new_leaves(carry))
    return StepGraph(attempt, next_carry(q, time1, attempt.step, e.jumps))


@final
class EvaluationGraphs:
    """A field that remembers its evaluations, each recorded by autograd from leaves; what it returns is detached.

    So each has a graph of its own; what joins them to a step is pulled through by the method.
    """

    def __init__(self, f: Field) -> None:
        self.f = f
        self.stages: list[Stage] = []

    def __call__(self, t: Tensor, y: Leaves) -> Leaves:
        with torch.enable_grad():
            y = new_leaves(y)
            slope = self.f(t, y)
        self.stages.append((y, slope))
        return tuple(k.detach() for k in slope)


def divided(accept: MaskLike, bars: Cotangents) -> tuple[Cotangents, Cotangents]:
    """Cotangents of the lanes that took the step, and those that pass the others by."""
    if accept is True:
        return bars, []
    some = tuple(b for b in bars if b is not None)
    none = tuple(torch.zeros_like(b) for b in some)
    through, passed = iter(select(accept, some, none)), iter(select(accept, none, some))
    return [None if b is None else next(through) for b in bars], [None if b is None else next(passed) for b in bars]


class NonFiniteGraphError(Exception):
    """A gradient through a recorded step is not finite: zeros met infinity in a lane that had rejected it, maybe."""
