"""Where an event ends a solve: the first root of its function on the dense output of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..control.base import Verdict
from ..core.dense import evaluate
from ..core.leaves import Leaves, spread
from ..core.roots import first_root, nodes
from .advance import Clock, Move, State, nudged
from .drive import Attempt
from .problem import Problem


@dataclass(frozen=True)
class Events:
    """values: (t, y) -> the values (m,) of all event functions. directions: +1, -1 or 0 for each."""

    values: Callable[[Tensor, Leaves], Tensor]
    directions: list[int]


@final
class Seeker:
    """Looks for an event in each step that was accepted, and takes the one it lies in again, to end at the event.

    Roots are those of the method's own dense output. found: time and number of the first event.
    """

    def __init__(self, p: Problem, events: Events, attempt: Attempt) -> None:
        self.events, self.plain = events, attempt
        self.found: tuple[float, int] | None = None
        with torch.no_grad():
            self.last = self._values(p.ts[0], p.y0)
        self.signs = [math.copysign(1.0, v) if v != 0.0 else 0.0 for v in self.last]

    def attempt(self, p: Problem, clock: Clock, s: State) -> tuple[Move, Verdict]:
        move, verdict = self.plain(p, clock, s)
        if move.accept and self.found is None:
            self.found = self._look(p, move)
            if self.found is not None:
                clock.cut(s.stop, self.found[0])
                move, verdict = self.plain(p, clock, s)
        move.ends = self.found is not None and bool(move.accept) and bool(move.hit)
        return move, verdict

    @torch.no_grad()
    def _look(self, p: Problem, move: Move) -> tuple[float, int] | None:
        f = nudged(p, move.time0, move.time1, move.jumped, move.jumps)
        coefficients = p.method.polynomial(f, move.time0, move.time1, move.y, move.step)
        length = move.time1 - move.time0

        def state(theta: list[float]) -> tuple[Tensor, Leaves]:
            x = move.time0.new_tensor(theta)
            over = tuple(spread(x, y.expand(len(theta), *y.shape)) for y in move.y)
            return move.time0 + x * length, evaluate(move.y, coefficients, over)

        inner = list(nodes()[1:-1])
        times, states = state(inner)
        samples = [self.last]
        samples += [self._values(times[i], tuple(y[i] for y in states)) for i in range(len(inner))]
        samples.append(self._values(move.time1, move.step.y))
        found: list[tuple[float, int]] = []
        for k, direction in enumerate(self.events.directions):
            column = [values[k] for values in samples]
            sign = self.signs[k] or next((math.copysign(1.0, v) for v in column if v != 0.0), 0.0)
            if sign == 0.0:
                continue

            def one(x: float, k: int = k) -> float:
                time, at = state([x])
                return self._values(time[0], tuple(y[0] for y in at))[k]

            root = first_root(one, column, direction, sign)
            if root is not None:
                found.append((root.where, k))
            self.signs[k] = math.copysign(1.0, column[-1]) if column[-1] != 0.0 else sign
        self.last = samples[-1]
        if not found:
            return None
        where, which = min(found)
        # where a step ends at the event it is no step any more
        least = 8 * 2.0**-52 * max(abs(move.t0), abs(move.t1))
        sign = 1.0 if move.t1 >= move.t0 else -1.0
        return move.t0 + sign * max(where * abs(move.t1 - move.t0), least), which

    def _values(self, t: Tensor, y: Leaves) -> list[float]:
        values = self.events.values(t, y).reshape(-1).tolist()
        if len(values) != len(self.events.directions):
            raise ValueError(f"event functions returned {len(values)} values, and {len(self.events.directions)} before")
        return values
