"""The parts of a backward pass: stretches of it in which the same samples are in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.field import VectorField
from ..core.lanes import Flag
from ..core.leaves import Leaves
from ..engine.compact import within
from ..engine.problem import Lanes, Problem
from ..methods.base import Bars
from .base import add


@dataclass
class Part:
    """A problem of some samples, with a count of its own. charged: evaluations that samples were charged for."""

    q: Problem
    args: Leaves
    charged: int = 0

    @staticmethod
    def of(p: Problem) -> Part:
        args = p.f.differentiable_args
        return Part(replace(p, f=p.f.with_args(args)), args)

    def charge(self, total: Tensor | int, lanes: Flag) -> Tensor | int:
        """`total` and what these lanes are charged: the evaluations since the last charge."""
        calls, self.charged = self.q.f.calls - self.charged, self.q.f.calls
        if not calls:
            return total
        cost = calls * lanes
        if self.q.lanes is None:
            return total + cost
        assert isinstance(total, Tensor)
        index = self.q.lanes.index
        return total.index_add(0, index, (cost + torch.zeros_like(index)).to(total.dtype))


class Apart:
    """Tensors with a row a sample, of which some rows are elsewhere, being worked on."""

    def __init__(self) -> None:
        self.all: Bars = []
        self.lanes: Lanes | None = None
        self.own: set[int] = set()  # of which of them there is a copy here

    def move(self, values: Bars, lanes: Lanes | None) -> Bars:
        """Takes back what became of the rows that are elsewhere, and hands out those of `lanes`.

        Values that are new (there were none before) are zero for the samples that were here.
        """
        if self.lanes is None:
            self.all, self.own = values, set()
        else:
            kept = self.all or [None] * len(values)
            self.all = [self._put(i, whole, x) for i, (whole, x) in enumerate(zip(kept, values, strict=True))]
        self.lanes = lanes
        return [None if x is None else x.index_select(0, lanes.index) for x in self.all] if lanes else self.all

    def _put(self, i: int, whole: Tensor | None, x: Tensor | None) -> Tensor | None:
        assert self.lanes is not None
        if x is None:
            return whole
        if i in self.own and whole is not None:
            return whole.index_copy_(0, self.lanes.index, x)
        self.own.add(i)
        return self.lanes.spread(x) if whole is None else whole.index_copy(0, self.lanes.index, x)


def fewer(y: Leaves, outer: Lanes | None, inner: Lanes | None) -> Leaves:
    """The rows of `inner` of a state of the samples `outer`."""
    rows = within(outer, inner)
    return y if rows is None else tuple(x.index_select(0, rows) for x in y)


class Shared:
    """The sum of cotangents of args and captured tensors over the steps.

    An arg that is cut to the samples at hand has its cotangents put back when other samples come. Each row goes on from
    its own sum, so that the order of adding, and with it the last bit, does not depend on who else is in the batch.
    """

    def __init__(self, fixed: Sequence[Tensor]) -> None:
        self.fixed = fixed
        self.total: Bars = [None] * len(fixed)
        self.here: Bars = [None] * len(fixed)
        self.cut: tuple[bool, ...] = ()
        self.lanes: Lanes | None = None

    def enter(self, f: VectorField, lanes: Lanes | None) -> None:
        if lanes is self.lanes:
            return
        for i, cut in enumerate(self.cut):
            bar = self.here[i]
            if cut and bar is not None:
                assert self.lanes is not None
                whole, self.here[i] = self.total[i], None
                whole = torch.zeros_like(self.fixed[i]) if whole is None else whole
                self.total[i] = whole.index_copy(0, self.lanes.index, bar)
        self.lanes, self.cut = lanes, () if lanes is None else f.cut_args
        for i, cut in enumerate(self.cut):
            whole = self.total[i]
            if cut and whole is not None:
                assert lanes is not None
                self.here[i] = whole.index_select(0, lanes.index)

    def add(self, parts: Sequence[Tensor | None]) -> None:
        for i, part in enumerate(parts):
            to = self.here if i < len(self.cut) and self.cut[i] else self.total
            to[i] = add(to[i], part)
