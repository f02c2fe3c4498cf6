"""Subsets of a batch: which samples are in it, and their rows of tensors that have one row for each sample.

Samples that have ended leave the batch of a forward solve (engine/compaction.py), and a backward pass replays each step
with the samples that accepted it (gradients/batch_segments.py). For failed samples see gradients/failed_samples.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from ..core.leaves import Leaves, select

Rows = TypeVar("Rows", int, Tensor)


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """The samples in the current batch.

    index: their numbers, ascending; None: all samples, also in a joint solve, which has no batch. batch_size: number of
    all samples, where `index` is not None.
    """

    index: Tensor | None = None
    batch_size: int = 0

    def sample_numbers(self, rows: Rows) -> Rows:
        """The numbers of the samples in these rows of the current batch."""
        return rows if self.index is None else self.index[rows]  # pyright: ignore[reportReturnType]  # 0-d for an int

    def subset(self, rows: Tensor, count: int) -> BatchIndex:
        """The samples in these rows of the current batch, which has `count` rows."""
        return BatchIndex(self.sample_numbers(rows), count if self.index is None else self.batch_size)

    def take(self, x: Tensor) -> Tensor:
        """The rows of these samples of x, which has a row for every sample."""
        return x if self.index is None else x.index_select(0, self.index)

    def scatter(self, x: Tensor) -> Tensor:
        """x, which has a row for each of these samples, with rows of zeros for the others."""
        return x if self.index is None else x.new_zeros((self.batch_size, *x.shape[1:])).index_copy(0, self.index, x)

    def scatter_into(self, full: Tensor, x: Tensor) -> Tensor:
        """A copy of `full` with x in the rows of these samples."""
        return x if self.index is None else full.index_copy(0, self.index, x)

    def take_from(self, y: Leaves, inner: BatchIndex) -> Leaves:
        """The rows of `inner`, a subset of these samples, of a state of these samples."""
        if inner.index is None or inner.index is self.index:
            return y
        rows = inner.index if self.index is None else torch.searchsorted(self.index, inner.index)
        return tuple(x.index_select(0, rows) for x in y)


ALL = BatchIndex()


class RowScatter:
    """Full-batch tensors of which a subset of rows is checked out.

    values: the tensors. samples: the rows that are checked out. copied: numbers of the tensors that are copies already,
    and may be changed in place.
    """

    def __init__(self) -> None:
        self.values: list[Tensor | None] = []
        self.samples = ALL
        self.copied: set[int] = set()

    def exchange(self, values: list[Tensor | None], samples: BatchIndex) -> list[Tensor | None]:
        """Check in `values`, the rows that were checked out, and check out the rows of `samples`.

        A tensor that was None before is zero in the rows that were not checked out.
        """
        if self.samples.index is None:
            self.copied.clear()
        self.values = [self._check_in(i, *pair) for i, pair in enumerate(zip_longest(self.values, values))]
        self.samples = samples
        return [None if x is None else samples.take(x) for x in self.values]

    def exchange_leaves(self, values: Leaves, samples: BatchIndex) -> Leaves:
        """`exchange` for tensors none of which is None; nothing is done where the samples stay the same."""
        if samples.index is self.samples.index:
            return values
        return tuple([x for x in self.exchange(list(values), samples) if x is not None])

    def _check_in(self, i: int, full: Tensor | None, x: Tensor | None) -> Tensor | None:
        index = self.samples.index
        if index is None:
            return x
        if x is None:
            return None if full is None else full.index_fill(0, index, 0.0)
        if i in self.copied and full is not None:
            return full.index_copy_(0, index, x)
        self.copied.add(i)
        return self.samples.scatter(x) if full is None else self.samples.scatter_into(full, x)


def with_placeholder(samples: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
    """Time and state with a placeholder for all but these samples: a constant copy of the first of them.

    The replaced values may have no finite derivative, and zero times infinity would be NaN for what all samples share.
    """
    first = int(samples.to(torch.uint8).argmax())
    fill = tuple(x[first].detach().expand_as(x) for x in y)
    return torch.where(samples, time, time[first].detach()), select(samples, y, fill)


def should_compact(rows: int, needed: int, threshold: float) -> bool:
    """True when so many rows are not needed, more than the fraction `threshold`, that gathering the others pays."""
    return rows - needed > threshold * rows
