"""A sample that failed is a constant: nothing goes back through it, to what is its own or to what all samples share.

A cotangent of zero is not enough: times an infinite derivative it is NaN, for the parameters of all. So a failed sample
takes no part in the steps of a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.lanes import Number
from ..core.leaves import Leaves, select
from ..core.status import Status
from ..core.transforms import vmapping
from ..engine.compact import worthwhile
from ..engine.problem import Problem
from ..engine.record import Given
from ..engine.tape import Entry
from .base import Trajectory


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


def standing(entries: Sequence[Entry], good: Tensor) -> list[Entry]:
    """The steps on a tape, of which failed samples have taken none."""
    return [_standing(e, good if e.problem.lanes is None else good[e.problem.lanes.index]) for e in entries]


def _standing(e: Entry, good: Tensor) -> Entry:
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
    jumps = e.jumps & good if isinstance(e.jumps, Tensor) else e.jumps
    return replace(e, accept=accept, t1=torch.where(good, e.t1, e.t0), jumps=jumps, given=given, rows=rows)


def beside(good: Tensor, y: Leaves) -> Leaves:
    """y with another sample's state where one failed: a state at which f and its derivatives are finite."""
    one = int(good.to(torch.uint8).argmax())
    return select(good, y, tuple(x[one].expand_as(x) for x in y)) if bool(good.any()) else y


def replaced(p: Problem, good: Tensor) -> Problem:
    """The problem with another sample in the place of each that failed: its state, and its rows of args."""
    with torch.no_grad():
        p.f(p.ts.detach()[..., 0], p.y0)  # what tells which args have a row a sample
    one = int(good.to(torch.uint8).argmax())
    index = torch.where(good, torch.arange(len(good), device=good.device), one)
    fewer = p.f.narrowed(index) if bool(good.any()) else None
    return p if fewer is None else replace(p, y0=tuple(x.index_select(0, index) for x in p.y0), f=fewer)
