"""Segments of a backward pass: consecutive steps with the same samples in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..core.leaves import Leaves, select
from ..core.scalars import MaskLike
from ..core.vector_field import VectorField
from ..engine.advance import next_carry
from ..engine.batch_index import BatchIndex, RowScatter
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import TapeStep
from ..methods.method import Cotangents
from .gradient import add_cotangents

Start = tuple[Leaves, Leaves]  # initial state of a step: y and the carry


class BatchSegment:
    """The problem of the samples in the batch, with its own count of evaluations."""

    def __init__(self, p: Problem) -> None:
        self.args = p.f.differentiable_args
        self.problem, self.counted_calls = replace(p, f=p.f.with_args(self.args)), 0

    def add_evaluations(self, total: Tensor | int, samples: MaskLike) -> Tensor | int:
        """`total` plus the evaluations since the last call, for the samples of the mask."""
        calls, self.counted_calls = self.problem.f.calls - self.counted_calls, self.problem.f.calls
        if not calls:
            return total
        counts = calls * samples
        return total + (self.problem.samples.scatter(counts) if isinstance(counts, Tensor) else counts)

    def replay(self, step: TapeStep, start: Start) -> tuple[StepAttempt, Start]:
        """Replay a step from its initial state; returns the attempt and the initial state of the next step."""
        time0, time1 = step.end_times(self.problem)
        attempt = step.replay(self.problem, time0, time1, *start)
        following = attempt.step.y, next_carry(self.problem, time1, attempt.step, step.jumps)
        y, carry = (select(step.accept, new, old) for new, old in zip(following, start, strict=True))
        return attempt, (y, carry)


def take_start(start: Start, outer: BatchIndex, inner: BatchIndex) -> Start:
    """The rows of `inner` from the initial state of the samples `outer`."""
    y, carry = start
    return outer.take_from(y, inner), outer.take_from(carry, inner)


class ParameterGrads:
    """Sums over steps of the cotangents of args and captured tensors.

    Args with a row per sample are sliced to the samples in the batch; when these change, their cotangents are scattered
    back. Each row continues its own sum, so the order of additions, and with it the last bit, is independent of the
    other samples.
    """

    def __init__(self, count: int) -> None:
        self.total: Cotangents = [None] * count
        self.sliced: list[int] = []
        self.row_scatter = RowScatter()

    def switch_to(self, f: VectorField, samples: BatchIndex) -> None:
        if samples.index is self.row_scatter.samples.index:
            return
        self.sliced = self.sliced or [
            i for i, sliced in enumerate(f.sliced_args) if sliced
        ]  # the full batch has no sliced args, a later segment has
        exchanged = self.row_scatter.exchange([self.total[i] for i in self.sliced], samples)
        for i, x in zip(self.sliced, exchanged, strict=True):
            self.total[i] = x

    def add(self, cotangents: Sequence[Tensor | None]) -> None:
        self.total = add_cotangents(self.total, cotangents)
