"""The one explicit Runge-Kutta step."""

from __future__ import annotations

from typing import final

from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, along, scale, weighted
from .base import Field, Method, Step
from .tableau import Tableau


@final
class ExplicitRK(Method):
    """An explicit Runge-Kutta method given by its tableau. Hairer, Norsett & Wanner I, (II.1.8) and II.4."""

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.name, self.order, self.stages = tableau.name, tableau.order, tableau.stages
        embedded = tableau.embedded_order
        self.error_order = None if embedded is None else min(tableau.order, embedded) + 1

    def __repr__(self) -> str:
        return f"ExplicitRK({self.name})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return f(t, y) if self.tableau.fsal else ()

    def step(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> Step:
        table = self.tableau
        y1, stages = self._stages(f, t0, t1, y, carry)
        if table.fsal:
            stages.append(f(t1, y1))
        error = None if table.error is None else scale(t1 - t0, weighted(table.error, stages))
        return Step(y1, stages[-1] if table.fsal else (), error, tuple(stages))

    def advance(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves) -> Leaves:
        return self._stages(f, t0, t1, y, ())[0]

    def _stages(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> tuple[Leaves, list[Leaves]]:
        """The new state, and the slopes that it is made of: all, but for the last of a first-same-as-last method."""
        table, dt = self.tableau, t1 - t0
        count = table.stages - table.fsal
        stages = [carry or f(t0, y)]
        for c, row in zip(table.c[1:count], table.a[1:count], strict=True):
            stages.append(f(_at(t0, t1, dt, c), along(y, dt, weighted(row, stages))))
        return along(y, dt, weighted(table.b[:count], stages)), stages

    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        table, dt = self.tableau, t1 - t0
        if table.dense is None:
            slope = step.carry or f(t1, step.y)
            return hermite(dt, y, step.y, step.stages[0], slope)
        stages = list(step.stages)
        for c, row in zip(table.extra_c, table.extra_a, strict=True):
            stages.append(f(_at(t0, t1, dt, c), along(y, dt, weighted(row, stages))))
        return tuple(scale(dt, weighted(column, stages)) for column in zip(*table.dense, strict=True))


def _at(t0: Tensor, t1: Tensor, dt: Tensor, c: float) -> Tensor:
    """t0 + c dt, exact at both ends: t0 + (t1 - t0) may round past t1."""
    if c == 0.0:
        return t0
    return t1 if c == 1.0 else t0 + c * dt
