"""The one explicit Runge-Kutta step."""

from __future__ import annotations

from typing import final

from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, moved, scale, weighted
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
        slopes = self._slopes(f, t0, t1, y, carry)
        y1 = moved(y, t1 - t0, table.b[: len(slopes)], slopes)
        if table.fsal:
            slopes.append(f(t1, y1))
        return Step(y1, slopes[-1] if table.fsal else (), self._kept(slopes))

    def increment(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves) -> tuple[Leaves, tuple[Leaves, ...]]:
        slopes = self._slopes(f, t0, t1, y, ())
        return scale(t1 - t0, weighted(self.tableau.b[: len(slopes)], slopes)), self._kept(slopes)

    def error(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Leaves | None:
        weights = self.tableau.error
        return None if weights is None else scale(t1 - t0, weighted(weights, self._whole(f, t1, step)))

    def _slopes(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> list[Leaves]:
        """The slopes that the new state is made of: all, but for the last of a first-same-as-last method."""
        table, dt = self.tableau, t1 - t0
        count = table.stages - table.fsal
        slopes = [carry or f(t0, y)]
        for c, row in zip(table.c[1:count], table.a[1:count], strict=True):
            slopes.append(f(_at(t0, t1, dt, c), moved(y, dt, row, slopes)))
        return slopes

    def _kept(self, slopes: list[Leaves]) -> tuple[Leaves, ...]:
        """Those that the error estimate and the dense output may want; Hermite's wants the first."""
        hermite_alone = self.tableau.error is None and self.tableau.dense is None
        return (slopes[0],) if hermite_alone else tuple(slopes)

    def _whole(self, f: Field, t1: Tensor, step: Step) -> list[Leaves]:
        """All slopes of a step, also of one that was taken as an increment."""
        slopes = list(step.stages)
        if len(slopes) < self.tableau.stages:
            slopes.append(f(t1, step.y))
        return slopes

    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        table, dt = self.tableau, t1 - t0
        if table.dense is None:
            slope = step.carry or f(t1, step.y)
            return hermite(dt, y, step.y, step.stages[0], slope)
        stages = self._whole(f, t1, step)
        for c, row in zip(table.extra_c, table.extra_a, strict=True):
            stages.append(f(_at(t0, t1, dt, c), moved(y, dt, row, stages)))
        return tuple(scale(dt, weighted(column, stages)) for column in zip(*table.dense, strict=True))


def _at(t0: Tensor, t1: Tensor, dt: Tensor, c: float) -> Tensor:
    """t0 + c dt, exact at both ends: t0 + (t1 - t0) may round past t1."""
    if c == 0.0:
        return t0
    return t1 if c == 1.0 else t0 + c * dt
