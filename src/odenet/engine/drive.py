"""Drivers: repeat the attempt until every lane has ended."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..control.base import Decision
from ..control.first_step import hairer
from ..core.lanes import Number
from ..core.leaves import Leaves, select
from ..core.status import Status
from ..methods.base import StepInput
from .advance import Clock, Move, State, attempt, nudged, poisons, settle
from .compact import Leaving, Tally, worthwhile
from .observe import Observer
from .problem import Problem

Count = int | Tensor
Trial = Callable[[Problem, Clock, State], tuple[Move, Decision]]


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


class Driver(ABC):
    """Runs a problem to its end and shows every move to the observers.

    attempt: how a step is tried; who wants more of it than the move gives their own, which calls the plain one.
    """

    @abstractmethod
    def run(self, p: Problem, observers: Sequence[Observer], attempt: Trial = attempt) -> Outcome: ...


def start(p: Problem, clock: Clock) -> State:
    """The state at ts[0]: carry, first step size, first stop. Lanes of no length have ended already."""
    time = p.ts[..., 0]
    t: Number = float(time.detach()) if p.on_host else time.detach()
    stop = clock.next_stop(t, 0 if p.on_host else torch.zeros_like(time, dtype=torch.int64))
    moving = stop < clock.count
    idle = not p.traced and not (bool(moving.any()) if isinstance(moving, Tensor) else moving)
    carry = () if idle else p.method.init(p.f, time, p.y0)
    h: Number
    if p.on_host and (idle or not guessed(p)):
        h = p.controller.first(1.0)
    else:
        h = first_size(p, clock, time.detach(), stop, carry) if not idle else p.direction * 0 + 1.0
        h = float(h) if p.on_host else h
    status: Number
    if isinstance(h, Tensor):
        code = torch.where(torch.isfinite(h), int(Status.RUNNING), int(Status.NON_FINITE))
        status = torch.where(moving, code, int(Status.SUCCESS))
        jumped = torch.zeros_like(moving) if p.stops.jumps is not None else False
    else:
        code = Status.RUNNING if math.isfinite(h) else Status.NON_FINITE
        status, jumped = int(code if moving else Status.SUCCESS), False
    with torch.no_grad():
        cache = () if idle else p.method.remember(time.detach(), tuple(x.detach() for x in p.y0))
    rejected = torch.zeros_like(moving) if isinstance(moving, Tensor) else False
    return State(t, time, h, p.y0, carry, p.controller.memory(h), stop, jumped, status, cache, rejected)


def guessed(p: Problem) -> bool:
    """Whether the engine chooses the first step size."""
    return p.controller.adaptive and getattr(p.controller, "first_step", None) is None


@torch.no_grad()
def first_size(p: Problem, clock: Clock, time: Tensor, stop: Number, carry: tuple[Tensor, ...]) -> Tensor:
    lane = torch.ones_like(p.direction)
    if guessed(p):
        target = clock.target(stop)
        span = (target if isinstance(target, Tensor) else time.new_tensor(target)) - time
        y0 = tuple(x.detach() for x in p.y0)
        f0 = tuple(x.detach() for x in carry) if p.method.carry_is_slope else ()
        f0 = f0 or p.f(time, y0)
        lane = hairer(p.f, time, span, y0, f0, p.method.order, p.rtol, p.atol, p.controller.norm)
        lane = torch.where(span == 0, torch.ones_like(lane), lane)
    first = p.controller.first(lane)
    assert isinstance(first, Tensor)
    return first.detach()  # f may have brought a forward-mode tangent in


@final
class Eager(Driver):
    """One attempt after another from Python, with one look at the decision a step."""

    def run(self, p: Problem, observers: Sequence[Observer], attempt: Trial = attempt) -> Outcome:
        return self._lanes(p, observers, attempt) if p.batched else self._joint(p, observers, attempt)

    def _joint(self, p: Problem, observers: Sequence[Observer], attempt: Trial) -> Outcome:
        clock, before = Clock(p), p.f.calls
        s = start(p, clock)
        accepted = attempts = njev = nlu = 0
        while s.status == Status.RUNNING:
            if attempts + p.spent >= p.max_steps:
                s = s._replace(status=int(Status.MAX_STEPS))
                break
            move, decision = attempt(p, clock, s)
            attempts += 1
            accepted += bool(move.accept)
            if (counts := move.step.counts) is not None:
                njev, nlu = njev + int(counts.njev), nlu + int(counts.nlu)
            for observer in observers:
                observer.see(move)
            s = settle(p, clock, s, move, decision)
            if move.ends:
                s = s._replace(status=int(Status.EVENT))
            del move  # its stages are not needed beside those of the next
        return Outcome(s, p.f.calls - before, accepted, attempts - accepted, njev, nlu)

    def _lanes(self, p: Problem, observers: Sequence[Observer], attempt: Trial) -> Outcome:
        clock, before = Clock(p), p.f.calls
        s = start(p, clock)
        nfe = torch.where(s.status == Status.SUCCESS, 0, p.f.calls - before)
        tally, leaving = Tally(nfe, *(torch.zeros_like(nfe) for _ in range(4))), Leaving(p)
        awaited = any(observer.starts_whole for observer in observers)
        while True:
            running = s.status == Status.RUNNING
            left = int(running.sum())
            if not left:
                break
            spent = running & (tally.accepted + tally.rejected + p.spent >= p.max_steps)
            if bool(spent.any()):
                s = s._replace(status=torch.where(spent, int(Status.MAX_STEPS), s.status))
                continue
            if leaving.possible and not awaited and p.f.checked and worthwhile(len(running), left, p.spare):
                fewer = leaving.leave(p, s, tally, running)
                if fewer is not None:
                    p, s, tally = fewer
                    clock = Clock(p)
                    running = s.status == Status.RUNNING
            s, tally = self._one(p, clock, s, tally, running, observers, attempt)
            awaited = awaited and not bool(tally.accepted.any())
        s, tally = leaving.whole(p, s, tally)
        return Outcome(s, *tally)

    @staticmethod
    def _one(
        p: Problem,
        clock: Clock,
        s: State,
        tally: Tally,
        running: Tensor,
        observers: Sequence[Observer],
        attempt: Trial,
    ) -> tuple[State, Tally]:
        """One attempt of all lanes, seen and settled."""
        before, nfe = p.f.calls, tally.nfe
        move, decision = attempt(p, clock, s)
        nfe = nfe + running * (p.f.calls - before - move.polynomial_calls - move.search_calls - move.claim_calls)
        njev, nlu = tally.njev, tally.nlu
        if (counts := move.step.counts) is not None:
            nfe = nfe + running * (counts.nfe - counts.within)
            njev, nlu = njev + running * counts.njev, nlu + running * counts.nlu
        if move.search_calls or move.claim_calls:
            nfe = nfe + move.sought * move.search_calls + move.claimed * move.claim_calls
        if torch.is_grad_enabled():
            move = without_poison(p, move)
        accepted, rejected = tally.accepted + move.accept, tally.rejected + (running & ~move.accept)
        known = bool(move.known_polynomial)
        before = p.f.calls
        for observer in observers:
            observer.see(move)
        seen = p.f.calls - before - (0 if known else move.polynomial_calls)
        if seen or move.polynomial_calls:
            nfe = nfe + move.accept * seen + move.charged * move.polynomial_calls
        before = p.f.calls
        s = settle(p, clock, s, move, decision)
        if isinstance(move.ends, Tensor):
            s = s._replace(status=torch.where(move.ends, int(Status.EVENT), s.status))
        if p.f.calls > before:
            nfe = nfe + (move.accept & move.jumps) * (p.f.calls - before)
        return s, Tally(nfe, accepted, rejected, njev, nlu)


def without_poison(p: Problem, move: Move) -> Move:
    """The move again, with rejected lanes standing still, where a rejected lane has a value that is not finite.

    Autograd would meet that value with a cotangent of zero, and zero times infinity is NaN, also for the parameters.
    """
    if not poisons(move, ~move.accept):
        return move
    time1 = torch.where(move.accept, move.time1, move.time0)
    f = nudged(p, move.time0, time1, move.jumped, move.jumps & move.accept)
    step = p.method.step(StepInput(f, move.time0, time1, move.y, move.carry))
    keep = select(move.accept, step.y, move.y)
    move.time1, move.step = time1, step._replace(y=keep)
    move.forget_polynomial()
    return move
