"""A sample that failed is a constant: nothing goes back through it, to what is its own or to what all samples share.

A cotangent of zero is not enough: times an infinite derivative it is NaN, for the parameters of all. So a failed sample
takes no part in the steps of a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.lanes import Number
from ..core.leaves import Leaves, select
from ..core.status import Status
from ..core.transforms import vmapping
from ..engine.compact import worthwhile
from ..engine.loop import Outcome
from ..engine.problem import Lanes, Problem
from ..engine.record import Given
from ..engine.tape import Entry
from .base import COUNTS, Trajectory

Dense = Callable[[Tensor], Leaves]


def unfailed(status: Number) -> Tensor | None:
    """The samples that came to an end of theirs, (B,); None where all did, or where there are no samples."""
    if not isinstance(status, Tensor) or status.ndim != 1 or vmapping():
        return None
    good = (status == Status.SUCCESS) | (status == Status.EVENT)
    return None if bool(good.all()) else good


def frozen(found: Trajectory) -> Trajectory:
    """The trajectory with failed samples as constants."""
    good = unfailed(found.outcome.state.status)
    if good is None or not torch.is_grad_enabled():
        return found
    dense = found.dense
    return replace(
        found,
        ys=held(good, found.ys),
        y1=held(good, found.y1),
        dense=None if dense is None else lambda t: held(good, dense(t)),
    )


def held(good: Tensor, y: Leaves) -> Leaves:
    """y with the rows of samples that failed detached."""
    return select(good, y, tuple(x.detach() for x in y))


def places(outcome: Outcome, good: Tensor) -> Tensor:
    """Whose start each sample stands at, should it have failed: its own, or another's if it never left its own.

    There f and its derivatives are finite.
    """
    index = torch.arange(len(good), device=good.device)
    return torch.where(good | (outcome.accepted > 0), index, int(good.to(torch.uint8).argmax()))


@dataclass(frozen=True)
class Survivors:
    """Of a batch in which samples failed: `good`, those that did not, (B,), and the `places` of all."""

    good: Tensor
    places: Tensor

    @staticmethod
    def of(outcome: Outcome) -> Survivors | None:
        """None where no sample failed."""
        good = unfailed(outcome.state.status)
        return None if good is None else Survivors(good, places(outcome, good))


@dataclass
class Stand:
    """Where samples that failed stand, (B,) and leaves, where f cannot do without them. good: those that did not."""

    good: Tensor
    time: Tensor
    y: Leaves
    carry: Leaves

    @staticmethod
    @torch.no_grad()
    def of(q: Problem, survivors: Survivors | None) -> Stand | None:
        """None where none failed, and where f can do without them."""
        if survivors is None or q.f.divisible() or not bool(survivors.good.any()):
            return None
        rows = survivors.places
        time, y = q.ts[..., 0].index_select(0, rows), tuple(x.index_select(0, rows) for x in q.y0)
        return Stand(survivors.good, time, y, q.method.init(q.f, time, y))

    def beside(self, y: Leaves, carry: Leaves, lanes: Lanes | None = None) -> tuple[Leaves, Leaves]:
        """The state and the carry of some samples, with those of failed ones replaced."""
        if lanes is None:
            return select(self.good, y, self.y), select(self.good, carry, self.carry)
        good, index = self.good[lanes.index], lanes.index
        own_y, own_carry = (tuple(x.index_select(0, index) for x in leaves) for leaves in (self.y, self.carry))
        return select(good, y, own_y), select(good, carry, own_carry)


def standing(entries: Sequence[Entry], q: Problem, survivors: Survivors) -> list[Entry]:
    """The steps on a tape of q, of which failed samples have taken none."""
    good, start, stood = survivors.good, q.ts[..., 0].index_select(0, survivors.places), []
    for e in entries:
        index = slice(None) if e.problem.lanes is None else e.problem.lanes.index
        stood.append(_standing(e, good[index], start[index]))
    return stood


def _standing(e: Entry, good: Tensor, start: Tensor) -> Entry:
    if bool(good.all()):
        return e
    assert isinstance(e.accept, Tensor)
    accept, given, rows = e.accept & good, e.given, None
    if given is not None and given.lane is not None:
        keep = good[given.lane]
        assert not isinstance(given.rows, slice)  # they are lanes
        whose, j = given.rows
        given = Given((whose[keep], j[keep]), given.lane[keep]) if bool(keep.any()) else None
    if bool(accept.any()) and e.problem.f.divisible():
        rows = accept.nonzero()[:, 0]
        # those that stand still for another reason stay, unless they are many
        rows = rows if worthwhile(int(good.sum()), len(rows)) else good.nonzero()[:, 0]
    jumps = e.jumps is not False and e.jumps & good
    t0, t1 = torch.where(good, e.t0, start), torch.where(good, e.t1, start)
    return replace(e, t0=t0, t1=t1, accept=accept, jumps=jumps, given=given, rows=rows)


def replaced(p: Problem, survivors: Survivors) -> Problem:
    """The problem in which samples that failed stand at their places and go nowhere."""
    with torch.no_grad():
        p.f(p.ts.detach()[..., 0], p.y0)  # what tells which args have a row a sample
    rows, mask, jumps = survivors.places, survivors.good[:, None], p.stops.jumps
    f, start = p.f.narrowed(rows), p.ts.detach()[..., :1][rows]
    times, jumps = torch.where(mask, p.stops.times, start), None if jumps is None else jumps & mask
    y0 = tuple(x.index_select(0, rows) for x in p.y0)
    return replace(
        p, f=f or p.f, y0=y0, ts=torch.where(mask, p.ts, start), stops=replace(p.stops, times=times, jumps=jumps)
    )


def without_failed(p: Problem, found: Trajectory, again: Callable[[Problem], Trajectory]) -> Trajectory:
    """What was found, where samples did not fail with the gradients of a solve without those that did.

    again: that solve. For what takes all samples through all steps, as autograd and a library do.
    """
    survivors = Survivors.of(found.outcome) if torch.is_grad_enabled() else None
    if survivors is None or not bool(survivors.good.any()):
        return found
    good, others, dense = survivors.good, again(replaced(p, survivors)), found.dense
    others.stats.update({k: found.stats[k] for k in COUNTS})
    others_dense, start = others.dense, p.ts.detach()[..., :1][survivors.places]
    return replace(
        others,
        ys=select(good, others.ys, tuple(y.detach() for y in found.ys)),
        y1=select(good, others.y1, tuple(y.detach() for y in found.y1)),
        dense=None if dense is None or others_dense is None else lambda t: _chosen(good, start, others_dense, dense, t),
        outcome=found.outcome,
        pieces=found.pieces,
    )


def _chosen(good: Tensor, start: Tensor, others: Dense, found: Dense, t: Tensor) -> Leaves:
    """The dense solution of samples that did not fail from `others`, where the others stand at their starts (B, 1)."""
    return select(good, others(torch.where(good[:, None], t, start)), tuple(y.detach() for y in found(t)))
