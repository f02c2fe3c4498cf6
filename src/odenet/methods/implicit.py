"""The step of an implicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, add_increment, expand_over, forward_mode
from ..core.status import StepStatus
from ..core.validate import integer
from .block_eigensystem import block_eigensystem, submatrix
from .implicit_tableau import ImplicitTableau
from .jacobian_check import jacobian_fault
from .matrix_layout import MatrixLayout
from .method import Cache, Counts, Field, Method, Step, StepInput
from .newton import differentiable_root, newton
from .newton_cache import empty_cache, failure_reason
from .simplified_newton import SimplifiedNewton
from .stage_equations import StageEquations

_HERMITE_POWERS = 3


@final
class ImplicitRK(Method):
    """An implicit Runge-Kutta method given by its tableau. Hairer & Wanner II, IV.8 and, for diagonal ones, IV.6.

    Where an error estimate controls the steps, simplified Newton iterations solve the stages to a fraction of the
    tolerance (methods/simplified_newton.py), and a step whose iteration fails is rejected. With other steps, and where
    a backward pass replays a step, Newton's method solves them to round-off. Their derivatives, up to second ones, are
    those of the implicit function theorem.
    Systems of few unknowns are factorised, larger ones solved matrix-free by GMRES: then, with per_sample, the last
    bits of a sample depend on the others in its batch.

    max_iters: of Newton's method to round-off; beyond, it warns.
    """

    predictive_control = True
    derivative_order = 1  # of the stages
    # The carry is the last stage's slope as the stage equations have it. f evaluated at the end of the step would add
    # the error of the iteration times the stiffness.
    carries_last_slope = False
    adaptive = True  # an error estimate controls the steps: the cache serves simplified Newton iterations

    def __init__(self, tableau: ImplicitTableau, max_iters: int = 100) -> None:
        self.tableau, self.max_iters = tableau, integer("max_iters", max_iters)
        self.name, self.order, self.num_stages = tableau.name, tableau.order, tableau.stages
        self.error_order, self.lookahead = tableau.error_order, max(0.0, max(tableau.c) - 1.0)
        # the block of an implicit stage: all have the same diagonal, or there is one block
        block = next(b for b in reversed(tableau.blocks) if len(b) > 1 or tableau.a[b[0]][b[0]] != 0.0)
        self.block = submatrix(tableau.a, block)

    def __repr__(self) -> str:
        return f"ImplicitRK({self.name})"

    def for_control(self, adaptive: bool) -> ImplicitRK:
        method = copy.copy(self)
        method.carries_last_slope = adaptive and self.tableau.stiffly_accurate
        method.carry_is_slope, method.adaptive = not method.carries_last_slope, adaptive
        return method

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return f(t, y) if self.carries_last_slope else ()

    def twice_differentiable(self) -> ImplicitRK:
        method = copy.copy(self)
        method.derivative_order = 2
        return method

    def failure_reason(self, cache: Cache, sample: int | None) -> str:
        return failure_reason(cache, sample)

    def diagnose_jacobian(self, f: Field, t: Tensor, y: Leaves, sample: int | None) -> tuple[str, str] | None:
        return jacobian_fault(f, t, y, sample) if self.error_order is not None else None

    def init_cache(self, t: Tensor, y: Leaves) -> Cache:
        if self.error_order is None or not self.adaptive:
            return ()
        dense = self.tableau.dense
        # with a predictor in the tableau, the dense output of the last step predicts nothing
        num_powers = 0 if self.tableau.predictor else len(dense[0]) if dense else _HERMITE_POWERS
        return tuple(empty_cache(t, MatrixLayout(y, t.ndim == 1), block_eigensystem(self.block), num_powers))

    def step(self, at: StepInput) -> Step:
        f, t0, t1, y = at.f, at.t0, at.t1, at.y
        table, layout = self.tableau, MatrixLayout(y, t0.ndim == 1)
        times = [t0 if c == 0.0 else t1 if c == 1.0 else t0 + c * (t1 - t0) for c in table.c]
        dt = (t1 - t0).to(layout.dtype).reshape(-1, 1)
        start, differentiable = layout.to_matrix(y), torch.is_grad_enabled() or forward_mode()
        has_cache = at.tolerances is not None and at.cache
        simplified = SimplifiedNewton(at, layout, block_eigensystem(self.block)) if has_cache else None
        # the slope at t0: the explicit first stage of some methods, and the guess of the others' stages
        first = layout.to_matrix(at.carry or f(t0, y))
        if simplified is not None:
            with torch.no_grad():
                simplified.prepare()
        slopes: list[Tensor] = []
        num_jacobians = torch.zeros(layout.num_samples, dtype=torch.int64, device=start.device)
        singular = num_jacobians != 0
        for block in table.blocks:
            i = block[0]
            base = [_add_slopes(start, dt, table.a[k], slopes) for k in block]
            if len(block) == 1 and table.a[i][i] == 0.0:
                explicit_first = table.c[i] == 0.0
                slopes.append(first if explicit_first else layout.to_matrix(f(times[i], layout.to_leaves(base[0]))))
                continue
            equations = StageEquations(f, layout, [times[k] for k in block], base, dt, submatrix(table.a, block))
            nodes = [table.c[k] for k in block]
            if simplified is None:
                guess = torch.stack([first] * len(nodes), 1).detach()
                x, njev, failed = newton(equations, guess, start.detach(), self.max_iters, self.name)
                num_jacobians, singular = num_jacobians + njev, singular | failed
            else:
                detached = equations.detached()
                x = simplified.solve(detached, self._guess(detached, simplified, first.detach(), nodes, slopes))
                if block == table.blocks[-1]:
                    simplified.check_last_stage(detached, x)
            if differentiable:
                x = differentiable_root(equations, x, self.derivative_order)
            slopes.extend(x.unbind(1))
        y1 = add_increment(y, expand_over(t1 - t0, y), table.b, [layout.to_leaves(k) for k in slopes])
        stages = ((torch.stack(slopes, 1),), (first,))
        carry = layout.to_leaves(slopes[-1]) if self.carries_last_slope else ()
        if simplified is None:
            njev = num_jacobians.reshape(t0.shape)
            codes = torch.where(singular, int(StepStatus.SINGULAR), int(StepStatus.OK)).reshape(t0.shape)
            return Step(y1, carry, stages, status=codes if bool(singular.any()) else None, counts=Counts(njev, njev))
        with torch.no_grad():
            powers = [] if table.predictor else self._coefficients(dt, start, layout.to_matrix(y1), first, slopes)
            cache, status, hint, counts = simplified.finish(
                torch.stack(powers, 1).detach() if powers else simplified.cache.attempted
            )
        return Step(y1, carry, stages, cache, status, None, hint, counts)

    @torch.no_grad()
    def _guess(
        self,
        equations: StageEquations,
        simplified: SimplifiedNewton,
        first: Tensor,
        nodes: list[float],
        slopes: list[Tensor],
    ) -> Tensor:
        """The guess of a block's slopes, (B, m, n): by the stages before it, or by the step before this one."""
        if len(nodes) == 1 and self.tableau.predictor is not None:
            weights = self.tableau.predictor[len(slopes)]
            return _add_slopes(torch.zeros_like(first), 1.0, weights, slopes)[:, None]
        default = torch.stack([first] * len(nodes), 1)
        return equations.slopes_of_increments(simplified.predicted_increments(nodes), default)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        table = self.tableau
        if table.error is None:
            return None
        layout, ((slopes,), (first,)) = MatrixLayout(at.y, at.t0.ndim == 1), step.stages
        dt = (at.t1 - at.t0).to(layout.dtype).reshape(-1, 1)
        dt = dt * table.caution
        unfiltered = _add_slopes(torch.zeros_like(first), dt, table.error, list(slopes.detach().unbind(1)))
        if table.start:
            unfiltered = unfiltered + dt * (table.start * first.detach())
        if at.tolerances is None or not step.cache:
            return layout.to_leaves(unfiltered)
        simplified = SimplifiedNewton(at._replace(cache=step.cache), layout, block_eigensystem(self.block))
        return layout.to_leaves(simplified.filter_error(unfiltered))

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        return self._polynomial_with_counts(at, step)[0]

    def dense_with_counts(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        if self.interpolation != "own":
            return super().dense_with_counts(at, step)
        return self._polynomial_with_counts(at, step)

    def _polynomial_with_counts(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        (stage_slopes,), (first,) = step.stages
        layout, slopes = MatrixLayout(at.y, at.t0.ndim == 1), list(stage_slopes.unbind(1))
        dt, counts = (at.t1 - at.t0).to(layout.dtype).reshape(-1, 1), None
        if self.tableau.extra_c:
            extra_slopes, counts = self._extra_slopes(at, step, layout, slopes)
            slopes += extra_slopes
        elif self.tableau.dense is None and not self.tableau.stiffly_accurate:
            slopes.append(layout.to_matrix(at.f(at.t1, step.y)))
        powers = self._coefficients(dt, layout.to_matrix(at.y), layout.to_matrix(step.y), first, slopes)
        return tuple(layout.to_leaves(x) for x in powers), counts

    def _extra_slopes(
        self, at: StepInput, step: Step, layout: MatrixLayout, slopes: list[Tensor]
    ) -> tuple[list[Tensor], Counts | None]:
        """Slopes of the stages that only dense output uses. One whose iteration fails keeps its guess."""
        table, start, simplified = self.tableau, layout.to_matrix(at.y), None
        dt, zero, one = (at.t1 - at.t0).to(layout.dtype).reshape(-1, 1), torch.zeros_like(start), 1.0
        if at.tolerances is not None and step.cache:
            simplified = SimplifiedNewton(at._replace(cache=step.cache), layout, block_eigensystem(self.block))
            simplified.resume(step.status)
        extra_slopes: list[Tensor] = []
        for node, row, weights in zip(table.extra_c, table.extra_a, table.extra_predictor, strict=True):
            base = _add_slopes(start, dt, row[:-1], slopes)
            equations = StageEquations(at.f, layout, [at.t0 + node * (at.t1 - at.t0)], [base], dt, ((row[-1],),))
            with torch.no_grad():
                guess = _add_slopes(zero, one, weights, slopes)[:, None]
                if simplified is None:
                    x, _, _ = newton(equations, guess, start, self.max_iters, self.name)
                else:
                    x = simplified.solve(equations.detached(), guess)
            if torch.is_grad_enabled() or forward_mode():
                x = differentiable_root(equations, x, self.derivative_order)
            extra_slopes.append(x[:, 0])
        return extra_slopes, None if simplified is None else simplified.counts()

    def _coefficients(self, dt: Tensor, y: Tensor, y1: Tensor, first: Tensor, slopes: list[Tensor]) -> list[Tensor]:
        """Coefficients of the dense output, (B, n) each; without `dense` cubic Hermite by the first and last slope."""
        if self.tableau.dense is None:
            return [power[0] for power in hermite((dt,), (y,), (y1,), (first,), (slopes[-1],))]
        zero = torch.zeros_like(y)
        return [_add_slopes(zero, dt, column, slopes) for column in zip(*self.tableau.dense, strict=True)]


def _add_slopes(start: Tensor, dt: Tensor | float, row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """start + dt sum_j row_j k_j, over the slopes so far; `row` may be longer."""
    for c, k in zip(row, slopes, strict=False):
        if c != 0.0:
            start = start + dt * (c * k)
    return start
