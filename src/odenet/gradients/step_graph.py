"""One step of a solve with its own autograd graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, as_graph_inputs, select
from ..core.scalars import MaskLike
from ..engine.advance import next_carry
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import TapeStep
from ..methods.method import Cotangents, Field, Stage


@dataclass
class StepGraph:
    """The autograd graph of one step.

    attempt: the step, attached to its leaves y, carry, time0 and time1. carry1: the carry after the step.
    time_bars: cotangents of time0 and time1 that do not flow through `attempt`.
    """

    attempt: StepAttempt
    carry1: Leaves
    time_bars: tuple[Tensor | None, Tensor | None] = (None, None)


def leaf_times(q: Problem, step: TapeStep, time_grads_needed: bool) -> tuple[Tensor, Tensor]:
    """Start and end time of a step, as leaves if time gradients are needed."""
    time0, time1 = step.end_times(q)
    if time_grads_needed:
        time0.requires_grad_()
        time1.requires_grad_()
    return time0, time1


def replay_from_leaves(q: Problem, step: TapeStep, time_grads_needed: bool, y: Leaves, carry: Leaves) -> StepGraph:
    """Replay the step from leaf copies of y and carry."""
    time0, time1 = leaf_times(q, step, time_grads_needed)
    attempt = step.replay(q, time0, time1, as_graph_inputs(y), as_graph_inputs(carry))
    return StepGraph(attempt, next_carry(q, time1, attempt.step, step.jumps))


@final
class EvaluationGraphs:
    """A field that records the graph of each evaluation separately, from leaf states, and returns detached slopes.

    The method itself computes the VJP of the sums that join the evaluations to a step.
    """

    def __init__(self, f: Field) -> None:
        self.f = f
        self.stages: list[Stage] = []

    def __call__(self, t: Tensor, y: Leaves) -> Leaves:
        with torch.enable_grad():
            y = as_graph_inputs(y)
            slope = self.f(t, y)
        self.stages.append((y, slope))
        return tuple(k.detach() for k in slope)


def split_by_acceptance(accept: MaskLike, cotangents: Cotangents) -> tuple[Cotangents, Cotangents]:
    """Split cotangents by sample: those that flow through the step, and those that bypass it (rejected samples)."""
    if accept is True:
        return cotangents, []
    present = tuple(b for b in cotangents if b is not None)
    zeros = tuple(torch.zeros_like(b) for b in present)
    accepted, rejected = iter(select(accept, present, zeros)), iter(select(accept, zeros, present))
    through = [None if b is None else next(accepted) for b in cotangents]
    return through, [None if b is None else next(rejected) for b in cotangents]


class NonFiniteGraphError(Exception):
    """A gradient through a recorded step is not finite: perhaps zero times infinity in a sample that rejected it."""
