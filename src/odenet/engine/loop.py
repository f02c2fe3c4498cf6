"""The loop: repeat the attempt until every sample has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control.controller import Decision
from ..control.first_step import hairer
from ..core.leaves import Leaves, constants, select, without_grad
from ..core.scalars import Flag, Number, constant, filled, held, isfinite, some, where
from ..core.status import Status
from .advance import Clock, Move, State, attempt, poisons, settle
from .compaction import Leaving
from .counters import Tally
from .observer import Observer
from .one_sided import nudged
from .problem import Problem
from .vmapped import elsewhere

Count = int | Tensor
Trial = Callable[[Problem, Clock, State], tuple[Move, Decision]]
_plain = attempt


@dataclass
class Found:
    """The events that ended a solve, for each of its L lanes (one, where they share their steps).

    t: their times, (L,). value: which of the m values of the event functions, (L,), -1 where there was none. signs:
    those of all values just after, (L, m). zero: what the value that crossed is to be taken for zero up to, (L,). peak:
    how large it was since the start, (L,). jumped: it has jumped across zero, so its value there says nothing, (L,).
    bends: f jumps there, (L,). onwards: what leads from the state there to one just past it on the solution.
    """

    t: Tensor
    value: Tensor
    signs: Tensor
    zero: Tensor
    peak: Tensor
    jumped: Tensor
    bends: Tensor
    onwards: Leaves


@dataclass
class Outcome:
    """The end of a solve. Counts are ints, or (B,) tensors per sample. found: the events that ended it.

    njev, nlu: Jacobians and factorisations of an implicit method.
    """

    state: State
    nfe: Count
    accepted: Count
    rejected: Count
    njev: Count = 0
    nlu: Count = 0
    found: Found | None = None


def start(p: Problem, clock: Clock) -> State:
    """The state at ts[0]: carry, first step size, first stop. Lanes of no length have ended already."""
    time = p.ts[..., 0]
    now = time.detach()
    t = held(now, clock.sign)
    stop = clock.next_stop(t, 0 if p.on_host else torch.zeros_like(now, dtype=torch.int64))
    moving = stop < clock.count
    idle = not p.traced and not some(moving)
    carry = () if idle else p.method.init(p.f, time, p.y0)
    h = filled(t, 1.0) if idle else first_size(p, clock, now, stop, carry)
    status = where(isfinite(h), int(Status.RUNNING), int(Status.NON_FINITE))
    status = where(moving, status, int(Status.SUCCESS))
    with without_grad():
        cache = () if idle else p.method.remember(now, constants(p.y0))
    nowhere = moving & False
    jumped = nowhere if p.stops.jumps is not None else False
    return State(t, time, h, p.y0, carry, p.controller.memory(h), stop, jumped, status, cache, nowhere)


def guessed(p: Problem) -> bool:
    """Whether the engine guesses the first step size."""
    return p.controller.adaptive and getattr(p.controller, "first_step", None) is None


def first_size(p: Problem, clock: Clock, time: Tensor, stop: Number, carry: Leaves) -> Number:
    """The first step size: the controller's, from the engine's guess where it has none of its own."""
    control, h = p.controller, filled(clock.sign, 1.0)
    if guessed(p):
        span = clock.target(stop) - held(time, clock.sign)
        y0 = constants(p.y0)
        f0 = constants(carry) if p.method.carry_is_slope else ()
        with without_grad():
            f0 = f0 or p.f(time, y0)
            h = hairer(p.f, time, span, y0, f0, p.method.order, p.rtol, p.atol, control.norm)
        h = where(span == 0, 1.0, h)
    return constant(control.first(h))  # f may have brought a forward-mode tangent in


def run(p: Problem, observers: Sequence[Observer], attempt: Trial = attempt) -> Outcome:
    """Repeat the attempt until every sample has ended, and show each to the observers.

    attempt: how a step is tried; who wants more of it than the move gives their own, which calls the plain one.
    The one lane of a joint solve is in Python numbers, so that there is one look at the error a step. Lanes in tensors
    take their attempts side by side, and are accepted or rejected by `where`; inside `torch.func.vmap` the host looks
    through the transforms at what holds for any of them.
    """
    clock, before, y0 = Clock(p), p.f.calls, p.y0
    if clock.ahead is not None:
        clock.ahead.together = attempt is _plain and not any(observer.single for observer in observers)
    s = start(p, clock)
    stuck = s.status == Status.NON_FINITE
    tally = Tally.of(s.status, p.f.calls - before)
    if p.traced and torch.is_grad_enabled() and some(stuck):
        p = elsewhere(p, stuck)
        s = start(p, clock)
        s = s._replace(status=where(stuck, int(Status.NON_FINITE), s.status))
    leaving, awaited = Leaving(p), any(observer.starts_whole for observer in observers)
    while some(running := s.status == Status.RUNNING):
        spent = running & (tally.accepted + tally.rejected + p.spent >= p.max_steps)
        if some(spent):
            s = s._replace(status=where(spent, int(Status.MAX_STEPS), s.status))
            continue
        if leaving.possible and not awaited and p.f.checked and leaving.due(running, p.spare):
            fewer = leaving.leave(p, s, tally, running)
            if fewer is not None:
                p, s, tally = fewer
                clock, running = Clock(p), s.status == Status.RUNNING
        s, tally = _turn(p, clock, s, tally, running, observers, attempt)
        awaited = awaited and not some(tally.accepted > 0)
    s, tally = leaving.whole(p, s, tally)
    if y0 is not p.y0 and p.traced:
        s = s._replace(y=select(stuck, y0, s.y))
    return Outcome(s, *tally)


def _turn(
    p: Problem, clock: Clock, s: State, tally: Tally, running: Flag, observers: Sequence[Observer], attempt: Trial
) -> tuple[State, Tally]:
    """One attempt, seen and settled."""
    before = p.f.calls
    move, decision = attempt(p, clock, s)
    tried, known = p.f.calls - before, bool(move.known_polynomial)
    if clock.host is None and (p.traced or torch.is_grad_enabled()):
        if some(move.accept):
            move = without_poison(p, move)
        else:  # nothing of it is used, and so nothing of it stays in a graph
            move.time1, move.step = move.time0, move.step._replace(y=move.y, carry=move.carry)
    before = p.f.calls
    for observer in observers:
        observer.see(move)
    seen, before = p.f.calls - before, p.f.calls
    s = settle(p, clock, s, move, decision)
    if move.ends is not False:
        s = s._replace(status=where(move.ends, int(Status.EVENT), s.status))
    return s, tally.after(p, move, running, s.rejected, tried, seen, p.f.calls - before, known)


def without_poison(p: Problem, move: Move) -> Move:
    """The move again, with rejected lanes standing still, where a rejected lane has a value that is not finite.

    Autograd would meet that value with a cotangent of zero, and zero times infinity is NaN, also for the parameters.
    """
    if not poisons(move, ~move.accept):
        return move
    time1 = torch.where(move.accept, move.time1, move.time0)
    f = nudged(p, move.time0, time1, move.jumped, move.jumps & move.accept)
    step, tried = p.method.step(move.input._replace(f=f, t1=time1)), move.step
    keep = select(move.accept, step.y, move.y)
    move.time1, move.step = time1, tried._replace(y=keep, carry=step.carry, stages=step.stages)
    move.forget_polynomial()
    return move
