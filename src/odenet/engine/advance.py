"""State, and one attempt at a step.

Decisions are made on lanes that are Python numbers for a joint solve and (B,) tensors per sample (core/lanes.py), or
tensors without axes for a joint solve that is traced; what the method computes with (`time`) is always a tensor and
stays attached to the caller's ts. The controller sees detached values only: a step size is a constant of the
differentiation.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..control.base import Memory, Verdict, measured
from ..core.dense import Coefficients
from ..core.generators import GeneratorStates
from ..core.lanes import Flag, Number, negate, where
from ..core.leaves import Leaves, differentiable, rows, select
from ..core.norms import all_finite, finite_on_host, rms
from ..core.status import Status
from ..methods.base import Field, Step
from .problem import Problem

_EPS = 2.0**-52
_RUNNING = int(Status.RUNNING)  # a number: the compiler does not compare tensors with members of an enum


class State(NamedTuple):
    """Where a solve stands.

    t, h: detached time and size of the next attempt. time: t as a tensor, attached to ts. stop: index of the next time
    to hit. jumped: t is a jump time. status: Status codes.
    """

    t: Number
    time: Tensor
    h: Number
    y: Leaves
    carry: Leaves
    memory: Memory
    stop: Number
    jumped: Flag
    status: Number


class Draws(NamedTuple):
    """The states of the generators before a step and before its dense output, of an f that draws random numbers."""

    step: GeneratorStates | None = None
    dense: GeneratorStates | None = None


@dataclass
class Move:
    """One attempted step, as observers see it. `accept` is a bool, or lanes of booleans.

    stop: the index of the time that it hit; -1: the time of an event, which depends on no time to hit. ends: an event
    ends the solve (of these lanes) with this move.
    sought: lanes in which an event was looked for, which took `search_calls` evaluations of each.
    graph: the step attached to y, carry, time0 and time1, which are then leaves of a graph; `step` is detached.
    draws: where an f that draws random numbers draws them from.
    """

    problem: Problem
    t0: Number
    t1: Number
    time0: Tensor
    time1: Tensor
    y: Leaves
    carry: Leaves
    step: Step
    accept: Flag
    hit: Flag
    stop: Number
    jumped: Flag
    jumps: Flag
    ends: Flag = False
    asked: Flag = False
    polynomial_calls: int = 0
    sought: Flag = False
    search_calls: int = 0
    graph: Step | None = None
    draws: Draws = field(default_factory=Draws)
    _polynomial: Coefficients | None = field(default=None, repr=False)

    @property
    def known_polynomial(self) -> Coefficients:
        return self._polynomial or ()

    def polynomial(self, lanes: Flag = True) -> Coefficients:
        """Dense output of the step; computed once, and only where somebody asks.

        `lanes` asks, and alone is charged for evaluations that it takes (`polynomial_calls` for each lane in `asked`).
        """
        self.asked = self.asked | lanes
        if self._polynomial is None:
            p, before = self.problem, self.problem.f.calls
            f = nudged(p, self.time0, self.time1, self.jumped, self.jumps)
            step = self.step if self.graph is None else self.graph
            again = self.draws.dense
            if p.f.random and again is None:
                self.draws = self.draws._replace(dense=p.f.states())
            grad = self.graph is not None or torch.is_grad_enabled()
            with torch.set_grad_enabled(grad), nullcontext() if again is None else p.f.drawing_from(again):
                self._polynomial = p.method.dense(f, self.time0, self.time1, self.y, step)
            self.polynomial_calls = p.f.calls - before
            self.step = self.step._replace(stages=())  # nobody else asks for the stages, and they are most of a step
        return self._polynomial


def not_finite(move: Move) -> Tensor:
    """Lanes of which a value of the step is not finite: zeros could not be pulled through their graph."""
    bad = torch.zeros_like(move.accept)
    for leaf in (*move.step.y, *move.step.carry, *(leaf for stage in move.step.stages for leaf in stage)):
        finite = torch.isfinite(leaf.detach())
        bad = bad | ~(rows(finite).all(1) if move.problem.batched else finite.all())
    return bad


def nudged(p: Problem, time0: Tensor, time1: Tensor, jumped: Flag, jumps: Flag) -> Field:
    """f for the step from time0 to time1: just after time0 where that is a jump, just before time1 where that is.

    A controller that perturbs takes both ends of every step for jumps.
    """
    if p.controller.perturb:
        jumped = jumps = True
    elif p.stops.jumps is None:
        return p.f

    def f(t: Tensor, y: Leaves) -> Leaves:
        after = (t == time0) & jumped
        before = (t == time1) & jumps & negate(after)
        return p.f(t, y, (after.to(t.dtype) - before.to(t.dtype)) * p.direction)

    vars(f)["dtypes"] = p.f.dtypes  # as a field has them
    return f


def after_step(p: Problem, time1: Tensor, step: Step, jumps: Flag) -> Leaves:
    """The carry for the next step: that of the step, or anew where f jumps."""
    if p.stops.jumps is None or not step.carry:
        return step.carry
    if not p.traced and not (bool(jumps.any()) if isinstance(jumps, Tensor) else jumps):
        return step.carry
    nudge = p.direction * (jumps if isinstance(jumps, Tensor) else 1.0)
    fresh = p.method.restart(lambda t, y: p.f(t, y, nudge), time1, step.y, step.carry)
    return select(jumps, fresh, step.carry)


class Clock:
    """The times to hit, on the host where lanes are there, else in tensors."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.times = p.stops.times.detach()
        self.tracked = differentiable(p.stops.times)
        self.host = self.times.tolist() if p.on_host else None
        self.jumps_there: Any = p.stops.jumps if p.stops.jumps is None or not p.on_host else p.stops.jumps.tolist()
        self.sign: Number = float(p.direction) if p.on_host else p.direction
        self.count = self.times.shape[-1]
        self.last = self._last_of_equal()
        self.leaves = False  # the end of a step is a leaf that asks for its gradient
        self.cut_lanes: Flag = None  # lanes of which the next time to hit is that of an event

    def cut(self, lanes: Flag, stop: Number, t: Number) -> None:
        """Of these lanes: end the step at hand at t, the time of an event, in place of the next time to hit.

        f jumps there only where that is the next time to hit, and f jumps at it.
        """
        if self.host is not None:
            if self.jumps_there is not None:
                self.jumps_there[stop] &= self.host[stop] == t
            self.cut_lanes, self.host[stop] = True, t
            return
        if self.cut_lanes is None:  # the times are the problem's own until then
            self.cut_lanes, self.times = torch.zeros_like(lanes), self.times.clone()
            self.jumps_there = None if self.jumps_there is None else self.jumps_there.clone()
        rows = lanes.nonzero()[:, 0]
        place = rows, stop[rows]
        if self.jumps_there is not None:
            self.jumps_there[place] &= self.times[place] == t[rows]
        self.cut_lanes[rows], self.times[place] = True, t[rows]

    def _last_of_equal(self) -> Number:
        """For each stop the last one at the same time: what ends there moves with the last."""
        if self.p.traced:  # ONNX knows no cumulative minimum
            same = self.times.unsqueeze(-1) == self.times.unsqueeze(-2)
            return self.count - 1 - same.flip(-1).to(torch.uint8).argmax(-1)
        if self.host is None:
            index = torch.arange(self.count, device=self.times.device)
            after = torch.nn.functional.pad(self.times[..., 1:] != self.times[..., :-1], (0, 1), value=True)
            return torch.where(after, index, self.count).flip(-1).cummin(-1).values.flip(-1)
        last = list(range(self.count))
        for i in range(self.count - 2, -1, -1):
            if self.host[i] == self.host[i + 1]:
                last[i] = last[i + 1]
        return last

    def target(self, stop: Number) -> Number:
        if self.host is not None:
            return self.host[stop]
        return self._at(self.times, stop)

    def jumps(self, stop: Number, hit: Flag) -> Flag:
        if self.jumps_there is None:
            return False
        if self.host is not None:
            return hit and self.jumps_there[stop]
        return hit & self._at(self.jumps_there, stop)

    def time(self, stop: Number, hit: Flag, t1: Number, time0: Tensor, t0: Number) -> Tensor:
        """t1 as a tensor: a stop itself where it was hit, else a constant after time0."""
        if not self.tracked or (hit is True and self.cut_lanes):
            time1 = t1 if isinstance(t1, Tensor) else time0.new_tensor(t1)
            return time1.detach().requires_grad_() if self.leaves else time1
        time1 = attached(self.p.stops.times, stop, hit, t1, time0)
        if isinstance(self.cut_lanes, Tensor):
            time1 = torch.where(self.cut_lanes & hit, t1, time1)
        return time1

    def stop_hit(self, stop: Number, hit: Flag) -> Number:
        """`stop`, or -1 where it is the time of an event that a step hits."""
        if isinstance(self.cut_lanes, Tensor):
            return torch.where(self.cut_lanes & hit, -1, stop)
        return -1 if self.cut_lanes and hit else stop

    def next_stop(self, t: Number, stop: Number) -> Number:
        """Index of the first stop after t, the last one of several at that time."""
        if self.host is not None:
            while stop < self.count and (self.host[stop] - t) * self.sign <= 0:
                stop = self.last[stop] + 1
            return self.last[stop] if stop < self.count else stop
        first = ((self.times - t.unsqueeze(-1)) * self.sign.unsqueeze(-1) <= 0).sum(-1)
        return torch.where(first < self.count, self._at(self.last, first), first)

    def passed(self, t: Tensor, stop: Tensor) -> Tensor:
        """`next_stop` for lanes that go to their stop and no further, at a cost that does not grow with the stops."""
        after = stop + 1
        after = torch.where(after < self.count, self._at(self.last, after), self.count)
        there = (self._at(self.times, stop) - t) * self.sign <= 0
        return torch.where(there & (stop < self.count), after, stop)

    def _at(self, values: Tensor, stop: Tensor) -> Tensor:
        """For each lane the value of its stop (of the last one where it has passed them all)."""
        if self.count == 1:
            return values[..., 0]
        return values.gather(-1, stop.clamp(max=self.count - 1).unsqueeze(-1)).squeeze(-1)


def attached(stops: Tensor, stop: Number, hit: Flag, t1: Number, time0: Tensor) -> Tensor:
    """The end of a step with its dependence on ts: on the stop where it was hit, on the start of the step elsewhere."""
    if not isinstance(hit, Tensor):
        return stops[stop] if hit else time0 + (t1 - time0.detach())
    at_stop = stops.gather(-1, stop.clamp(max=stops.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    return torch.where(hit, at_stop, time0 + (t1 - time0.detach()))


def attempt(p: Problem, clock: Clock, s: State) -> tuple[Move, Verdict]:
    """Try one step. Lanes that no longer run take one of length zero."""
    target = clock.target(s.stop)
    left = (target - s.t) * clock.sign
    hit = s.h * p.controller.stretch >= left
    t1 = where(hit, target, s.t + clock.sign * s.h)
    lanes = not p.on_host
    running = True  # as the one lane on the host is, where a step is tried
    if lanes:
        running = s.status == _RUNNING
        t1, hit = torch.where(running, t1, s.t), hit & running
    time1 = clock.time(s.stop, hit, t1, s.time, s.t)
    jumps = clock.jumps(s.stop, hit)
    f = nudged(p, s.time, time1, s.jumped, jumps)
    step = p.method.step(f, s.time, time1, s.y, s.carry)
    if torch.is_grad_enabled():
        with torch.no_grad():
            verdict = judged(p, f, s, t1, time1, step)
    else:
        verdict = judged(p, f, s, t1, time1, step)
    accept = verdict.accept
    if lanes:
        accept, verdict = accept & running, verdict._replace(failed=verdict.failed & running)
    stop = s.stop if clock.cut_lanes is None else clock.stop_hit(s.stop, hit)
    return Move(p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, jumps), verdict


def judged(p: Problem, f: Field, s: State, t1: Number, time1: Tensor, step: Step) -> Verdict:
    """What the controller says to a step from s. Called without grad mode."""
    control = p.controller
    if control.adaptive:
        error = p.method.error(f, s.time, time1, s.y, step)
        ratio = error_ratio(p, s.y, step.y, error)
    else:
        ratio = error_ratio(p, s.y, step.y, None)
    return control.judge(abs(t1 - s.t), ratio, p.method.error_order or 1, s.memory)


def error_ratio(p: Problem, y0: Leaves, y1: Leaves, error: Leaves | None) -> Number:
    """The error in units of the tolerance; infinite where the new state or the error is not finite."""
    if error is None and not p.controller.finite:
        return 0.0 if p.on_host else torch.zeros_like(p.direction)
    if error is None:
        if p.on_host:
            return 0.0 if finite_on_host(y1) else float("inf")
        return torch.where(all_finite(y1, p.batched), 0.0, torch.inf)
    size = tuple(torch.maximum(a.detach().abs(), b.detach().abs()) for a, b in zip(y0, y1, strict=True))
    scaled = []
    for e, top, r, a in zip(error, size, p.rtol, p.atol, strict=True):
        # the same in two operations, and in one
        bound = a + r * top if isinstance(r, Tensor) or isinstance(a, Tensor) else torch.rsub(top, a, alpha=-r)
        # An infinite state makes the bound infinite and error / bound zero or NaN: top - top is then NaN, else zero.
        scaled.append((e.detach() / bound) + (top - top))
    norm = p.controller.norm
    ratio = rms(tuple(scaled), p.batched) if norm is None else measured(norm, tuple(scaled))
    if p.on_host:
        ratio = float(ratio)
        return float("inf") if math.isnan(ratio) else ratio
    return torch.nan_to_num(torch.as_tensor(ratio), nan=torch.inf).to(p.ts.dtype)


def settle(p: Problem, clock: Clock, s: State, move: Move, verdict: Verdict) -> State:
    """The state after a move: accepted lanes go on, rejected ones try again smaller, finished and failed ones stay.

    A step cut short by a stop says little about the size of the next, which is then not below that asked for before.
    """
    accept = move.accept
    if not isinstance(accept, Tensor):
        return _settled(p, clock, s, move, verdict)
    running = s.status == _RUNNING
    t = torch.where(accept, move.t1, s.t)
    h = torch.where(accept & move.hit, torch.where(verdict.h < s.h, s.h, verdict.h), verdict.h)
    time = torch.where(accept, move.time1, s.time)
    memory = tuple(torch.where(running, a, b) for a, b in zip(verdict.memory, s.memory, strict=True))
    jumps = accept & move.jumps
    jumped = jumps | (s.jumped & ~accept) if p.stops.jumps is not None else False
    stop = clock.passed(t, s.stop) if clock.count > 1 else s.stop + (accept & move.hit)
    carry = after_step(p, move.time1, move.step, jumps)
    y, carry = select(accept, move.step.y, s.y), select(accept, carry, s.carry)
    stuck = ~accept & running & too_small(h, t)
    status = torch.where(accept & (stop >= clock.count), int(Status.SUCCESS), s.status)
    status = torch.where(verdict.failed | stuck, int(Status.STEP_UNDERFLOW), status)
    return State(t, time, h, y, carry, memory, stop, jumped, status)


def _settled(p: Problem, clock: Clock, s: State, move: Move, verdict: Verdict) -> State:
    """`settle` for the one lane on the host, which runs."""
    if not move.accept:
        failed = verdict.failed or too_small(verdict.h, s.t)
        status = int(Status.STEP_UNDERFLOW) if failed else s.status
        return s._replace(h=verdict.h, memory=verdict.memory, status=status)
    step, stop, h, carry = move.step, s.stop, verdict.h, move.step.carry
    if move.hit:
        h, stop = max(h, s.h), clock.next_stop(move.t1, stop)
    if move.jumps:
        carry = after_step(p, move.time1, step, True)
    status = int(Status.STEP_UNDERFLOW) if verdict.failed else s.status if stop < clock.count else int(Status.SUCCESS)
    return State(move.t1, move.time1, h, step.y, carry, verdict.memory, stop, move.jumps, status)


def too_small(h: Number, t: Number) -> Flag:
    """Whether a step of size h would be lost in the rounding of t, or at zero is near the smallest of all numbers."""
    return (h <= 4.0 * _EPS * abs(t)) | (h < 1e-307)
