"""The solution at output times: the rule for one or more of them, and the outputs of lanes in tensors, by `where`.

Of lanes: times are (T, *lane), with lane () or (B,), and ys leaves (T, *shape).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.dense import Coefficients, evaluate, slope_at_end
from ..core.leaves import Leaves, differentiable, expand_over, expand_to, select
from .problem import Problem
from .step_attempt import StepAttempt


def outputs_within(
    times: Tensor, start: Tensor, end: Tensor, y0: Leaves, y1: Leaves, coefficients: Coefficients, moving: bool
) -> Leaves:
    """The solution at times within steps from `start` to `end`. The end of a step is exactly its y1.

    y1: with all axes of what is asked for. coefficients: of the steps' polynomials; without any, all times are ends.
    moving: outputs move with their times.
    """
    if not coefficients:
        return y1
    at_end = times.detach() == end.detach()
    theta = (times - start) / (end - start)
    values = evaluate(y0, coefficients, expand_over(theta, y1))
    if moving:  # y1 moves with the end of the step; an output there moves with its own time
        late = torch.where(at_end, (times - end) / (end - start).detach(), 0)
        y1 = tuple(y + k * expand_to(late, y) for y, k in zip(y1, slope_at_end(coefficients), strict=True))
    return select(at_end, y1, values)


def output_times(p: Problem) -> Tensor:
    return p.ts.movedim(-1, 0)


def blank_outputs(p: Problem, slope: Leaves | None) -> Leaves:
    """The outputs at ts[0], and NaN at the others, for now. slope: f there, where outputs move with their times."""
    times = output_times(p)
    late = times - times[0]
    here = late.detach() * p.direction <= 0
    ys = tuple(y.expand(len(times), *y.shape) for y in p.y0)
    nothing = tuple(torch.full_like(y, torch.nan).detach() for y in ys)
    if slope is not None:  # an output there moves with its own time, against ts[0]
        late = torch.where(here, late, 0.0)
        ys = tuple(y + k * expand_to(late, y) for y, k in zip(ys, slope, strict=True))
    return select(here, ys, nothing)


def outputs_due(p: Problem, attempt: StepAttempt) -> Tensor:
    """Which outputs lie within a move that was accepted, (T, *lane)."""
    now, t0, t1 = output_times(p).detach(), attempt.time0.detach(), attempt.time1.detach()
    return attempt.accept & ((now - t1) * p.direction <= 0) & ((now - t0) * p.direction > 0)


def fill_outputs(p: Problem, attempt: StepAttempt, given: Tensor, ys: Leaves) -> Leaves:
    """The outputs with those that are `given` by the move."""
    times, start, end, moving = output_times(p), attempt.time0, attempt.time1, differentiable(p.ts)
    asked = given if moving else given & (times != end)
    coefficients = attempt.polynomial(asked.any(0))
    end = torch.where(end == start, start + 1.0, end)  # in lanes that give nothing
    times = torch.where(given, times, start)
    y1 = tuple(y.expand_as(old) for y, old in zip(attempt.step.y, ys, strict=True))
    return select(given, outputs_within(times, start, end, attempt.y, y1, coefficients, moving), ys)
