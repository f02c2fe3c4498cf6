"""Whether a field also works on some samples of a batch, and which of its args then go with them.

f(t, y, *args) is written for the whole batch, and what it uses may have a row for each sample: a tensor in args, which
is cut to the rows of the samples at hand, or one that it closes over, which cannot be. Shapes alone do not tell a row a
sample from a shared table that happens to have as many rows, so f is asked: a few rows of its first evaluation, once
more, have to come out as they did beside all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from .leaves import Leaves

SlicedArgs = tuple[bool, ...]
"""For each leaf of args, whether it is cut to the rows of the samples at hand."""

_ASKED = 2  # rows of the first evaluation that are asked for again
_MOST = 6  # args with a row a sample, of which every subset is tried


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x, attached to it in grad mode; else, where x asks for a gradient, a leaf that asks for its own."""
    part = x.index_select(0, rows)
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or not x.requires_grad:
        return part
    return part.requires_grad_()


def infer_sliced_args(
    args: list[object], count: int, evaluate: Callable[[Tensor, SlicedArgs], Leaves], whole: Leaves
) -> SlicedArgs | None:
    """Which args to cut, the fewest that will do; None where f does not work on a part of the batch.

    evaluate: some rows of the first evaluation, with args cut so. whole: that evaluation. An arg that f takes as it is
    stays as it is: then whatever f does with it later is right.
    """
    candidates = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == count]
    # fewer than all, or an arg that is not cut would still fit, and its values may be the same for all rows
    # the last rows first: a table that is cut wrongly then begins with another row than before
    rows = torch.arange(count - 1, -1, -1, device=whole[0].device)[:: max(1, (count - 1) // (_ASKED - 1))]
    rows = rows[: min(_ASKED, count - 1)]
    expected = tuple(x.index_select(0, rows) for x in whole)

    def works(chosen: frozenset[int]) -> bool:
        cut = tuple(i in chosen for i in range(len(args)))
        try:
            found = evaluate(rows, cut)
        except Exception:  # whatever f raises on shapes that it was not written for
            return False
        return all(_same(a, b) for a, b in zip(found, expected, strict=True))

    for chosen in _subsets(candidates):
        if works(chosen):
            for i in sorted(chosen) if len(chosen) == len(candidates) > 1 else ():
                chosen = chosen - {i} if works(chosen - {i}) else chosen
            return tuple(i in chosen for i in range(len(args)))
    return None


def _subsets(candidates: list[int]) -> Iterator[frozenset[int]]:
    """None, all, and then the others by size."""
    yield frozenset()
    if candidates:
        yield frozenset(candidates)
    if len(candidates) <= _MOST:
        for size in range(1, len(candidates)):
            yield from map(frozenset, combinations(candidates, size))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of a matrix product with fewer rows."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(b.dtype).eps
    top = float(torch.where(torch.isfinite(b), b.abs(), 0.0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=256 * eps, atol=256 * eps * top, equal_nan=True)
