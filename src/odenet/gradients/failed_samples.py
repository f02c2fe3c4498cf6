"""Failed samples are constants: no gradient flows through them, to their own inputs or to shared parameters.

A zero cotangent is not enough: times an infinite derivative it is NaN, in the gradient of shared parameters. So the
solve is repeated with the failed samples idle, and healthy samples take their gradients from it. No gradient method has
to know of failures.
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
    """Mask (B,) of the samples that reached their end or an event; None if all did, or in a joint solve."""
    if not p.batched or p.traced or not isinstance(status, Tensor):
        return None
    healthy = (status == Status.SUCCESS) | (status == Status.EVENT)
    return None if bool(healthy.all()) else healthy


def detach_failed(healthy: Tensor, y: Leaves) -> Leaves:
    """y with the rows of failed samples detached."""
    return select(healthy, y, tuple(x.detach() for x in y))


def freeze_failed(p: Problem, trajectory: Trajectory) -> Trajectory:
    """The trajectory with failed samples as constants."""
    healthy = succeeded(p, trajectory.outcome.state.status)
    if healthy is None or not torch.is_grad_enabled():
        return trajectory
    return trajectory.map_states(lambda y: detach_failed(healthy, y))


def without_failed(p: Problem, trajectory: Trajectory, solve: Callable[[Problem], Trajectory]) -> Trajectory:
    """The trajectory with failed samples as constants.

    Healthy samples get the gradients of a solve without the failed ones. solve: solves a given problem again.
    """
    healthy = succeeded(p, trajectory.outcome.state.status)
    grad_needed = not gradient_bypassed() and any(x.requires_grad for x in (*trajectory.ys, *trajectory.y1))
    if healthy is None or not grad_needed or not bool(healthy.any()):
        return freeze_failed(p, trajectory)
    f = trajectory.field or p.f
    p = _with_failed_idle(p, trajectory, healthy)
    with f.with_random_states(f.initial_random_states):  # a random f draws the same numbers again
        resolved = solve(p)
    resolved.stats.update({k: trajectory.stats[k] for k in COUNTS})
    pieces = None if trajectory.dense_values is None else trajectory.dense_values.detached()
    dense, start = resolved.dense, p.ts.detach()[..., :1]

    def merged_dense(t: Tensor) -> Leaves:
        assert dense is not None and pieces is not None
        return select(healthy, dense(torch.where(healthy[:, None], t, start)), pieces(t))

    return replace(
        resolved,
        ys=select(healthy, resolved.ys, tuple(y.detach() for y in trajectory.ys)),
        y1=select(healthy, resolved.y1, tuple(y.detach() for y in trajectory.y1)),
        dense=None if dense is None else merged_dense,
        outcome=trajectory.outcome,
        dense_values=pieces,
    )


def _with_failed_idle(p: Problem, trajectory: Trajectory, healthy: Tensor) -> Problem:
    """The problem with failed samples idle: their times do not advance.

    They stay where f and its derivatives are finite: at their own initial state, or at a healthy sample's if their
    first step failed.
    """
    index, drawing_field = torch.arange(len(healthy), device=healthy.device), trajectory.field or p.f
    replacement = torch.where(healthy | (trajectory.outcome.accepted > 0), index, int(healthy.to(torch.uint8).argmax()))
    f = p.f.with_args(p.f.differentiable_args)
    with torch.no_grad(), drawing_field.with_random_states(drawing_field.initial_random_states):
        f(p.ts.detach()[..., 0], p.y0)  # f infers which args have a row per sample
    f = f.subset(replacement) or f
    f.checked = False  # the next solve checks captured tensors
    mask, start, jumps = healthy[:, None], p.ts.detach()[..., :1][replacement], p.stops.jumps
    times, jumps = torch.where(mask, p.stops.times, start), None if jumps is None else jumps & mask
    stops, y0 = replace(p.stops, times=times, jumps=jumps), tuple(x.index_select(0, replacement) for x in p.y0)
    return replace(p, f=f, y0=y0, ts=torch.where(mask, p.ts, start), stops=stops)
