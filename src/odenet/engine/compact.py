"""Samples that have ended leave the batch, so that f is evaluated for those that still run.

A batch goes on as a `Problem` of the samples left, as soon as more than the part `spare` of the rows at hand have
ended: of the rows that f sees at most that part is then in vain, and they are at most 1 / (1 - spare) times those
needed. Each time the batch shrinks by that part at least, so that a million samples are down to one after 131 times at
the most, and all the copying together is that of 1 / spare batches.
"""

from __future__ import annotations

from typing import TypeVar, final

import torch
from torch import Tensor

from ..core.leaves import flatten, tree_map, unflatten
from .advance import State
from .problem import Lanes, Problem
from .tally import Tally

T = TypeVar("T")


def worthwhile(rows: int, wanted: int, spare: float = Problem.spare) -> bool:
    """Whether it is time to go on with the wanted ones of the rows at hand alone."""
    return rows - wanted > spare * rows


@final
class Leaving:
    """Takes samples out of a solve, and puts all of them together at its end."""

    def __init__(self, p: Problem) -> None:
        self.possible = p.compact and p.batched and not p.traced and _takes_some(p)
        self.ended: list[tuple[Tensor, State, Tally]] = []

    @staticmethod
    def due(running: Tensor, spare: float) -> bool:
        """Whether enough samples have ended."""
        return worthwhile(len(running), int(running.sum()), spare)

    def leave(self, p: Problem, s: State, tally: Tally, running: Tensor) -> tuple[Problem, State, Tally] | None:
        """What goes on with the samples that run; None where f does not work on a part of the batch."""
        rows, others = running.nonzero()[:, 0], (~running).nonzero()[:, 0]
        left = p.narrowed(rows)
        if left is None:
            self.possible = False
            return None
        index = others if p.lanes is None else p.lanes.index[others]
        self.ended.append((index, *_rows((s, tally), others)))
        return left, *_rows((s, tally), rows)

    def whole(self, p: Problem, s: State, tally: Tally) -> tuple[State, Tally]:
        """All samples in their order."""
        if p.lanes is None:
            return s, tally
        parts = [*self.ended, (p.lanes.index, s, tally)]
        order = torch.cat([index for index, _, _ in parts]).argsort()

        flat, specs = zip(*(flatten((state, counts)) for _, state, counts in parts), strict=True)
        joined = [torch.cat(xs)[order] if isinstance(xs[0], Tensor) else xs[0] for xs in zip(*flat, strict=True)]
        return unflatten(joined, specs[0])


def _rows(tree: T, rows: Tensor) -> T:
    """These rows of all tensors of a state or tally."""
    return tree_map(lambda x: x.index_select(0, rows) if isinstance(x, Tensor) else x, tree)


def _takes_some(p: Problem) -> bool:
    """Whether a norm of the caller's takes a part of a batch."""
    if p.controller.norm is None:
        return True
    try:
        found = p.controller.norm(tuple(torch.ones_like(y[:1]) for y in p.y0))
    except Exception:  # whatever it raises on shapes that it was not written for
        return False
    return isinstance(found, Tensor) and found.shape == (1,)


def within(outer: Lanes | None, inner: Lanes | None) -> Tensor | None:
    """Where the samples `inner` are among `outer`, which they are a part of; None: they are the same."""
    if inner is None or inner is outer:
        return None
    return inner.index if outer is None else torch.searchsorted(outer.index, inner.index)
