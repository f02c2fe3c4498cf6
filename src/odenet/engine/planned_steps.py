"""Steps whose times are known before they are taken, as no error decides them, planned for many of them at once.

On a small state most of a step is operations on its times. Here one operation does for all steps what they would do one
by one, with the same results to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.leaves import being_recorded
from ..methods.method import StepPlan
from .problem import Problem

_FIRST_CHUNK, _LARGEST_CHUNK = 16, 1024  # steps planned at once, doubled each time: a solve may end before


class PlannedStep(NamedTuple):
    """A step from t0 to t1. hit: t1 is the stop time with index `stop`. span: the method's view of its times."""

    t0: float
    t1: float
    hit: bool
    stop: int
    time1: Tensor
    span: StepPlan


class StepPlanner:
    """Plans the steps of a joint solve with constant steps.

    stops, last: the stop times, and for each the index of the last one that equals it. attempts: steps taken so far.
    skip_between_stops: no observer needs the steps that end at no stop time.
    """

    def __init__(self, p: Problem, stops: list[float], last: Sequence[int], sign: float) -> None:
        self.p, self.stops, self.last, self.sign = p, stops, last, sign
        self.size, self.stretch = float(p.controller.initial_step(1.0)), p.stops.rule.stretch
        self.steps: Iterator[PlannedStep] = iter(())
        self.chunk, self.attempts, self.skip_between_stops = _FIRST_CHUNK, 0, False

    @staticmethod
    def applies(p: Problem) -> bool:
        """True where the times of p's steps are known beforehand. p: a joint solve on the host."""
        control = p.controller
        if control.adaptive or p.stops.rule.perturb or p.stops.jumps is not None:
            return False
        if being_recorded() or torch.compiler.is_compiling():
            return False
        return p.method.can_plan_steps and not p.times_differentiable and p.ts.dtype == torch.float64

    def step(self, t: float, time: Tensor, h: float, stop: int) -> PlannedStep | None:
        """The step from t; None where it is not a planned one, as after an event."""
        self.attempts += 1
        if h != self.size or (self.attempts == 1 and self._one_step_ends_solve(t, stop)):
            return None
        planned = next(self.steps, None)
        if planned is None or planned.t0 != t or planned.stop != stop:
            self._plan(t, time, stop)
            planned = next(self.steps)
        return planned

    def _one_step_ends_solve(self, t: float, stop: int) -> bool:
        """True where one step reaches the end: to plan it would take longer than to take it."""
        return stop == len(self.stops) - 1 and self.size * self.stretch >= (self.stops[stop] - t) * self.sign

    def to_stop(self, most: int) -> list[PlannedStep]:
        """The next steps up to the first that ends at a stop time, at most `most` of them."""
        steps: list[PlannedStep] = []
        while len(steps) < most and (following := next(self.steps, None)) is not None:
            steps.append(following)
            if following.hit:
                break
        self.attempts += len(steps)
        return steps

    def one_by_one(self) -> None:
        """The steps from `to_stop` were not taken: drop the plan, and show every step from now on."""
        self.skip_between_stops, self.steps = False, iter(())

    def _plan(self, t: float, time: Tensor, stop: int) -> None:
        rows: list[tuple[float, float, bool, int]] = []
        sign, size, stops = self.sign, self.size, self.stops
        reach = size * self.stretch
        while len(rows) < self.chunk and stop < len(stops):
            target = stops[stop]
            hit = reach >= (target - t) * sign
            t1 = target if hit else t + sign * size
            rows.append((t, t1, hit, stop))
            t = t1
            if hit:
                stop = self._next_stop(t, stop)
        self.chunk = min(2 * self.chunk, _LARGEST_CHUNK)
        times = torch.tensor([rows[0][0], *(row[1] for row in rows)], dtype=time.dtype, device=time.device)
        ends = times[1:]
        spans = self.p.method.plan_steps(times[:-1], ends, self.p.y0, getattr(self.p.f, "time_dtype", None))
        self.steps = (PlannedStep(*row, end, span) for row, end, span in zip(rows, ends.unbind(), spans, strict=True))

    def _next_stop(self, t: float, stop: int) -> int:
        """Index of the first stop time after t; of several at the same time the last one."""
        while stop < len(self.stops) and (self.stops[stop] - t) * self.sign <= 0:
            stop = self.last[stop] + 1
        return self.last[stop] if stop < len(self.stops) else stop
