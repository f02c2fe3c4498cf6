"""Solves inside `torch.func.vmap`: every lane in tensors, and no value of one lane decides for another."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.dense import evaluate, slope_at_end
from ..core.leaves import Leaves, differentiable, select, spread
from ..core.transforms import some
from .advance import Move
from .observe import Observer
from .problem import Problem


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
