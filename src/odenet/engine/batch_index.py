"""Some of the samples of a batch: which they are, and what tensors with a row a sample have of them.

Samples that ended leave the batch of a forward solve (engine/compaction.py), and a backward pass takes each step with
those that took it (gradients/batch_segments.py). Failed samples: gradients/failed_samples.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves, select

Row = Any  # the number of a row, or a tensor of them


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """The samples at hand, in ascending order. index: None: all of the batch, or a joint solve, which has none."""

    index: Tensor | None = None
    batch_size: int = 0  # of the batch, where `index` is some of it

    def sample_numbers(self, rows: Row) -> Row:
        """The samples that these rows at hand are of."""
        return rows if self.index is None else self.index[rows]

    def subset(self, rows: Tensor, count: int) -> BatchIndex:
        """Those of these rows at hand. count: of all rows at hand."""
        return BatchIndex(self.sample_numbers(rows), count if self.index is None else self.batch_size)

    def take(self, x: Tensor) -> Tensor:
        """Their rows of x, which has one for every sample."""
        return x if self.index is None else x.index_select(0, self.index)

    def scatter(self, x: Tensor) -> Tensor:
        """x, which has a row for each of them, with zeros for the others."""
        return x if self.index is None else x.new_zeros((self.batch_size, *x.shape[1:])).index_copy(0, self.index, x)

    def scatter_into(self, full: Tensor, x: Tensor) -> Tensor:
        """`whole` with x in their rows."""
        return x if self.index is None else full.index_copy(0, self.index, x)

    def take_from(self, y: Leaves, inner: BatchIndex) -> Leaves:
        """The rows of `inner`, a part of these samples, of a state of these."""
        if inner.index is None or inner.index is self.index:
            return y
        rows = inner.index if self.index is None else torch.searchsorted(self.index, inner.index)
        return tuple(x.index_select(0, rows) for x in y)


ALL = BatchIndex()


class RowScatter:
    """Tensors with a row a sample, of which some rows are elsewhere, being worked on."""

    def __init__(self) -> None:
        self.all: list[Tensor | None] = []
        self.samples = ALL
        self.own: set[int] = set()  # of which of them there is a copy here

    def exchange(self, values: list[Tensor | None], samples: BatchIndex) -> list[Tensor | None]:
        """Takes back what became of the rows that are elsewhere, and hands out those of `samples`.

        Values that are new (there were none before) are zero for the samples that were here.
        """
        if self.samples.index is None:
            self.own.clear()
        self.all = [self._put(i, *pair) for i, pair in enumerate(zip_longest(self.all, values))]
        self.samples = samples
        return [None if x is None else samples.take(x) for x in self.all]

    def exchange_leaves(self, values: Leaves, samples: BatchIndex) -> Leaves:
        """The same, of values that are there; as they are for the samples at hand."""
        if samples.index is self.samples.index:
            return values
        return tuple([x for x in self.exchange(list(values), samples) if x is not None])

    def _put(self, i: int, whole: Tensor | None, x: Tensor | None) -> Tensor | None:
        index = self.samples.index
        if index is None:
            return x
        if x is None:
            return None if whole is None else whole.index_fill(0, index, 0.0)
        if i in self.own and whole is not None:
            return whole.index_copy_(0, index, x)
        self.own.add(i)
        return self.samples.scatter(x) if whole is None else self.samples.scatter_into(whole, x)


def with_placeholder(samples: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
    """Time and state in which one of the samples of these lanes stands, as a constant, in the place of all others.

    What those have may have no finite derivative, and zero times infinity would be NaN for what all samples share.
    """
    one = int(samples.to(torch.uint8).argmax())
    fill = tuple(x[one].detach().expand_as(x) for x in y)
    return torch.where(samples, time, time[one].detach()), select(samples, y, fill)


def should_compact(rows: int, needed: int, threshold: float) -> bool:
    """Whether it is time to go on with the wanted ones of the rows at hand alone."""
    return rows - needed > threshold * rows
