"""The one implicit Runge-Kutta step."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, add_increment, expand_over, forward_mode
from ..core.status import StepStatus
from .block_eigensystem import block_eigensystem, submatrix
from .implicit_tableau import ImplicitTableau
from .jacobian_check import jacobian_fault
from .matrix_layout import MatrixLayout
from .method import Cache, Counts, Field, Method, Step, StepInput
from .newton import attached, newton
from .simplified_newton import Simplified, empty, told
from .stage_equations import Equations

_CUBIC = 3  # powers of the Hermite polynomial


@final
class ImplicitRK(Method):
    """An implicit Runge-Kutta method given by its tableau. Hairer & Wanner II, IV.8 and, for diagonal ones, IV.6.

    Where an error chooses the steps, the stages are found by simplified Newton iterations to a part of the tolerance
    (methods/simplified_newton.py), and a step whose iteration fails is rejected. With steps of another choice, and where
    a backward pass takes a step again, they are found by Newton's method to rounding. They are differentiated by the
    implicit function theorem, to second derivatives.
    Systems of few unknowns are factorised, larger ones solved without a matrix by GMRES: then with per_sample a
    sample's last bits depend on those beside it. max_iters: of Newton's method to rounding; beyond, it warns.
    """

    derivatives = 1
    predictive_control = True
    # The slope at the end of a step, as its equations have it, is that at the start of the next: evaluated there, f
    # would show the error that an iteration has left, times the stiffness.
    carries = False
    iterates = True  # an error chooses the steps, and what finds their stages is remembered from one to the next

    def __init__(self, tableau: ImplicitTableau, max_iters: int = 100) -> None:
        if isinstance(max_iters, bool) or not isinstance(max_iters, int) or max_iters < 1:
            raise ValueError(f"max_iters must be an int of at least 1; got {max_iters!r}")
        self.tableau, self.max_iters = tableau, max_iters
        self.name, self.order, self.num_stages = tableau.name, tableau.order, tableau.stages
        self.error_order, self.lookahead = tableau.error_order, max(0.0, max(tableau.c) - 1.0)
        # of the stages that have to be found: they have one diagonal, or are one block
        block = next(b for b in reversed(tableau.blocks) if len(b) > 1 or tableau.a[b[0]][b[0]] != 0.0)
        self.block = submatrix(tableau.a, block)

    def __repr__(self) -> str:
        return f"ImplicitRK({self.name})"

    def for_control(self, adaptive: bool) -> ImplicitRK:
        other = copy.copy(self)
        other.carries = adaptive and self.tableau.stiffly_accurate
        other.carry_is_slope, other.iterates = not other.carries, adaptive
        return other

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return f(t, y) if self.carries else ()

    def twice_differentiable(self) -> ImplicitRK:
        other = copy.copy(self)
        other.derivatives = 2
        return other

    def failure_reason(self, cache: Cache, sample: int | None) -> str:
        return told(cache, sample)

    def diagnose_jacobian(self, f: Field, t: Tensor, y: Leaves, sample: int | None) -> tuple[str, str] | None:
        return jacobian_fault(f, t, y, sample) if self.error_order is not None else None

    def init_cache(self, t: Tensor, y: Leaves) -> Cache:
        if self.error_order is None or not self.iterates:
            return ()
        dense = self.tableau.dense
        return tuple(
            empty(
                t,
                MatrixLayout(y, t.ndim == 1),
                block_eigensystem(self.block),
                0 if self.tableau.predictor else len(dense[0]) if dense else _CUBIC,
            )
        )

    def step(self, at: StepInput) -> Step:
        f, t0, t1, y = at.f, at.t0, at.t1, at.y
        table, rows = self.tableau, MatrixLayout(y, t0.ndim == 1)
        times = [t0 if c == 0.0 else t1 if c == 1.0 else t0 + c * (t1 - t0) for c in table.c]
        dt = (t1 - t0).to(rows.dtype).reshape(-1, 1)
        start, recording = rows.to_matrix(y), torch.is_grad_enabled() or forward_mode()
        iterating = at.tolerances is not None and at.cache
        quick = Simplified(at, rows, block_eigensystem(self.block)) if iterating else None
        # the first stage of some, and where the iteration of all the others begins
        first = rows.to_matrix(at.carry or f(t0, y))
        if quick is not None:
            with torch.no_grad():
                quick.prepare()
        slopes: list[Tensor] = []
        jacobians = torch.zeros(rows.num_samples, dtype=torch.int64, device=start.device)
        singular = jacobians != 0
        for block in table.blocks:
            i = block[0]
            base = [self._partial(start, dt, table.a[k], slopes) for k in block]
            if len(block) == 1 and table.a[i][i] == 0.0:
                slopes.append(first if table.c[i] == 0.0 else rows.to_matrix(f(times[i], rows.to_leaves(base[0]))))
                continue
            equations = Equations(f, rows, [times[k] for k in block], base, dt, submatrix(table.a, block))
            nodes = [table.c[k] for k in block]
            if quick is None:
                guess = torch.stack([first] * len(nodes), 1).detach()
                x, made, failed = newton(equations, guess, start.detach(), self.max_iters, self.name)
                jacobians, singular = jacobians + made, singular | failed
            else:
                x = quick.solve(equations.bare(), self._guess(equations.bare(), quick, first.detach(), nodes, slopes))
                if block == table.blocks[-1]:
                    quick.prove(equations.bare(), x)
            if recording:
                x = attached(equations, x, self.derivatives)
            slopes.extend(x.unbind(1))
        y1 = add_increment(y, expand_over(t1 - t0, y), table.b, [rows.to_leaves(k) for k in slopes])
        stages, end = ((torch.stack(slopes, 1),), (first,)), rows.to_leaves(slopes[-1]) if self.carries else ()
        if quick is None:
            made = jacobians.reshape(t0.shape)
            codes = torch.where(singular, int(StepStatus.SINGULAR), int(StepStatus.OK)).reshape(t0.shape)
            return Step(y1, end, stages, status=codes if bool(singular.any()) else None, counts=Counts(made, made))
        with torch.no_grad():
            polynomial = [] if table.predictor else self._coefficients(dt, start, rows.to_matrix(y1), first, slopes)
            cache, status, wish, counts = quick.finished(
                torch.stack(polynomial, 1).detach() if polynomial else quick.memory.tried
            )
        return Step(y1, end, stages, cache, status, None, wish, counts)

    @torch.no_grad()
    def _guess(
        self, equations: Equations, quick: Simplified, first: Tensor, nodes: list[float], slopes: list[Tensor]
    ) -> Tensor:
        """Where the iteration begins: by the stages before, or of a block by the step before. (B, m, n)."""
        if len(nodes) == 1 and self.tableau.predictor is not None:
            weights = self.tableau.predictor[len(slopes)]
            return self._partial(torch.zeros_like(first), 1.0, weights, slopes)[:, None]
        same = torch.stack([first] * len(nodes), 1)
        return equations.slopes_of(quick.guess(nodes), same)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        table = self.tableau
        if table.error is None:
            return None
        rows, ((found,), (first,)) = MatrixLayout(at.y, at.t0.ndim == 1), step.stages
        dt = (at.t1 - at.t0).to(rows.dtype).reshape(-1, 1)
        dt = dt * table.caution
        raw = self._partial(torch.zeros_like(first), dt, table.error, list(found.detach().unbind(1)))
        if table.start:
            raw = raw + dt * (table.start * first.detach())
        if at.tolerances is None or not step.cache:
            return rows.to_leaves(raw)
        quick = Simplified(at._replace(cache=step.cache), rows, block_eigensystem(self.block))
        return rows.to_leaves(quick.smoothed(raw))

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        return self._polynomial(at, step)[0]

    def dense_with_counts(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        return self._polynomial(at, step) if self.interpolation == "own" else super().dense_with_counts(at, step)

    def _polynomial(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        (found,), (first,) = step.stages
        rows, slopes = MatrixLayout(at.y, at.t0.ndim == 1), list(found.unbind(1))
        dt, counts = (at.t1 - at.t0).to(rows.dtype).reshape(-1, 1), None
        if self.tableau.extra_c:
            more, counts = self._extra(at, step, rows, slopes)
            slopes += more
        elif self.tableau.dense is None and not self.tableau.stiffly_accurate:
            slopes.append(rows.to_matrix(at.f(at.t1, step.y)))
        parts = self._coefficients(dt, rows.to_matrix(at.y), rows.to_matrix(step.y), first, slopes)
        return tuple(rows.to_leaves(x) for x in parts), counts

    def _extra(
        self, at: StepInput, step: Step, rows: MatrixLayout, slopes: list[Tensor]
    ) -> tuple[list[Tensor], Counts | None]:
        """Slopes of the stages that only dense output needs. One that is not found stays at its guess."""
        table, start, quick = self.tableau, rows.to_matrix(at.y), None
        dt, zero, one = (at.t1 - at.t0).to(rows.dtype).reshape(-1, 1), torch.zeros_like(start), 1.0
        if at.tolerances is not None and step.cache:
            quick = Simplified(at._replace(cache=step.cache), rows, block_eigensystem(self.block))
            quick.resume(step.status)
        out: list[Tensor] = []
        for node, row, weights in zip(table.extra_c, table.extra_a, table.extra_predictor, strict=True):
            base = self._partial(start, dt, row[:-1], slopes)
            equations = Equations(at.f, rows, [at.t0 + node * (at.t1 - at.t0)], [base], dt, ((row[-1],),))
            with torch.no_grad():
                guess = self._partial(zero, one, weights, slopes)[:, None]
                if quick is None:
                    x, _, _ = newton(equations, guess, start, self.max_iters, self.name)
                else:
                    x = quick.solve(equations.bare(), guess)
            if torch.is_grad_enabled() or forward_mode():
                x = attached(equations, x, self.derivatives)
            out.append(x[:, 0])
        return out, None if quick is None else quick.counts()

    def _coefficients(self, dt: Tensor, y: Tensor, y1: Tensor, first: Tensor, slopes: list[Tensor]) -> list[Tensor]:
        """Of the dense output, in rows; without a formula of its own by the slopes at both ends, first and last."""
        if self.tableau.dense is None:
            return [part[0] for part in hermite((dt,), (y,), (y1,), (first,), (slopes[-1],))]
        zero = torch.zeros_like(y)
        return [self._partial(zero, dt, column, slopes) for column in zip(*self.tableau.dense, strict=True)]

    @staticmethod
    def _partial(start: Tensor, dt: Tensor | float, row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
        """start + dt sum_j row_j k_j, over the slopes that there are."""
        for c, k in zip(row, slopes, strict=False):
            if c != 0.0:
                start = start + dt * (c * k)
        return start
