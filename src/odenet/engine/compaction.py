"""Compaction: samples that have ended leave the batch, so that f is evaluated only for samples that still run.

The batch goes on as a `Problem` of the running samples once more than the fraction `compaction_threshold` of its rows
have ended. So at most that fraction of the rows that f sees is wasted, and f sees at most 1 / (1 - threshold) times the
rows it needs. Each compaction shrinks the batch by at least that fraction: with 0.1 a million samples are down to one
after at most 131 compactions, and all copies together are those of 1 / threshold batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from .batch_index import should_compact
from .counters import Counters
from .problem import Problem
from .step_attempt import State


@final
class BatchCompactor:
    """Takes ended samples out of a solve, and puts all samples together again at its end.

    possible: the batch of the solve may shrink. ended: the samples taken out, with their states and counts.
    """

    def __init__(self, p: Problem) -> None:
        self.possible = p.compact and p.batched and not p.traced and _norm_takes_subset(p)
        self.ended: list[tuple[Tensor, State, Counters]] = []

    def compact(self, p: Problem, s: State, counters: Counters, running: Any) -> tuple[Problem, State, Counters] | None:
        """The solve of the running samples alone; None where too few have ended, or f does not work on a subset.

        running: (B,), as the solve is per sample.
        """
        if not should_compact(len(running), int(running.sum()), p.compaction_threshold):
            return None
        rows, ended = running.nonzero()[:, 0], (~running).nonzero()[:, 0]
        smaller = p.subset(rows)
        if smaller is None:
            self.possible = False
            return None
        self.ended.append((p.samples.sample_numbers(ended), *_take_rows((s, counters), ended)))
        return smaller, *_take_rows((s, counters), rows)

    def restore(self, p: Problem, s: State, counters: Counters) -> tuple[State, Counters]:
        """State and counts of all samples, in their order."""
        if p.samples.index is None:
            return s, counters
        groups = [*self.ended, (p.samples.index, s, counters)]
        order = torch.cat([index for index, _, _ in groups]).argsort()
        return _map_tensors(lambda *xs: torch.cat(xs)[order], *((state, counts) for _, state, counts in groups))


def _map_tensors(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Nested tuples with `function` applied to the tensors at each position. PyTorch's pytrees take too long."""
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, tuple):
        items = [_map_tensors(function, *xs) for xs in zip(first, *others, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
    return first


def _take_rows(tree: Any, rows: Tensor) -> Any:
    return _map_tensors(lambda x: x.index_select(0, rows), tree)


def _norm_takes_subset(p: Problem) -> bool:
    """True where the caller's norm, if there is one, works on a batch of another size."""
    if p.controller.norm is None:
        return True
    try:
        out: Any = p.controller.norm(tuple(torch.ones_like(y[:1]) for y in p.y0))
    except Exception:  # the norm may raise anything for shapes that it was not written for
        return False
    return isinstance(out, Tensor) and out.shape == (1,)
