"""Samples that have ended leave the batch, so that f is evaluated for those that still run.

A batch goes on as a `Problem` of the samples left, as soon as more than the part `spare` of the rows at hand have
ended: of the rows that f sees at most that part is then in vain, and they are at most 1 / (1 - spare) times those
needed. Each time the batch shrinks by that part at least, so that a million samples are down to one after 131 times at
the most, and all the copying together is that of 1 / spare batches.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.lanes import Number
from .advance import State
from .problem import Lanes, Problem


class Tally(NamedTuple):
    """Counts of each sample."""

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    njev: Tensor
    nlu: Tensor


def worthwhile(rows: int, wanted: int, spare: float = Problem.spare) -> bool:
    """Whether it is time to go on with the wanted ones of the rows at hand alone."""
    return rows - wanted > spare * rows


@final
class Leaving:
    """Takes samples out of a solve, and puts all of them together at its end."""

    def __init__(self, p: Problem) -> None:
        self.possible = p.compact and _takes_some(p)
        self.ended: list[tuple[Tensor, State, Tally]] = []

    def leave(self, p: Problem, s: State, tally: Tally, running: Tensor) -> tuple[Problem, State, Tally] | None:
        """What goes on with the samples that run; None where f does not work on a part of the batch."""
        rows, others = running.nonzero()[:, 0], (~running).nonzero()[:, 0]
        left = p.narrowed(rows)
        if left is None:
            self.possible = False
            return None
        index = others if p.lanes is None else p.lanes.index[others]
        self.ended.append((index, _of_state(s, others), _of_tally(tally, others)))
        return left, _of_state(s, rows), _of_tally(tally, rows)

    def whole(self, p: Problem, s: State, tally: Tally) -> tuple[State, Tally]:
        """All samples in their order."""
        if p.lanes is None:
            return s, tally
        parts = [*self.ended, (p.lanes.index, s, tally)]
        order = torch.cat([index for index, _, _ in parts]).argsort()

        def join(xs: tuple[Number, ...]) -> Number:
            return torch.cat(xs)[order] if isinstance(xs[0], Tensor) else xs[0]

        flat = [_flat(state) for _, state, _ in parts]
        state = _state([join(xs) for xs in zip(*flat, strict=True)], s)
        return state, Tally(*(join(xs) for xs in zip(*(counts for _, _, counts in parts), strict=True)))


def _flat(s: State) -> list[Number]:
    return [s.t, s.time, s.h, s.stop, s.jumped, s.status, s.rejected, *s.y, *s.carry, *s.memory, *s.cache]


def _state(flat: list[Number], like: State) -> State:
    t, time, h, stop, jumped, status, rejected, *rest = flat
    n = len(like.y)
    m = n + len(like.carry)
    k = m + len(like.memory)
    y, carry, memory, cache = (tuple(x) for x in (rest[:n], rest[n:m], rest[m:k], rest[k:]))
    return State(t, time, h, y, carry, memory, stop, jumped, status, cache, rejected)


def _of_state(s: State, rows: Tensor) -> State:
    return _state([x.index_select(0, rows) if isinstance(x, Tensor) else x for x in _flat(s)], s)


def _of_tally(tally: Tally, rows: Tensor) -> Tally:
    return Tally(*(x.index_select(0, rows) for x in tally))


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
