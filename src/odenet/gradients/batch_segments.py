"""The parts of a backward pass: stretches of it in which the same samples are in the batch."""

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

Start = tuple[Leaves, Leaves]  # of a step: y and the carry


class BatchSegment:
    """A problem of some samples, with a count of its own. charged: evaluations that samples were charged for."""

    def __init__(self, p: Problem) -> None:
        self.args = p.f.differentiable_args
        self.problem, self.counted_calls = replace(p, f=p.f.with_args(self.args)), 0

    def add_evaluations(self, total: Tensor | int, samples: MaskLike) -> Tensor | int:
        """`total` and what these lanes are charged: the evaluations since the last charge."""
        calls, self.counted_calls = self.problem.f.calls - self.counted_calls, self.problem.f.calls
        return total + self.problem.samples.scatter(calls * samples) if calls else total

    def replay(self, step: TapeStep, start: Start) -> tuple[StepAttempt, Start]:
        """A step from its start, and what the step after it starts from."""
        time0, time1 = step.ends(self.problem)
        attempt = step.replay(self.problem, time0, time1, *start)
        following = attempt.step.y, next_carry(self.problem, time1, attempt.step, step.jumps)
        y, carry = (select(step.accept, new, old) for new, old in zip(following, start, strict=True))
        return attempt, (y, carry)


def take_start(start: Start, outer: BatchIndex, inner: BatchIndex) -> Start:
    """The start of a step of some samples, from that of more."""
    y, carry = start
    return outer.take_from(y, inner), outer.take_from(carry, inner)


class ParameterGrads:
    """The sum of cotangents of args and captured tensors over the steps.

    An arg that is cut to the samples at hand has its cotangents put back when other samples come. Each row goes on from
    its own sum, so that the order of adding, and with it the last bit, does not depend on who else is in the batch.
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
        ]  # of the first part: the whole has none
        exchanged = self.row_scatter.exchange([self.total[i] for i in self.sliced], samples)
        for i, x in zip(self.sliced, exchanged, strict=True):
            self.total[i] = x

    def add(self, cotangents: Sequence[Tensor | None]) -> None:
        self.total = add_cotangents(self.total, cotangents)
