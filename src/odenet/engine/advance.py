"""State, and one attempt at a step.

Decisions are made on lanes that are Python numbers for a joint solve and (B,) tensors per sample (core/scalars.py), or
tensors without axes for a joint solve that is traced; what the method computes with (`time`) is always a tensor and
stays attached to the caller's ts. The controller sees detached values only: a step size is a constant of the
differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..control.controller import Attempt, Decision, Memory, measured
from ..core.dense import Coefficients
from ..core.leaves import Leaves, select, without_grad
from ..core.norms import all_finite, finite_on_host, rms, rms_on_host
from ..core.random_state import GeneratorStates
from ..core.scalars import Flag, Number, held, some, where
from ..core.status import Status, StepStatus
from ..methods.method import Cache, Counts, Step, StepInput
from .one_sided import nudged
from .planned_steps import Ahead, Planned
from .problem import Problem
from .stop_tracker import Clock

_EPS = 2.0**-52
_RUNNING = int(Status.RUNNING)  # a number: the compiler does not compare tensors with members of an enum


class State(NamedTuple):
    """Where a solve stands.

    t, h: detached time and size of the next attempt. time: t as a tensor, attached to ts. stop: index of the next time
    to hit. jumped: t is a jump time. status: Status codes. cache: of the method. rejected: the last attempt was.
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
    cache: Cache = ()
    rejected: Flag = False


Draws = dict[str, GeneratorStates | None]
"""Of an f that draws random numbers: the states of the generators before a step, and before its dense output.

"step" and "dense"; shared by a move and what is kept of it, as the dense output may be asked for later than that.
"""


@dataclass(slots=True)
class Move:
    """One attempted step, as observers see it. `accept` is a bool, or lanes of booleans.

    stop: the index of the time that it hit; -1: the time of an event, which depends on no time to hit. ends: an event
    ends the solve (of these lanes) with this move. steps: how many it is, where nobody looks at those between.
    sought: lanes in which an event was looked for: they are charged for the polynomial in any case, and
    for `search_calls` further evaluations. claimed: those in which one was found, charged for `claim_calls`.
    graph: the step attached to y, carry, time0 and time1, which are then leaves of a graph; `step` is detached.
    told: what the step was told, where it was an attempt of the loop.
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
    steps: int = 1
    asked: Flag = False
    polynomial_calls: int = 0
    polynomial_counts: Counts | None = None
    sought: Flag = False
    search_calls: int = 0
    claimed: Flag = False
    claim_calls: int = 0
    graph: Step | None = None
    told: StepInput | None = None
    draws: Draws = field(default_factory=dict)
    _polynomial: Coefficients | None = field(default=None, repr=False)

    @property
    def input(self) -> StepInput:
        """What the step was told; as far as its dense output wants it, where it was not an attempt."""
        if self.told is not None:
            return self.told
        f = nudged(self.problem, self.time0, self.time1, self.jumped, self.jumps)
        return StepInput(f, self.time0, self.time1, self.y, self.carry)

    @property
    def charged(self) -> Flag:
        """Lanes that are charged for the polynomial."""
        return self.sought | (self.asked & self.accept)

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
            step = self.step if self.graph is None else self.graph
            again = self.draws.get("dense")
            if p.f.random and again is None:
                self.draws["dense"] = p.f.states()
            grad = self.graph is not None or torch.is_grad_enabled()
            with torch.set_grad_enabled(grad), nullcontext() if again is None else p.f.drawing_from(again):
                self._polynomial, self.polynomial_counts = p.method.counted(self.input, step)
            self.polynomial_calls = p.f.calls - before
            self.step = self.step._replace(stages=())  # nobody else asks for the stages, and they are most of a step
        return self._polynomial

    def forget_polynomial(self) -> None:
        """The step has been replaced: its polynomial is to be computed when somebody asks."""
        self._polynomial = None


def poisons(move: Move, lanes: Tensor) -> bool:
    """Whether a value of the step is not finite in one of these lanes: zeros could not be pulled through its graph."""
    inner = (*move.step.stages, *move.known_polynomial)
    values = [x.detach() for x in (*move.step.y, *move.step.carry, *(leaf for leaves in inner for leaf in leaves))]
    totals: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    for x in values:  # a sum is finite only where all its terms are, and takes less time than a look at each
        key = x.shape, x.dtype
        totals[key] = totals[key] + x if key in totals else x
    if not any(some(~torch.isfinite(total)) for total in totals.values()):
        return False
    return some(lanes & ~all_finite(tuple(values), move.problem.batched))


def after_step(p: Problem, time1: Tensor, step: Step, jumps: Flag) -> Leaves:
    """The carry for the next step: that of the step, or anew where f jumps."""
    if p.stops.jumps is None or not step.carry:
        return step.carry
    if not p.traced and not some(jumps):
        return step.carry
    nudge = p.direction * jumps
    fresh = p.method.restart(lambda t, y: p.f(t, y, nudge), time1, step.y, step.carry)
    return select(jumps, fresh, step.carry)


def cache_after(p: Problem, time1: Tensor, step: Step, jumps: Flag) -> Cache:
    """The cache for the next attempt: that of the step, or that of a first step where f jumps."""
    if p.stops.jumps is None or not step.cache:
        return step.cache
    with torch.no_grad():
        return select(jumps, p.method.remember(time1, step.y), step.cache)


def attempt(p: Problem, clock: Clock, s: State) -> tuple[Move, Decision]:
    """Try one step. Lanes that no longer run take one of length zero."""
    if clock.ahead is not None and not clock.leaves and not clock.cut_lanes:
        planned = clock.ahead.step(s.t, s.time, s.h, s.stop)
        if planned is not None:
            return _foreseen(p, clock, clock.ahead, s, planned)
    target = clock.target(s.stop)
    left = (target - s.t) * clock.sign
    hit = s.h * p.stops.rule.stretch >= left
    lanes = clock.host is None
    if lanes:
        running = s.status == _RUNNING
        t1 = torch.where(running, torch.where(hit, target, s.t + clock.sign * s.h), s.t)
        hit = hit & running
    else:  # the one lane on the host runs, where a step is tried
        running, t1 = None, target if hit else s.t + clock.sign * s.h
    time1 = clock.time(s.stop, hit, t1, s.time, s.t)
    jumps = clock.jumps(s.stop, hit)
    f = p.f if clock.smooth else nudged(p, s.time, time1, s.jumped, jumps)
    at = StepInput(f, s.time, time1, s.y, s.carry, s.cache, clock.tolerances, s.rejected, running)
    step = p.method.step(at)
    decision = _usual(p, clock, step) or decided(p, at, s, t1, step)
    accept = decision.accept
    if lanes:
        accept, decision = accept & running, decision._replace(failed=decision.failed & running)
    stop = s.stop if clock.cut_lanes is None else clock.stop_hit(s.stop, hit)
    move = Move(p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, jumps, told=at)
    return move, decision


def _foreseen(p: Problem, clock: Clock, ahead: Ahead, s: State, planned: Planned) -> tuple[Move, Decision]:
    """`attempt`, of a step whose times are known."""
    more: list[Planned] = []
    if ahead.together and clock.always and not (planned.hit or p.f.random or p.spent):
        more = ahead.to_stop(p.max_steps - ahead.tried)
    if more and clock.always:
        found = _several(p, s, (planned, *more))
        if found is None:  # taken again one by one, to find which
            ahead.one_by_one()
            return attempt(p, clock, s)
        step, (_, t1, hit, stop, time1, _) = found, more[-1]
        move = Move(p, s.t, t1, s.time, time1, s.y, s.carry, step, True, hit, stop, s.jumped, False)
        move.steps += len(more)
        return move, clock.always
    _, t1, hit, stop, time1, span = planned
    step = p.method.planned(p.f, span, s.y, s.carry)
    decision = _usual(p, clock, step) or decided(p, StepInput(p.f, s.time, time1, s.y, s.carry), s, t1, step)
    return Move(p, s.t, t1, s.time, time1, s.y, s.carry, step, decision.accept, hit, stop, s.jumped, False), decision


def _several(p: Problem, s: State, steps: Sequence[Planned]) -> Step | None:
    """The last of these steps; None where one failed. What is not finite stays so in all that come after it."""
    step = Step(s.y, s.carry)
    try:
        for planned in steps:
            step = p.method.planned(p.f, planned.span, step.y, step.carry)
    except Exception:  # of an f that does not bear what is not finite: it comes again, or the true reason before it
        return None
    return step if not p.controller.finite or finite_on_host(step.y) else None


def _usual(p: Problem, clock: Clock, step: Step) -> Decision | None:
    """The decision on a step of which nothing is to be said but that its end is finite, where that is looked at."""
    if clock.always is None or not p.controller.finite:
        return clock.always
    return clock.always if step.status is None and finite_on_host(step.y) else None


def decided(p: Problem, at: StepInput, s: State, t1: Number, step: Step) -> Decision:
    """What the controller decides on a step from s."""
    control, order, wish = p.controller, p.method.error_order or 1, step.wish
    with without_grad():
        error = p.method.error(at, step) if control.adaptive else None
        ratio = error_ratio(p, s.y, step.y, error)
        if step.status is not None:
            ratio = where(held(step.status == StepStatus.OK, s.t), ratio, math.inf)
        if step.order is not None:
            order = held(step.order, s.t)
        if wish is not None:
            wish = wish._replace(most=held(wish.most, s.t), hold=held(wish.hold, s.t))
        return control.decide(Attempt(abs(t1 - s.t), ratio, order, wish, s.rejected), s.memory)


def error_ratio(p: Problem, y0: Leaves, y1: Leaves, error: Leaves | None) -> Number:
    """The error in units of the tolerance; infinite where the new state or the error is not finite."""
    if error is None and not p.controller.finite:
        return 0.0 if p.on_host else torch.zeros_like(p.direction)
    if error is None:
        if p.on_host:
            return 0.0 if finite_on_host(y1) else float("inf")
        return torch.where(all_finite(y1, p.batched), 0.0, torch.inf)
    scaled: list[Tensor] = []
    for e, before, after, r, a in zip(error, y0, y1, p.rtol, p.atol, strict=True):
        top = torch.maximum(before.detach().abs(), after.detach().abs())
        # the same in two operations, and in one
        bound = a + r * top if isinstance(r, Tensor) or isinstance(a, Tensor) else torch.rsub(top, a, alpha=-r)
        # An infinite state makes the bound infinite and error / bound zero or NaN: top - top is then NaN, else zero.
        scaled.append((e.detach() / bound) + (top - top))
    norm = p.controller.norm
    if p.on_host:
        ratio = rms_on_host(tuple(scaled)) if norm is None else float(measured(norm, tuple(scaled)))
        return math.inf if math.isnan(ratio) else ratio
    ratio = rms(tuple(scaled), p.batched) if norm is None else measured(norm, tuple(scaled))
    return torch.nan_to_num(torch.as_tensor(ratio), nan=torch.inf).to(p.ts.dtype)


def settle(p: Problem, clock: Clock, s: State, move: Move, decision: Decision) -> State:
    """The state after a move: accepted lanes go on, rejected ones try again smaller, finished and failed ones stay.

    A step cut short by a stop says little about the size of the next, which is then not below that asked for before.
    """
    accept = move.accept
    if not isinstance(accept, Tensor):
        return _settled(p, clock, s, move, decision)
    running = s.status == _RUNNING
    t = torch.where(accept, move.t1, s.t)
    h = torch.where(accept & move.hit, torch.where(decision.h < s.h, s.h, decision.h), decision.h)
    time = torch.where(accept, move.time1, s.time)
    memory = tuple(torch.where(running, a, b) for a, b in zip(decision.memory, s.memory, strict=True))
    jumps = accept & move.jumps
    jumped = jumps | (s.jumped & ~accept) if p.stops.jumps is not None else False
    stop = clock.passed(t, s.stop) if clock.count > 1 else s.stop + (accept & move.hit)
    carry, cache = after_step(p, move.time1, move.step, jumps), cache_after(p, move.time1, move.step, jumps)
    y, carry = select(accept, move.step.y, s.y), select(accept, carry, s.carry)
    stuck = ~accept & running & too_small(h, t)
    status = torch.where(accept & (stop >= clock.count), int(Status.SUCCESS), s.status)
    status = torch.where(decision.failed | stuck, _given_up(move.step), status)
    if move.step.wish is not None:
        # of a method that gives up: the size at which it did, for the message
        h = torch.where(stuck & (h == 0), (move.t1 - s.t).abs(), h)
    return State(t, time, h, y, carry, memory, stop, jumped, status, cache, running & ~accept)


def _settled(p: Problem, clock: Clock, s: State, move: Move, decision: Decision) -> State:
    """`settle` for the one lane on the host, which runs."""
    step, memory = move.step, decision.memory
    if not move.accept:
        failed = decision.failed or too_small(decision.h, s.t)
        status = int(_given_up(step)) if failed else s.status
        h = decision.h or abs(move.t1 - s.t)  # of a method that gives up: the size at which it did, for the message
        return s._replace(h=h, memory=memory, status=status, cache=step.cache, rejected=True)
    stop, h, carry, cache = s.stop, decision.h, step.carry, step.cache
    if move.hit:
        h, stop = max(h, s.h), clock.next_stop(move.t1, stop)
    if move.jumps:
        carry, cache = after_step(p, move.time1, step, True), cache_after(p, move.time1, step, True)
    status = int(_given_up(step)) if decision.failed else s.status if stop < clock.count else int(Status.SUCCESS)
    return State(move.t1, move.time1, h, step.y, carry, memory, stop, move.jumps, status, cache)


def _given_up(step: Step) -> int | Tensor:
    """The status of a solve that gives up at this step."""
    if step.status is None:
        return int(Status.STEP_UNDERFLOW)
    unsolved = (step.status == StepStatus.NONLINEAR_FAILED) | (step.status == StepStatus.SINGULAR)
    return torch.where(unsolved, int(Status.NONLINEAR_FAILED), int(Status.STEP_UNDERFLOW))


def too_small(h: Number, t: Number) -> Flag:
    """Whether a step of size h would be lost in the rounding of t, or at zero is near the smallest of all numbers."""
    return (h <= 4.0 * _EPS * abs(t)) | (h < 1e-307)
