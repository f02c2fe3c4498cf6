"""Samples that have ended leave the batch, so that f is evaluated for those that still run.

A batch goes on as a `Problem` of the samples left, as soon as more than the part `spare` of the rows at hand have
ended: of the rows that f sees at most that part is then in vain, and they are at most 1 / (1 - spare) times those
needed. Each time the batch shrinks by that part at least, so that a million samples are down to one after 131 times at
the most, and all the copying together is that of 1 / spare batches.
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
    """Takes samples out of a solve, and puts all of them together at its end."""

    def __init__(self, p: Problem) -> None:
        self.possible = p.compact and p.batched and not p.traced and _takes_some(p)
        self.ended: list[tuple[Tensor, State, Counters]] = []

    @staticmethod
    def due(running: Tensor, spare: float) -> bool:
        """Whether enough samples have ended."""
        return should_compact(len(running), int(running.sum()), spare)

    def compact(self, p: Problem, s: State, tally: Counters, running: Tensor) -> tuple[Problem, State, Counters] | None:
        """What goes on with the samples that run; None where f does not work on a part of the batch."""
        rows, others = running.nonzero()[:, 0], (~running).nonzero()[:, 0]
        left = p.subset(rows)
        if left is None:
            self.possible = False
            return None
        self.ended.append((p.samples.of_rows(others), *_of((s, tally), others)))
        return left, *_of((s, tally), rows)

    def restore(self, p: Problem, s: State, tally: Counters) -> tuple[State, Counters]:
        """All samples in their order."""
        if p.samples.index is None:
            return s, tally
        parts = [*self.ended, (p.samples.index, s, tally)]
        order = torch.cat([index for index, _, _ in parts]).argsort()
        return _each(lambda *xs: torch.cat(xs)[order], *((state, counts) for _, state, counts in parts))


def _each(change: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Nested tuples with each tensor changed, beside those in its place in others. PyTorch's pytrees take too long."""
    if isinstance(first, Tensor):
        return change(first, *others)
    if isinstance(first, tuple):
        parts = [_each(change, *xs) for xs in zip(first, *others, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def _of(tree: Any, rows: Tensor) -> Any:
    return _each(lambda x: x.index_select(0, rows), tree)


def _takes_some(p: Problem) -> bool:
    """Whether a norm of the caller's takes a part of a batch."""
    if p.controller.norm is None:
        return True
    try:
        found = p.controller.norm(tuple(torch.ones_like(y[:1]) for y in p.y0))
    except Exception:  # whatever it raises on shapes that it was not written for
        return False
    return isinstance(found, Tensor) and found.shape == (1,)
