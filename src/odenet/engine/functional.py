"""The loop inside `torch.func.vmap`: every lane in tensors, and no value of one lane decides for another.

All that is vmapped takes its attempts side by side, each with its own steps, accepted or rejected by `where`. The host
looks through the transforms at what holds for any lane or for all: whether to go on, and what can be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.dense import evaluate, slope_at_end
from ..core.leaves import Leaves, differentiable, select, spread
from ..core.status import Status
from ..core.transforms import some
from .advance import Clock, Move, attempt, settle
from .drive import Driver, Outcome, Trial, start, without_poison
from .observe import Observer
from .problem import Problem


@final
class Functional(Driver):
    """One attempt after another from Python, as long as any lane runs."""

    def run(self, p: Problem, observers: Sequence[Observer], attempt: Trial = attempt) -> Outcome:
        clock, before, given = Clock(p), p.f.calls, p.y0
        s = start(p, clock)
        nfe = torch.where(s.status == Status.SUCCESS, 0, p.f.calls - before)
        accepted, rejected = torch.zeros_like(nfe), torch.zeros_like(nfe)
        stuck = s.status == Status.NON_FINITE
        if torch.is_grad_enabled() and some(stuck):
            p = elsewhere(p, stuck)
            s = start(p, clock)
            s = s._replace(status=torch.where(stuck, int(Status.NON_FINITE), s.status))
        for _ in range(p.max_steps):
            running = s.status == Status.RUNNING
            if not some(running):
                break
            before = p.f.calls
            move, decision = attempt(p, clock, s)
            nfe = nfe + running * (p.f.calls - before)
            accepted, rejected = accepted + move.accept, rejected + (running & ~move.accept)
            if not some(move.accept):  # nothing of the move is used, and so nothing of it stays in a graph
                move.time1, move.step = move.time0, move.step._replace(y=move.y, carry=move.carry)
            else:
                move = without_poison(p, move)
                before = p.f.calls
                for observer in observers:
                    observer.see(move)
                seen = p.f.calls - before - move.polynomial_calls
                nfe = nfe + move.accept * (seen + move.polynomial_calls * move.asked)
            before = p.f.calls
            s = settle(p, clock, s, move, decision)
            nfe = nfe + (move.accept & move.jumps) * (p.f.calls - before)
            del move
        status = torch.where(s.status == Status.RUNNING, int(Status.MAX_STEPS), s.status)
        if given is not p.y0:
            s = s._replace(y=select(stuck, given, s.y))
        return Outcome(s._replace(status=status), nfe, accepted, rejected)


def elsewhere(p: Problem, stuck: Tensor) -> Problem:
    """The problem with ones in the place of where lanes that fail at ts[0] start, and of what is not finite in args.

    They take no step. Autograd would meet what is not finite there with zeros, as in `without_poison`.
    """
    lane = stuck.any() if p.batched else stuck
    f = p.f.with_each_arg(lambda x: torch.where(lane & ~torch.isfinite(x), 1.0, x))
    return replace(p, f=f, y0=select(stuck, tuple(torch.ones_like(y) for y in p.y0), p.y0))


@final
class Lanewise(Observer):
    """The solution at every output time: each output is asked for by the lanes whose step reached it.

    ys: leaves for each output time, (...) or (B, ...). evaluations: what the outputs at ts[0] took.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.moving, self.evaluations = p, differentiable(p.ts), 0
        self.times = p.ts.unbind(-1)
        start = self.times[0]
        first = [(t - start).detach() * p.direction <= 0 for t in self.times]
        slope: Leaves | None = None
        if self.moving and len(first) > 1 and some(first[1]):
            slope, self.evaluations = p.f(start, p.y0), 1
        self.values: list[Leaves] = []
        for t, here in zip(self.times, first, strict=True):
            y = p.y0
            if slope is not None:  # an output there moves with its own time, against ts[0]
                y = tuple(a + k * spread(torch.where(here, t - start, 0.0), a) for a, k in zip(y, slope, strict=True))
            missing = tuple(torch.full_like(x, torch.nan).detach() for x in y)
            self.values.append(select(here, y, missing))

    def see(self, move: Move) -> None:
        sign = self.p.direction
        t0, t1 = move.time0.detach(), move.time1.detach()
        for j, time in enumerate(self.times):
            now = time.detach()
            due = move.accept & ((now - t1) * sign <= 0) & ((now - t0) * sign > 0)
            if some(due):
                self.values[j] = select(due, self._output(move, time, due), self.values[j])

    def _output(self, move: Move, time: Tensor, due: Tensor) -> Leaves:
        """The solution at `time` for the lanes in `due`, the end of the step for the others; at the end exactly y."""
        at_end = time.detach() == move.time1.detach()
        inside = due if self.moving else due & ~at_end
        if not some(inside):
            return move.step.y
        length = torch.where(due, move.time1 - move.time0, 1.0)
        coefficients = move.polynomial(inside)
        theta = torch.where(due, time - move.time0, 0.0) / length
        values = evaluate(move.y, coefficients, tuple(spread(theta, y) for y in move.y))
        y1 = move.step.y
        if self.moving:  # y1 moves with the end of the step; an output there moves with its own time
            late = torch.where(due & at_end, (time - move.time1) / length.detach(), 0.0)
            y1 = tuple(y + k * spread(late, y) for y, k in zip(y1, slope_at_end(coefficients), strict=True))
        return select(at_end | ~due, y1, values)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...)."""
        return tuple(torch.stack(list(x), int(self.p.batched)) for x in zip(*self.values, strict=True))
