"""The loop as one operator of a graph: what `torch.compile` and `torch.export` of the caller's own model see.

The steps are found first, detached from all graphs; where a gradient is wanted they are then taken again, known, by a
second loop that PyTorch differentiates. That loop has no rejected attempts, whose values may not be finite and would
poison the gradient, and nothing of the step control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves
from ..core.status import Status
from ..methods.base import Method, Step, StepInput
from .advance import Clock, Move, State, after_step, attempt, settle
from .clock import attached
from .loop import start
from .one_sided import nudged
from .outputs import blank, due, filled
from .problem import Problem

Carried = tuple[Tensor, ...]
_RUNNING, _SUCCESS = int(Status.RUNNING), int(Status.SUCCESS)


class Found(NamedTuple):
    """A solve without a graph.

    y: the last state. ys: (T, ...), or () where they were not asked for. ends: end of each accepted step, (max_steps,),
    or () likewise; `accepted` of them hold. extra: what `more` summed up.
    """

    y: Leaves
    t: Tensor
    status: Tensor
    accepted: Tensor
    rejected: Tensor
    ys: Leaves
    ends: tuple[Tensor, ...]
    extra: Leaves


More = Callable[[Move, Leaves], Leaves]
"""Adds to the leaves what an attempt brings."""


def loop(cond: Callable[..., Tensor], body: Callable[..., Carried], carried: Carried) -> Carried:
    # imported here: the package loads without the compiler
    from torch._higher_order_ops.while_loop import while_loop

    found: Any = while_loop(cond, body, tuple(x.clone() for x in carried))
    return tuple(found)


def find(p: Problem, outputs: bool, ends: bool, more: More | None = None, extra: Leaves = ()) -> Found:
    """Solve p, traced and detached."""
    p = apart(p)
    clock = Clock(p)
    s = start(p, clock)
    n, m, k = len(s.y), len(s.carry), len(s.memory)
    zero = torch.zeros_like(s.stop)
    ys = blank(p, _moving(p)) if outputs else ()
    tape = (p.ts[:1].repeat(p.max_steps),)
    tape = tape if ends else ()
    jumps = p.stops.jumps is not None
    head = (s.t, s.h, s.stop, s.status, zero, zero, s.rejected, *((s.jumped,) if jumps else ()))

    def cond(t: Tensor, h: Tensor, stop: Tensor, status: Tensor, accepted: Tensor, rejected: Tensor, *_: Tensor) -> Any:
        return (status == _RUNNING) & (accepted + rejected < p.max_steps)

    def body(*carried: Tensor) -> Carried:
        t, h, stop, status, accepted, rejected, last_rejected, *rest = carried
        jumped = rest.pop(0) if jumps else False
        y, rest = tuple(rest[:n]), rest[n:]
        carry, rest = tuple(rest[:m]), rest[m:]
        memory, rest = tuple(rest[:k]), rest[k:]
        ys, rest = tuple(rest[: n * outputs]), rest[n * outputs :]
        tape, rest = tuple(rest[:ends]), rest[ends:]
        now = State(t, t, h, y, carry, memory, stop, jumped, status, (), last_rejected)
        move, decision = attempt(p, clock, now)
        after = settle(p, clock, now, move, decision)
        if outputs:
            ys = filled(p, move, due(p, move), ys)
        if ends:
            here = accepted.view(1)  # a rejected attempt writes what the next one overwrites
            tape = (tape[0].scatter(0, here, move.t1.view(1)),)
        rest = more(move, tuple(rest)) if more is not None else tuple(rest)
        counts = (accepted + move.accept, rejected + ~move.accept)
        head = (after.t, after.h, after.stop, after.status, *counts, after.rejected)
        head = (*head, *((after.jumped,) if jumps else ()))
        return fresh((*head, *after.y, *after.carry, *after.memory, *ys, *tape, *rest), carried)

    out = loop(cond, body, (*head, *s.y, *s.carry, *s.memory, *ys, *tape, *extra))
    t, _, _, status, accepted, rejected, _, *rest = out
    rest = rest[jumps:]
    status = torch.where(status == _RUNNING, int(Status.MAX_STEPS), status)
    y, rest = tuple(rest[:n]), rest[n + m + k :]
    ys, rest = tuple(rest[: n * outputs]), rest[n * outputs :]
    return Found(y, t, status, accepted, rejected, ys, tuple(rest[:ends]), tuple(rest[ends:]))


def apart(p: Problem) -> Problem:
    """The same problem, with times that share no memory: the operator allows no aliases in what its body sees."""
    jumps = p.stops.jumps
    stops = replace(p.stops, times=p.stops.times.clone(), jumps=None if jumps is None else jumps.clone())
    return replace(p, ts=p.ts.clone(), stops=stops)


def fresh(new: Carried, old: Carried) -> Carried:
    """Of the dtype that they had, and never a tensor that was given: the operator allows no aliases."""
    return tuple(a.clone() if a is b else a.to(b.dtype) for a, b in zip(new, old, strict=True))


def plan(p: Problem) -> Problem:
    """A problem whose steps are those of p where no error decides them, and which evaluates nothing."""
    control = copy.copy(p.controller)
    control.finite = False
    return replace(p, y0=(), method=Idle(), controller=control)


@final
class Idle(Method):
    """Steps that move nothing."""

    name, order, error_order = "idle", 1, None

    def step(self, at: StepInput) -> Step:
        return Step(())

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        return ()


def take(p: Problem, found: Found) -> tuple[Leaves, Leaves]:
    """y1 and ys of the steps that `found` has, by a loop that is differentiated."""
    p = apart(p)
    clock, n = Clock(p), len(p.y0)
    time = p.ts[0]
    carry = p.method.init(p.f, time, p.y0)
    m, jumps = len(carry), p.stops.jumps is not None
    inner = len(p.ts) > 2
    ys = blank(p, _moving(p)) if inner else ()
    (ends,) = found.ends
    first = torch.zeros_like(found.accepted)
    jumped0 = (torch.zeros_like(found.status, dtype=torch.bool),) if jumps else ()

    def cond(i: Tensor, *_: Tensor) -> Tensor:
        # at least once, if for a step of no length: with no turns at all the operator's gradients are wrong
        return i < found.accepted.clamp(min=1)

    def body(*carried: Tensor) -> Carried:
        i, time0, *rest = carried
        jumped = rest.pop(0) if jumps else False
        y, rest = tuple(rest[:n]), rest[n:]
        carry, ys = tuple(rest[:m]), tuple(rest[m:])
        t1 = ends.gather(0, i.view(1)).view(())
        # which stop it hit is seen from the time
        match = p.stops.times.detach() == t1
        hit = match.any()
        stop = clock.count - 1 - match.flip(0).to(torch.int64).argmax()
        time1 = attached(p.stops.times, stop, hit, t1, time0) if clock.tracked else t1
        jump = clock.jumps(stop, hit)
        f = nudged(p, time0, time1, jumped, jump)
        step = p.method.step(StepInput(f, time0, time1, y, carry))
        accept = torch.ones_like(hit)
        t0 = time0.detach()
        move = Move(p, t0, t1, time0, time1, y, carry, step, accept, hit, stop, jumped, jump)
        ys = filled(p, move, due(p, move), ys) if inner else ys
        after = after_step(p, time1, step, jump) if jumps else step.carry
        after = tuple(x.clone() for x in after)  # f may give back a part of its y
        return fresh((i + 1, time1, *((jump,) if jumps else ()), *step.y, *after, *ys), carried)

    live = [x for x in (*p.y0, *carry, p.ts, p.stops.times, *p.f(time, p.y0)) if x.requires_grad]
    anchor = live[0].reshape(-1)[0]
    anchor = anchor.real if anchor.is_complex() else anchor
    y0, carry, ys = (_differentiated(xs, anchor) for xs in (p.y0, carry, ys))
    (time,) = _differentiated((time,), anchor) if clock.tracked else (time,)
    out = loop(cond, body, (first, time, *jumped0, *y0, *carry, *ys))
    rest = out[2 + jumps :]
    y1 = tuple(rest[:n])
    ok = found.status == _SUCCESS
    y1 = tuple(torch.where(ok, y, torch.nan) for y in y1)
    ys = tuple(rest[n + m :]) if inner else tuple(torch.stack([a, b]) for a, b in zip(p.y0, y1, strict=True))
    return y1, ys


def _differentiated(leaves: Leaves, anchor: Tensor) -> Leaves:
    """The same values, all attached to a graph: the operator gives no gradient to what begins as a constant."""
    never = torch.zeros_like(anchor, dtype=torch.bool)
    return tuple(x if x.requires_grad else torch.where(never, anchor.to(x.dtype), x) for x in leaves)


def _moving(p: Problem) -> Leaves | None:
    """f at ts[0], where outputs there move with their times."""
    return p.f(p.ts[0], p.y0) if p.ts.requires_grad else None
