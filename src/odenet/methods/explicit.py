"""The step of an explicit Runge-Kutta method, for any tableau."""

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

# Dense weights larger than this are summed in double precision. Those of dopri8 reach 594; those of the other methods
# are at most 88, and double precision gains nothing for them.
_MAX_DENSE_WEIGHT = 100.0


@final
class ExplicitRK(StagewiseMethod):
    """An explicit Runge-Kutta method given by its tableau. Hairer, Norsett & Wanner I, (II.1.8) and II.4."""

    traceable = True
    can_plan_steps = True

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.name, self.order, self.num_stages = tableau.name, tableau.order, tableau.stages
        # terms with large weights of both signs cancel: float32 would lose the digits of their sum
        self.dense_in_double = (
            max((abs(w) for row in tableau.dense or () for w in row), default=0.0) > _MAX_DENSE_WEIGHT
        )
        embedded = tableau.embedded_order
        self.error_order = None if embedded is None else min(tableau.order, embedded) + 1

    def __repr__(self) -> str:
        return f"ExplicitRK({self.name})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return f(t, y) if self.tableau.fsal else ()

    def step(self, at: StepInput) -> Step:
        nodes, length = self.tableau.c[1:] if at.carry else self.tableau.c, at.t1 - at.t0
        times = _stage_times(nodes, at.t0, at.t1, length, getattr(at.f, "time_dtype", None))
        return self._step_from_times(at.f, expand_over(length, at.y), times, at.y, at.carry)

    def plan_steps(self, t0: Tensor, t1: Tensor, y: Leaves, dtype: torch.dtype | None) -> Iterable[StepPlan]:
        length = t1 - t0
        times = zip(*(t.unbind() for t in _stage_times(self.tableau.c, t0, t1, length, dtype)), strict=True)
        steps: dict[torch.dtype, tuple[Tensor, ...]] = {}  # the n step sizes in each dtype of a leaf
        for x in y:
            leaf_dtype = real_dtype(x.dtype)
            steps[leaf_dtype] = steps.get(leaf_dtype) or cast(length, leaf_dtype).unbind()
        step_sizes = zip(*(steps[real_dtype(x.dtype)] for x in y), strict=True)
        return ((dt, list(stage_times)) for dt, stage_times in zip(step_sizes, times, strict=True))

    def planned_step(self, f: Field, plan: StepPlan, y: Leaves, carry: Leaves) -> Step:
        dt, times = plan
        return self._step_from_times(f, dt, times[1:] if carry else times, y, carry)

    def _step_from_times(self, f: Field, dt: Leaves, times: list[Tensor], y: Leaves, carry: Leaves) -> Step:
        table, summation = self.tableau, sum_kind()
        slopes = self._slopes(f, times, y, dt, carry, summation)
        y1 = add_increment(y, dt, table.b[: len(slopes)], slopes, summation)
        if table.fsal:
            slopes.append(f(times[-1], y1))
        return Step(y1, slopes[-1] if table.fsal else (), self._stages(slopes))

    def increment(self, at: StepInput) -> tuple[Leaves, tuple[Leaves, ...]]:
        length = at.t1 - at.t0
        dt, times = expand_over(length, at.y), _stage_times(
            self.tableau.c, at.t0, at.t1, length, getattr(at.f, "time_dtype", None)
        )  # fmt: skip
        slopes = self._slopes(at.f, times, at.y, dt, (), sum_kind())
        return scale(dt, weighted_sum(self.tableau.b[: len(slopes)], slopes)), self._stages(slopes)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        weights = self.tableau.error
        if weights is None:
            return None
        return scale(expand_over(at.t1 - at.t0, at.y), weighted_sum(weights, self._all_slopes(at, step)))

    @property
    # computed on first use: it takes milliseconds, and only `Stiffness` reads it
    def stability_interval(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride] read-only
        return 0.0 if self.tableau.error is None else self.tableau.real_stability

    def stiffness_pair(self, step: Step) -> tuple[Leaves, Leaves] | None:
        table = self.tableau
        if table.error is None or len(step.stages) != self.num_stages:
            return None
        return weighted_sum(table.error, step.stages), weighted_sum(table.error_state_weights, step.stages)

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        table, length, y = self.tableau, at.t1 - at.t0, at.y
        dt = expand_over(length, y)
        if table.dense is None:
            slope = step.carry or at.f(at.t1, step.y)
            return hermite(dt, y, step.y, step.stages[0], slope)
        slopes = self._all_slopes(at, step)
        for t, row in zip(_stage_times(table.extra_c, at.t0, at.t1, length), table.extra_a, strict=True):
            slopes.append(at.f(t, add_increment(y, dt, row, slopes)))
        if not self.dense_in_double:
            return tuple(scale(dt, weighted_sum(column, slopes)) for column in zip(*table.dense, strict=True))
        wide = [tuple(widened(x) for x in slope) for slope in slopes]
        columns = (weighted_sum(column, wide) for column in zip(*table.dense, strict=True))
        return tuple(scale(dt, tuple(cast(c, x.dtype) for c, x in zip(column, y, strict=True))) for column in columns)

    def vjp(
        self, dt: Leaves, stages: list[Stage], y_bar: Cotangents, carry_bar: Cotangents, vjp: Vjp
    ) -> tuple[Cotangents, Cotangents]:
        """The adjoint of the method's own sums. Hairer, Lubich & Wanner, Geometric Numerical Integration, IX.9."""
        if self.tableau.fsal:
            state, slope = stages.pop()
            if carry_bar:
                y_bar = _add(y_bar, vjp(slope, carry_bar, state))
            del state, slope  # frees their graph
        increment_bar, first_slope_bar = self._vjp_of_sums(dt, stages, y_bar, vjp)
        return _add(y_bar, increment_bar), first_slope_bar

    def vjp_increment(self, dt: Leaves, stages: list[Stage], increment_bar: Cotangents, vjp: Vjp) -> Cotangents:
        return self._vjp_of_sums(dt, stages, increment_bar, vjp)[0]

    def _vjp_of_sums(
        self, dt: Leaves, stages: list[Stage], increment_bar: Cotangents, vjp: Vjp
    ) -> tuple[Cotangents, Cotangents]:
        """Cotangents of y, and of the first slope where the carry gave it and it was not evaluated."""
        table = self.tableau
        count = table.stages - table.fsal
        carried = count - len(stages)
        state_bars: list[Cotangents] = []  # of the states of the later stages, the last stage first

        def slope_bar(i: int) -> Cotangents:
            later = [row[i] for row in table.a[count - 1 : i : -1]]
            return [
                _weighted_sum([(table.b[i], b), *zip(later, bars, strict=True)], h)
                for b, h, bars in zip(
                    increment_bar,
                    dt,
                    zip(*state_bars, strict=True) if state_bars else [()] * len(increment_bar),
                    strict=True,
                )
            ]

        for i in range(count - 1, carried - 1, -1):
            state, slope = stages.pop()
            state_bars.append(vjp(slope, slope_bar(i), state))
            del state, slope  # frees their graph
        y_bar: Cotangents = [None] * len(increment_bar)
        for state_bar in state_bars:
            y_bar = _add(y_bar, state_bar)
        return y_bar, slope_bar(0) if carried else []

    def _slopes(
        self, f: Field, times: list[Tensor], y: Leaves, dt: Leaves, carry: Leaves, summation: int
    ) -> list[Leaves]:
        """The slopes in the sum of y1: all stages, without the last one of a first-same-as-last method.

        times: of the evaluations; without that of the first stage where the carry is its slope.
        """
        table = self.tableau
        count = self.num_stages - table.fsal
        stage_times = iter(times)
        slopes = [carry or f(next(stage_times), y)]
        for row in table.a[1:count]:
            slopes.append(f(next(stage_times), add_increment(y, dt, row, slopes, summation)))
        return slopes

    def _stages(self, slopes: list[Leaves]) -> tuple[Leaves, ...]:
        """`Step.stages`: the slopes that error estimate and dense output use; Hermite's polynomial the first alone."""
        hermite_alone = self.tableau.error is None and self.tableau.dense is None
        return (slopes[0],) if hermite_alone else tuple(slopes)

    def _all_slopes(self, at: StepInput, step: Step) -> list[Leaves]:
        """The slopes of all stages. After `increment` the last one of a first-same-as-last method is evaluated here."""
        slopes = list(step.stages)
        if len(slopes) < self.num_stages:
            slopes.append(at.f(at.t1, step.y))
        return slopes


def _weighted_sum(terms: Sequence[tuple[float, Tensor | None]], dt: Tensor) -> Tensor | None:
    """dt * sum of weight * cotangent; None where all terms are zero."""
    total: Tensor | None = None
    for c, bar in terms:
        if c != 0.0 and bar is not None:
            if total is None or unfused_sums():
                total = bar * c if total is None else total + bar * c
            else:
                total.add_(bar, alpha=c)
    return None if total is None else total.mul_(dt)


def _add(x: Cotangents, y: Cotangents) -> Cotangents:
    return [b if a is None else a if b is None else a + b for a, b in zip(x, y, strict=True)]


def _stage_times(
    c: tuple[float, ...], t0: Tensor, t1: Tensor, length: Tensor, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """t0 + c * length for each c, exact at both ends: t0 + (t1 - t0) may round past t1.

    dtype: of f's time; one cast of all times replaces a cast in each call of f. None: that of t0.
    """
    inner: Iterator[Tensor] = iter(())
    if torch.compiler.is_compiling() or being_recorded():  # the compiler fuses these
        times = [t0 + length * x for x in c if 0.0 < x < 1.0]
        inner = iter(times if dtype is None else [cast(t, dtype) for t in times])
    elif (fractions := _inner_nodes(c, t0.dtype, t0.device)) is not None:
        start, length = (t0, length) if t0.ndim == 0 else (t0.unsqueeze(-1), length.unsqueeze(-1))
        times = start + length * fractions
        inner = iter((times if dtype is None else cast(times, dtype)).unbind(-1))
    if dtype is not None:
        t0, t1 = cast(t0, dtype) if 0.0 in c else t0, cast(t1, dtype) if 1.0 in c else t1
    return [t0 if x == 0.0 else t1 if x == 1.0 else next(inner) for x in c]


@lru_cache(maxsize=256)
def _inner_nodes(c: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The nodes strictly between 0 and 1, as a tensor; None where there are none."""
    values = [x for x in c if 0.0 < x < 1.0]
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be used outside it
        return torch.tensor(values, dtype=dtype, device=device) if values else None
