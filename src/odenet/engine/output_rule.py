"""The solution at output times: the rule for one step or many, and outputs filled in by `where`, for traced solves.

In a traced solve times are (T, *batch), with batch () or (B,), and ys leaves (T, *shape).
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
    """The solution at times within steps from `start` to `end`. At the end of a step it is exactly y1.

    y1: with all axes of the result. coefficients: of the steps' polynomials; () where all times are ends. moving: the
    outputs are differentiable with respect to their times.
    """
    if not coefficients:
        return y1
    at_end = times.detach() == end.detach()
    theta = (times - start) / (end - start)
    values = evaluate(y0, coefficients, expand_over(theta, y1))
    if moving:  # y1 is attached to the end of the step, an output there has to be attached to its own time
        late = torch.where(at_end, (times - end) / (end - start).detach(), 0)
        y1 = tuple(y + k * expand_to(late, y) for y, k in zip(y1, slope_at_end(coefficients), strict=True))
    return select(at_end, y1, values)


def output_times(p: Problem) -> Tensor:
    """(T,) or (T, B)."""
    return p.ts.movedim(-1, 0)


def blank_outputs(p: Problem, slope: Leaves | None) -> Leaves:
    """The outputs before the first step: y0 at ts[0] and at times that equal it, NaN at the others.

    slope: f at ts[0], where outputs are differentiable with respect to their times.
    """
    times = output_times(p)
    late = times - times[0]
    at_start = late.detach() * p.direction <= 0
    ys = tuple(y.expand(len(times), *y.shape) for y in p.y0)
    missing = tuple(torch.full_like(y, torch.nan).detach() for y in ys)
    if slope is not None:  # attaches an output to its own time instead of ts[0]
        late = torch.where(at_start, late, 0.0)
        ys = tuple(y + k * expand_to(late, y) for y, k in zip(ys, slope, strict=True))
    return select(at_start, ys, missing)


def outputs_due(p: Problem, attempt: StepAttempt) -> Tensor:
    """(T, *batch): mask of the outputs that lie within the step, where it was accepted."""
    now, t0, t1 = output_times(p).detach(), attempt.time0.detach(), attempt.time1.detach()
    return attempt.accept & ((now - t1) * p.direction <= 0) & ((now - t0) * p.direction > 0)


def fill_outputs(p: Problem, attempt: StepAttempt, due: Tensor, ys: Leaves) -> Leaves:
    """ys with the outputs of the step filled in. due: see `outputs_due`."""
    times, start, end, moving = output_times(p), attempt.time0, attempt.time1, differentiable(p.ts)
    inside = due if moving else due & (times != end)
    coefficients = attempt.polynomial(inside.any(0))
    end = torch.where(end == start, start + 1.0, end)  # no 0/0 in samples without an output
    times = torch.where(due, times, start)
    y1 = tuple(y.expand_as(old) for y, old in zip(attempt.step.y, ys, strict=True))
    return select(due, outputs_within(times, start, end, attempt.y, y1, coefficients, moving), ys)
