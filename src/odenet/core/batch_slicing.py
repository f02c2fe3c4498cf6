"""Decides whether f works on some samples of a batch, and which of its args are sliced with the samples.

f(t, y, *args) is written for the full batch. A tensor in args may have one row for each sample, and is then sliced to
the rows of the remaining samples; a captured tensor cannot be sliced. Shapes do not distinguish one row per sample from
a shared table with as many rows, so f is tried: its values for a few rows of the first evaluation must be those that it
gave for the same rows in the full batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from .leaves import Leaves

SlicedArgs = tuple[bool, ...]
"""For each leaf of args: True if it is sliced to the rows of the remaining samples."""

_TRIED_ROWS = 2  # rows of the first evaluation that are evaluated again
_MAX_SUBSET_ARGS = 6  # with more candidates than this, only none and all of them are tried


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x: attached to x in grad mode; otherwise a new leaf that requires a gradient if x does."""
    taken = x.index_select(0, rows)
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or not x.requires_grad:
        return taken
    return taken.requires_grad_()


def infer_sliced_args(
    args: list[object], count: int, evaluate: Callable[[Tensor, SlicedArgs], Leaves], full_output: Leaves
) -> SlicedArgs | None:
    """The smallest set of args to slice with which f works on a subset of the samples; None if there is none.

    count: B. evaluate: (rows, sliced args) -> f at these rows of the first evaluation. full_output: f of the full
    batch there. An arg is not sliced if f also works with it unsliced: every later use by f is then right, too.
    """
    candidates = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == count]
    # fewer rows than B: with B rows an unsliced arg always fits, and its rows may have equal values
    # last rows first: a shared table that is wrongly sliced then starts with another row than the unsliced one
    rows = torch.arange(count - 1, -1, -1, device=full_output[0].device)[:: max(1, (count - 1) // (_TRIED_ROWS - 1))]
    rows = rows[: min(_TRIED_ROWS, count - 1)]
    expected = tuple(x.index_select(0, rows) for x in full_output)

    def works(sliced: frozenset[int]) -> bool:
        mask = tuple(i in sliced for i in range(len(args)))
        try:
            output = evaluate(rows, mask)
        except Exception:  # f may raise anything on shapes that it was not written for
            return False
        return all(_nearly_equal(a, b) for a, b in zip(output, expected, strict=True))

    for sliced in _subsets(candidates):
        if works(sliced):
            for i in sorted(sliced) if len(sliced) == len(candidates) > 1 else ():
                sliced = sliced - {i} if works(sliced - {i}) else sliced
            return tuple(i in sliced for i in range(len(args)))
    return None


def _subsets(candidates: list[int]) -> Iterator[frozenset[int]]:
    """The empty set, the full set, and then the remaining subsets by size."""
    yield frozenset()
    if candidates:
        yield frozenset(candidates)
    if len(candidates) <= _MAX_SUBSET_ARGS:
        for size in range(1, len(candidates)):
            yield from map(frozenset, combinations(candidates, size))


def _nearly_equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a matrix product with fewer rows."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(b.dtype).eps
    largest = float(torch.where(torch.isfinite(b), b.abs(), 0.0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=256 * eps, atol=256 * eps * largest, equal_nan=True)
