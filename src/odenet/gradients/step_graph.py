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
    time_bars: tuple[Tensor | None, Tensor | None] = (None, None)


def leaf_times(q: Problem, step: TapeStep, times_needed: bool) -> tuple[Tensor, Tensor]:
    """Both ends of a step, as leaves where their gradients are wanted."""
    time0, time1 = step.ends(q)
    if times_needed:
        time0.requires_grad_()
        time1.requires_grad_()
    return time0, time1


def replay_from_leaves(q: Problem, step: TapeStep, times_needed: bool, y: Leaves, carry: Leaves) -> StepGraph:
    """The step taken again, from leaves."""
    time0, time1 = leaf_times(q, step, times_needed)
    attempt = step.replay(q, time0, time1, new_leaves(y), new_leaves(carry))
    return StepGraph(attempt, next_carry(q, time1, attempt.step, step.jumps))


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


def split_by_acceptance(accept: MaskLike, cotangents: Cotangents) -> tuple[Cotangents, Cotangents]:
    """Cotangents of the lanes that took the step, and those that pass the others by."""
    if accept is True:
        return cotangents, []
    present = tuple(b for b in cotangents if b is not None)
    zeros = tuple(torch.zeros_like(b) for b in present)
    through, past = iter(select(accept, present, zeros)), iter(select(accept, zeros, present))
    return [None if b is None else next(through) for b in cotangents], [
        None if b is None else next(past) for b in cotangents
    ]


class NonFiniteGraphError(Exception):
    """A gradient through a recorded step is not finite: zeros met infinity in a lane that had rejected it, maybe."""
