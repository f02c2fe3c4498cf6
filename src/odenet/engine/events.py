"""Where an event ends a solve: the first root of its function on the dense output of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, spread
from ..core.roots import first_root, nodes
from .advance import Move
from .callbacks import Callbacks
from .drive import Driver, Outcome
from .integrate import Request, integrate
from .observe import Observer
from .problem import Problem
from .record import Record

Condition = Callable[[Tensor, Leaves], Tensor]
"""(t, y) -> the values (m,) of all event functions."""


@dataclass
class Found:
    """t: the time of the first event, None where there was none. which: its number. outcome: of the search."""

    t: float | None
    which: int
    outcome: Outcome


@torch.no_grad()
def search(
    p: Problem, driver: Driver, condition: Condition, directions: list[int], callbacks: Callbacks | None = None
) -> Found:
    """The first event of a joint solve, which goes on to the end of ts where there is none.

    directions: +1, -1 or 0 for each event function. Roots are looked for on the method's own dense output.
    """
    q = p.detached()
    q = replace(q, method=q.method.interpolated("own"))
    watch = Watch(q, condition, directions)
    outcome = integrate(q, driver, Request(callbacks=callbacks), Record(q), (watch,)).outcome
    return Found(watch.t, watch.which, outcome)


@final
class Watch(Observer):
    """Ends the solve with the first step that has an event in it."""

    def __init__(self, p: Problem, condition: Condition, directions: list[int]) -> None:
        self.p, self.condition, self.directions = p, condition, directions
        self.t: float | None = None
        self.which = -1
        self.last = self._values(p.ts[0], p.y0)
        self.signs = [math.copysign(1.0, v) if v != 0.0 else 0.0 for v in self.last]

    def see(self, move: Move) -> bool:
        if not move.accept:
            return False
        coefficients = move.polynomial()

        def state(theta: list[float]) -> tuple[Tensor, Leaves]:
            x = move.time0.new_tensor(theta)
            spread_out = tuple(spread(x, y.expand(len(theta), *y.shape)) for y in move.y)
            return move.time0 + x * (move.time1 - move.time0), evaluate(move.y, coefficients, spread_out)

        inner = list(nodes()[1:-1])
        times, states = state(inner)
        samples = [self.last]
        samples += [self._values(times[i], tuple(y[i] for y in states)) for i in range(len(inner))]
        samples.append(self._values(move.time1, move.step.y))
        found: list[tuple[float, int]] = []
        for k, direction in enumerate(self.directions):
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
            end = column[-1]
            self.signs[k] = math.copysign(1.0, end) if end != 0.0 else sign
        self.last = samples[-1]
        if not found:
            return False
        where, self.which = min(found)
        self.t = float(move.time0) + where * (float(move.time1) - float(move.time0))
        return True

    def _values(self, t: Tensor, y: Leaves) -> list[float]:
        values = self.condition(t, y).reshape(-1).tolist()
        if len(values) != len(self.directions):
            raise ValueError(f"an event function returned {len(values)} values, and {len(self.directions)} before")
        return values
