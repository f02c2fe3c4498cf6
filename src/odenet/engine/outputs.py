"""The outputs at all times at once, of lanes in tensors: by `where`, with no look at a value.

times: (T, *lane), with lane () or (B,). ys: leaves (T, *shape).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.dense import evaluate, slope_at_end
from ..core.leaves import Leaves, differentiable, real_dtype
from .advance import Move
from .problem import Problem


def times_of(p: Problem) -> Tensor:
    return p.ts.movedim(-1, 0)


def blank(p: Problem, slope: Leaves | None) -> Leaves:
    """The outputs at ts[0], and NaN at the others, for now. slope: f there, where outputs move with their times."""
    times, out = times_of(p), []
    late = times - times[0]
    here = late.detach() * p.direction <= 0
    for i, y in enumerate(p.y0):
        value = y.expand(len(times), *y.shape)
        if slope is not None:  # an output there moves with its own time, against ts[0]
            value = value + slope[i] * _beside(torch.where(here, late, 0.0), y)
        out.append(torch.where(_beside(here, y), value, torch.full_like(value, torch.nan).detach()))
    return tuple(out)


def due(p: Problem, move: Move) -> Tensor:
    """Which outputs lie within a move that was accepted, (T, *lane)."""
    now, t0, t1 = times_of(p).detach(), move.time0.detach(), move.time1.detach()
    return move.accept & ((now - t1) * p.direction <= 0) & ((now - t0) * p.direction > 0)


def filled(p: Problem, move: Move, given: Tensor, ys: Leaves) -> Leaves:
    """The outputs with those that are `given` by the move. The end of a step is exactly its y."""
    times, moving = times_of(p), differentiable(p.ts)
    at_end = times.detach() == move.time1.detach()
    length = move.time1 - move.time0
    length = torch.where(length == 0, 1.0, length)
    coefficients = move.polynomial((given if moving else given & ~at_end).any(0))
    theta = torch.where(given, times - move.time0, 0.0) / length
    values = evaluate(move.y, coefficients, tuple(_beside(theta, y) for y in move.y))
    ends = tuple(y.unsqueeze(0) for y in move.step.y)
    if moving:  # y1 moves with the end of the step; an output there moves with its own time
        late = torch.where(given & at_end, (times - move.time1) / length.detach(), 0.0)
        slopes = slope_at_end(coefficients)
        ends = tuple(y + k * _beside(late, k) for y, k in zip(ends, slopes, strict=True))
    return tuple(
        torch.where(_beside(given, y), torch.where(_beside(at_end, y), end, value), old)
        for y, value, end, old in zip(move.y, values, ends, ys, strict=True)
    )


def _beside(lanes: Tensor, y: Tensor) -> Tensor:
    """(T, *lane) to go with (T, *y.shape); numbers in y's real dtype."""
    lanes = lanes if lanes.dtype == torch.bool else lanes.to(real_dtype(y.dtype))
    return lanes.view(*lanes.shape, *(1,) * (1 + y.ndim - lanes.ndim))
