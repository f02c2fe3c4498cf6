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
from .gradient import add_counts

Start = tuple[Leaves, Leaves]  # of a step: y and the carry


class BatchSegment:
    """A problem of some samples, with a count of its own. charged: evaluations that samples were charged for."""

    def __init__(self, p: Problem) -> None:
        self.args = p.f.differentiable_args
        self.q, self.charged = replace(p, f=p.f.with_args(self.args)), 0

    def charge(self, total: Tensor | int, lanes: MaskLike) -> Tensor | int:
        """`total` and what these lanes are charged: the evaluations since the last charge."""
        calls, self.charged = self.q.f.calls - self.charged, self.q.f.calls
        return total + self.q.samples.scatter(calls * lanes) if calls else total

    def replay(self, e: TapeStep, start: Start) -> tuple[StepAttempt, Start]:
        """A step from its start, and what the step after it starts from."""
        time0, time1 = e.end_times(self.q)
        attempt = e.replay(self.q, time0, time1, *start)
        after = attempt.step.y, next_carry(self.q, time1, attempt.step, e.jumps)
        y, carry = (select(e.accept, new, old) for new, old in zip(after, start, strict=True))
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
        self.cut: list[int] = []
        self.apart = RowScatter()

    def enter(self, f: VectorField, samples: BatchIndex) -> None:
        if samples.index is self.apart.samples.index:
            return
        self.cut = self.cut or [
            i for i, cut in enumerate(f.sliced_args) if cut
        ]  # of the first part: the whole has none
        moved = self.apart.exchange([self.total[i] for i in self.cut], samples)
        for i, x in zip(self.cut, moved, strict=True):
            self.total[i] = x

    def add(self, parts: Sequence[Tensor | None]) -> None:
        self.total = add_counts(self.total, parts)
