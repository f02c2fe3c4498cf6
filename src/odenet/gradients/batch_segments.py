"""The parts of a backward pass: stretches of it in which the same samples are in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..core.leaves import Leaves, select
from ..core.scalars import Flag
from ..core.vector_field import VectorField
from ..engine.advance import Move, after_step
from ..engine.batch_index import Apart, Samples
from ..engine.problem import Problem
from ..engine.tape import Entry
from ..methods.method import Bars
from .gradient import added

Start = tuple[Leaves, Leaves]  # of a step: y and the carry


class Part:
    """A problem of some samples, with a count of its own. charged: evaluations that samples were charged for."""

    def __init__(self, p: Problem) -> None:
        self.args = p.f.differentiable_args
        self.q, self.charged = replace(p, f=p.f.with_args(self.args)), 0

    def charge(self, total: Tensor | int, lanes: Flag) -> Tensor | int:
        """`total` and what these lanes are charged: the evaluations since the last charge."""
        calls, self.charged = self.q.f.calls - self.charged, self.q.f.calls
        return total + self.q.samples.spread(calls * lanes) if calls else total

    def again(self, e: Entry, start: Start) -> tuple[Move, Start]:
        """A step from its start, and what the step after it starts from."""
        time0, time1 = e.ends(self.q)
        move = e.again(self.q, time0, time1, *start)
        after = move.step.y, after_step(self.q, time1, move.step, e.jumps)
        y, carry = (select(e.accept, new, old) for new, old in zip(after, start, strict=True))
        return move, (y, carry)


def fewer(start: Start, outer: Samples, inner: Samples) -> Start:
    """The start of a step of some samples, from that of more."""
    y, carry = start
    return outer.fewer(y, inner), outer.fewer(carry, inner)


class Shared:
    """The sum of cotangents of args and captured tensors over the steps.

    An arg that is cut to the samples at hand has its cotangents put back when other samples come. Each row goes on from
    its own sum, so that the order of adding, and with it the last bit, does not depend on who else is in the batch.
    """

    def __init__(self, count: int) -> None:
        self.total: Bars = [None] * count
        self.cut: list[int] = []
        self.apart = Apart()

    def enter(self, f: VectorField, samples: Samples) -> None:
        if samples.index is self.apart.samples.index:
            return
        self.cut = self.cut or [i for i, cut in enumerate(f.cut_args) if cut]  # of the first part: the whole has none
        moved = self.apart.move([self.total[i] for i in self.cut], samples)
        for i, x in zip(self.cut, moved, strict=True):
            self.total[i] = x

    def add(self, parts: Sequence[Tensor | None]) -> None:
        self.total = added(self.total, parts)
