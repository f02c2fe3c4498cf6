"""Steps that no error decides are known before they are taken: their times are computed for many of them at once.

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

_FIRST, _MOST = 16, 1024  # so many at once, twice as many each time: a solve may end before


class PlannedStep(NamedTuple):
    """One step: where it begins and ends, whether that is the stop of this index, and what the method has of it."""

    t0: float
    t1: float
    hit: bool
    stop: int
    time1: Tensor
    span: StepPlan


class StepPlanner:
    """The steps of a joint solve of constant steps; `stops` as the clock has them, `last` of equal ones.

    together: nobody looks at a step that ends at no stop.
    """

    def __init__(self, p: Problem, stops: list[float], last: Sequence[int], sign: float) -> None:
        self.p, self.stops, self.last, self.sign = p, stops, last, sign
        self.size, self.stretch = p.controller.initial_step(1.0), p.stops.rule.stretch
        self.steps: Iterator[PlannedStep] = iter(())
        self.many, self.tried, self.together = _FIRST, 0, False

    @staticmethod
    def possible(p: Problem) -> bool:
        """Whether the joint solve p, on the host, has such steps."""
        control = p.controller
        if control.adaptive or p.stops.rule.perturb or p.stops.jumps is not None:
            return False
        if being_recorded() or torch.compiler.is_compiling():
            return False
        return p.method.can_plan_steps and not p.times_differentiable and p.ts.dtype == torch.float64

    def step(self, t: float, time: Tensor, h: float, stop: int) -> PlannedStep | None:
        """The step from t; None where it is not one of those that were foreseen, as after an event."""
        self.tried += 1
        if h != self.size or (self.tried == 1 and self._ends_all(t, stop)):
            return None
        found = next(self.steps, None)
        if found is None or found.t0 != t or found.stop != stop:
            self._plan(t, time, stop)
            found = next(self.steps)
        return found

    def _ends_all(self, t: float, stop: int) -> bool:
        """Whether one step leads to the end: foreseeing it would take longer than taking it."""
        return stop == len(self.stops) - 1 and self.size * self.stretch >= (self.stops[stop] - t) * self.sign

    def to_stop(self, most: int) -> list[PlannedStep]:
        """The steps after the last one, at most so many, up to the next that is at a stop."""
        found: list[PlannedStep] = []
        while len(found) < most and (following := next(self.steps, None)) is not None:
            found.append(following)
            if following.hit:
                break
        self.tried += len(found)
        return found

    def one_by_one(self) -> None:
        """The steps that were foreseen were not taken."""
        self.together, self.steps = False, iter(())

    def _plan(self, t: float, time: Tensor, stop: int) -> None:
        rows: list[tuple[float, float, bool, int]] = []
        sign, size, stops = self.sign, self.size, self.stops
        reach = size * self.stretch
        while len(rows) < self.many and stop < len(stops):
            target = stops[stop]
            hit = reach >= (target - t) * sign
            t1 = target if hit else t + sign * size
            rows.append((t, t1, hit, stop))
            t = t1
            if hit:
                stop = self._after(t, stop)
        self.many = min(2 * self.many, _MOST)
        times = torch.tensor([rows[0][0], *(row[1] for row in rows)], dtype=time.dtype, device=time.device)
        ends = times[1:]
        spans = self.p.method.plan_steps(times[:-1], ends, self.p.y0, getattr(self.p.f, "time_dtype", None))
        self.steps = (PlannedStep(*row, end, span) for row, end, span in zip(rows, ends.unbind(), spans, strict=True))

    def _after(self, t: float, stop: int) -> int:
        """The first stop after t, the last one of several at that time."""
        while stop < len(self.stops) and (self.stops[stop] - t) * self.sign <= 0:
            stop = self.last[stop] + 1
        return self.last[stop] if stop < len(self.stops) else stop
