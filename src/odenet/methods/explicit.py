"""The one explicit Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import (
    Leaves,
    add_increment,
    being_recorded,
    cast,
    expand_over,
    real_dtype,
    scale,
    sum_kind,
    unfused_sums,
    weighted_sum,
    widened,
)
from .method import Cotangents, Field, Stage, StagewiseMethod, Step, StepInput, StepPlan, Vjp
from .tableau import Tableau

_LARGE = (
    100.0  # dense weights: those of dopri8, 594; of the others the largest are 88, and double precision gains nothing
)


@final
class ExplicitRK(StagewiseMethod):
    """An explicit Runge-Kutta method given by its tableau. Hairer, Norsett & Wanner I, (II.1.8) and II.4."""

    traceable = True
    can_plan_steps = True

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.name, self.order, self.num_stages = tableau.name, tableau.order, tableau.stages
        # dense weights so large cancel each other: float32 rounds away from their sums as much as these are
        self.cancels = max((abs(w) for row in tableau.dense or () for w in row), default=0.0) > _LARGE
        embedded = tableau.embedded_order
        self.error_order = None if embedded is None else min(tableau.order, embedded) + 1

    def __repr__(self) -> str:
        return f"ExplicitRK({self.name})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return f(t, y) if self.tableau.fsal else ()

    def step(self, at: StepInput) -> Step:
        nodes, length = self.tableau.c[1:] if at.carry else self.tableau.c, at.t1 - at.t0
        times = _nodes(nodes, at.t0, at.t1, length, getattr(at.f, "time_dtype", None))
        return self._stepped(at.f, expand_over(length, at.y), times, at.y, at.carry)

    def plan_steps(self, t0: Tensor, t1: Tensor, y: Leaves, dtype: torch.dtype | None) -> Iterable[StepPlan]:
        length = t1 - t0
        times = zip(*(t.unbind() for t in _nodes(self.tableau.c, t0, t1, length, dtype)), strict=True)
        kinds: dict[torch.dtype, tuple[Tensor, ...]] = {}
        for x in y:
            kind = real_dtype(x.dtype)
            kinds[kind] = kinds.get(kind) or cast(length, kind).unbind()
        lengths = zip(*(kinds[real_dtype(x.dtype)] for x in y), strict=True)
        return ((dt, list(at)) for dt, at in zip(lengths, times, strict=True))

    def planned_step(self, f: Field, span: StepPlan, y: Leaves, carry: Leaves) -> Step:
        dt, times = span
        return self._stepped(f, dt, times[1:] if carry else times, y, carry)

    def _stepped(self, f: Field, dt: Leaves, times: list[Tensor], y: Leaves, carry: Leaves) -> Step:
        table, kind = self.tableau, sum_kind()
        slopes = self._slopes(f, times, y, dt, carry, kind)
        y1 = add_increment(y, dt, table.b[: len(slopes)], slopes, kind)
        if table.fsal:
            slopes.append(f(times[-1], y1))
        return Step(y1, slopes[-1] if table.fsal else (), self._kept(slopes))

    def increment(self, at: StepInput) -> tuple[Leaves, tuple[Leaves, ...]]:
        length = at.t1 - at.t0
        dt, times = expand_over(length, at.y), _nodes(
            self.tableau.c, at.t0, at.t1, length, getattr(at.f, "time_dtype", None)
        )  # fmt: skip
        slopes = self._slopes(at.f, times, at.y, dt, (), sum_kind())
        return scale(dt, weighted_sum(self.tableau.b[: len(slopes)], slopes)), self._kept(slopes)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        weights = self.tableau.error
        if weights is None:
            return None
        return scale(expand_over(at.t1 - at.t0, at.y), weighted_sum(weights, self._whole(at, step)))

    @property
    def stability_interval(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0 if self.tableau.error is None else self.tableau.real_stability

    def stiffness_pair(self, step: Step) -> tuple[Leaves, Leaves] | None:
        table = self.tableau
        if table.error is None or len(step.stages) != self.num_stages:
            return None
        return weighted_sum(table.error, step.stages), weighted_sum(table.error_of_states, step.stages)

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        table, length, y = self.tableau, at.t1 - at.t0, at.y
        dt = expand_over(length, y)
        if table.dense is None:
            slope = step.carry or at.f(at.t1, step.y)
            return hermite(dt, y, step.y, step.stages[0], slope)
        slopes = self._whole(at, step)
        for t, row in zip(_nodes(table.extra_c, at.t0, at.t1, length), table.extra_a, strict=True):
            slopes.append(at.f(t, add_increment(y, dt, row, slopes)))
        if not self.cancels:
            return tuple(scale(dt, weighted_sum(column, slopes)) for column in zip(*table.dense, strict=True))
        wide = [tuple(widened(x) for x in slope) for slope in slopes]
        columns = (weighted_sum(column, wide) for column in zip(*table.dense, strict=True))
        return tuple(scale(dt, tuple(cast(c, x.dtype) for c, x in zip(column, y, strict=True))) for column in columns)

    def vjp(
        self, dt: Leaves, stages: list[Stage], y_bar: Cotangents, carry_bar: Cotangents, vjp: Vjp
    ) -> tuple[Cotangents, Cotangents]:
        """The adjoint of the method's own sums. Hairer, Lubich & Wanner, Geometric Numerical Integration, IX.9."""
        if self.tableau.fsal:
            at, slope = stages.pop()
            if carry_bar:
                y_bar = _joined(y_bar, vjp(slope, carry_bar, at))
            del at, slope
        back, first = self._pull(dt, stages, y_bar, vjp)
        return _joined(y_bar, back), first

    def vjp_increment(self, dt: Leaves, stages: list[Stage], increment_bar: Cotangents, vjp: Vjp) -> Cotangents:
        return self._pull(dt, stages, increment_bar, vjp)[0]

    def _pull(self, dt: Leaves, stages: list[Stage], bar: Cotangents, vjp: Vjp) -> tuple[Cotangents, Cotangents]:
        """The cotangents of y, and of the first slope where that was carried here and not evaluated."""
        table = self.tableau
        count = table.stages - table.fsal
        carried = count - len(stages)
        pulled: list[Cotangents] = []  # those of the states of the later stages, the last first

        def slope_bar(i: int) -> Cotangents:
            later = [row[i] for row in table.a[count - 1 : i : -1]]
            return [
                _sum([(table.b[i], b), *zip(later, bars, strict=True)], h)
                for b, h, bars in zip(bar, dt, zip(*pulled, strict=True) if pulled else [()] * len(bar), strict=True)
            ]

        for i in range(count - 1, carried - 1, -1):
            at, slope = stages.pop()
            pulled.append(vjp(slope, slope_bar(i), at))
            del at, slope
        back: Cotangents = [None] * len(bar)
        for others in pulled:
            back = _joined(back, others)
        return back, slope_bar(0) if carried else []

    def _slopes(self, f: Field, times: list[Tensor], y: Leaves, dt: Leaves, carry: Leaves, kind: int) -> list[Leaves]:
        """The slopes that the new state is made of: all, but for the last of a first-same-as-last method.

        times: of the evaluations, the first of which is not made where it was carried here.
        """
        table = self.tableau
        count = self.num_stages - table.fsal
        later = iter(times)
        slopes = [carry or f(next(later), y)]
        for row in table.a[1:count]:
            slopes.append(f(next(later), add_increment(y, dt, row, slopes, kind)))
        return slopes

    def _kept(self, slopes: list[Leaves]) -> tuple[Leaves, ...]:
        """Those that the error estimate and the dense output may want; Hermite's wants the first."""
        hermite_alone = self.tableau.error is None and self.tableau.dense is None
        return (slopes[0],) if hermite_alone else tuple(slopes)

    def _whole(self, at: StepInput, step: Step) -> list[Leaves]:
        """All slopes of a step, also of one that was taken as an increment."""
        slopes = list(step.stages)
        if len(slopes) < self.num_stages:
            slopes.append(at.f(at.t1, step.y))
        return slopes


def _sum(terms: Sequence[tuple[float, Tensor | None]], dt: Tensor) -> Tensor | None:
    total: Tensor | None = None
    for c, bar in terms:
        if c != 0.0 and bar is not None:
            if total is None or unfused_sums():
                total = bar * c if total is None else total + bar * c
            else:
                total.add_(bar, alpha=c)
    return None if total is None else total.mul_(dt)


def _joined(some: Cotangents, others: Cotangents) -> Cotangents:
    return [b if a is None else a if b is None else a + b for a, b in zip(some, others, strict=True)]


def _nodes(
    c: tuple[float, ...], t0: Tensor, t1: Tensor, length: Tensor, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """t0 + c dt for each c, exact at both ends: t0 + (t1 - t0) may round past t1.

    dtype: that of f's time, which `f` would cast each of them to by itself. None: that of t0.
    """
    between: Iterator[Tensor] = iter(())
    if torch.compiler.is_compiling() or being_recorded():  # the compiler fuses these
        times = [t0 + length * x for x in c if 0.0 < x < 1.0]
        between = iter(times if dtype is None else [cast(t, dtype) for t in times])
    elif (fractions := _inner(c, t0.dtype, t0.device)) is not None:
        first, length = (t0, length) if t0.ndim == 0 else (t0.unsqueeze(-1), length.unsqueeze(-1))
        times = first + length * fractions
        between = iter((times if dtype is None else cast(times, dtype)).unbind(-1))
    if dtype is not None:
        t0, t1 = cast(t0, dtype) if 0.0 in c else t0, cast(t1, dtype) if 1.0 in c else t1
    return [t0 if x == 0.0 else t1 if x == 1.0 else next(between) for x in c]


@lru_cache(maxsize=256)
def _inner(c: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The nodes between the ends of a step; None where there are none."""
    values = [x for x in c if 0.0 < x < 1.0]
    with torch.inference_mode(False):  # a tensor made in that mode could not be used outside it
        return torch.tensor(values, dtype=dtype, device=device) if values else None
