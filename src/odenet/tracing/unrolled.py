"""Steps known in advance, unrolled into a graph without loops, for exports that other programs read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.dense import evaluate
from ..core.leaves import Leaves, expand_over
from ..engine.problem import Problem
from ..methods.method import StepInput

MAX_STEPS = 256  # longer solves use the loop operator


def known_steps(p: Problem, times: Sequence[float]) -> list[tuple[float, float]] | None:
    """Start and end of every step, if neither an error estimate nor a tensor decides them; else None.

    None also for more than MAX_STEPS steps.
    """
    control = p.controller
    rule = p.stops.rule
    if control.adaptive or not rule.ts_only or rule.perturb:
        return None
    size = float(control.initial_step(1.0))
    sign = -1.0 if times[-1] < times[0] else 1.0
    steps: list[tuple[float, float]] = []
    t = times[0]
    for stop in times[1:] if rule.every_output else times[-1:]:
        while (stop - t) * sign > 0.0:
            remaining = (stop - t) * sign
            end = stop if size * rule.stretch >= remaining else t + sign * size
            steps.append((t, end))
            t = end
            if len(steps) > MAX_STEPS:
                return None
    return steps


def solve_unrolled(p: Problem, times: Sequence[float], steps: Sequence[tuple[float, float]]) -> tuple[Leaves, Leaves]:
    """y1 and ys."""
    sign = -1.0 if times[-1] < times[0] else 1.0
    tracker = p.ts[0]
    y, carry = p.y0, p.method.init(p.f, tracker, p.y0)
    rows: list[Leaves] = [y for t in times if t == times[0]]
    for t0, t1 in steps:
        at = StepInput(p.f, torch.full_like(tracker, t0), torch.full_like(tracker, t1), y, carry)
        step = p.method.step(at)
        inside = [t for t in times if (t - t0) * sign > 0.0 and (t - t1) * sign <= 0.0]
        coefficients = p.method.dense(at, step) if any(t != t1 for t in inside) else ()
        for t in inside:
            theta = expand_over(torch.full_like(tracker, (t - t0) / (t1 - t0)), y)
            rows.append(step.y if t == t1 else evaluate(y, coefficients, theta))
        y, carry = step.y, step.carry
    return y, tuple(torch.stack(list(x)) for x in zip(*rows, strict=True))
