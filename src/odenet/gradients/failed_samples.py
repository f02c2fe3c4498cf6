"""A sample that failed is a constant: nothing goes back through it, to what is its own or to what all samples share.

A cotangent of zero is not enough: times an infinite derivative it is NaN, for the parameters of all. So the others have
the gradients of a solve in which it goes nowhere, and no gradient has to know of failures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.leaves import Leaves, select
from ..core.scalars import ScalarLike
from ..core.status import Status
from ..engine.problem import Problem
from .gradient import COUNTS, Trajectory, gradient_bypassed


def succeeded(p: Problem, status: ScalarLike) -> Tensor | None:
    """The samples that came to an end of theirs, (B,); None where all did, or where there are no samples."""
    if not p.batched or p.traced:
        return None
    good = (status == Status.SUCCESS) | (status == Status.EVENT)
    return None if bool(good.all()) else good


def detach_failed(succeeded: Tensor, y: Leaves) -> Leaves:
    """y with the rows of samples that failed detached."""
    return select(succeeded, y, tuple(x.detach() for x in y))


def freeze_failed(p: Problem, trajectory: Trajectory) -> Trajectory:
    """The trajectory with failed samples as constants."""
    good = succeeded(p, trajectory.outcome.state.status)
    if good is None or not torch.is_grad_enabled():
        return trajectory
    return trajectory.map_states(lambda y: detach_failed(good, y))


def without_failed(p: Problem, trajectory: Trajectory, solve: Callable[[Problem], Trajectory]) -> Trajectory:
    """The trajectory with failed samples as constants, and the others with the gradients of a solve without those.

    again: that solve.
    """
    good = succeeded(p, trajectory.outcome.state.status)
    asked = not gradient_bypassed() and any(x.requires_grad for x in (*trajectory.ys, *trajectory.y1))
    if good is None or not asked or not bool(good.any()):
        return freeze_failed(p, trajectory)
    drawing_field = trajectory.field or p.f
    p = _with_failed_idle(p, trajectory, good)
    with drawing_field.with_random_states(
        drawing_field.initial_random_states
    ):  # an f that draws random numbers draws those that it drew
        others = solve(p)
    others.stats.update({k: trajectory.stats[k] for k in COUNTS})
    pieces = None if trajectory.dense_values is None else trajectory.dense_values.detached()
    dense, start = others.dense, p.ts.detach()[..., :1]

    def chosen(t: Tensor) -> Leaves:
        assert dense is not None and pieces is not None
        return select(good, dense(torch.where(good[:, None], t, start)), pieces(t))

    return replace(
        others,
        ys=select(good, others.ys, tuple(y.detach() for y in trajectory.ys)),
        y1=select(good, others.y1, tuple(y.detach() for y in trajectory.y1)),
        dense=None if dense is None else chosen,
        outcome=trajectory.outcome,
        dense_values=pieces,
    )


def _with_failed_idle(p: Problem, found: Trajectory, good: Tensor) -> Problem:
    """The problem in which samples that failed go nowhere, from where f and its derivatives are finite.

    That is their own start, or that of another sample where they never left it.
    """
    index, drawing_field = torch.arange(len(good), device=good.device), found.field or p.f
    rows = torch.where(good | (found.outcome.accepted > 0), index, int(good.to(torch.uint8).argmax()))
    f = p.f.with_args(p.f.differentiable_args)
    with torch.no_grad(), drawing_field.with_random_states(drawing_field.initial_random_states):
        f(p.ts.detach()[..., 0], p.y0)  # what tells which args have a row a sample
    f = f.subset(rows) or f
    f.checked = False  # the solve to come is to see what it uses
    mask, start, jumps = good[:, None], p.ts.detach()[..., :1][rows], p.stops.jumps
    times, jumps = torch.where(mask, p.stops.times, start), None if jumps is None else jumps & mask
    stops, y0 = replace(p.stops, times=times, jumps=jumps), tuple(x.index_select(0, rows) for x in p.y0)
    return replace(p, f=f, y0=y0, ts=torch.where(mask, p.ts, start), stops=stops)
