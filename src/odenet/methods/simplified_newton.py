"""Simplified Newton iterations for the stages of a step, to a fraction of the solve's tolerance.

Hairer & Wanner II, IV.8: one Jacobian, evaluated at the start of a step, serves all stages and iterations. The factors
of I - dt a J are reused in later steps, while the step size stays the same and the iteration converges fast. Each
sample of a batch has its own Jacobian, factors, convergence and failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.norms import tolerance_scale
from ..core.scalars import round_to_float32
from ..core.status import StepStatus
from .block_eigensystem import BlockEigensystem
from .jacobian import jacobian
from .linear_solvers import KroneckerSolver
from .matrix_layout import MatrixLayout
from .method import Cache, Counts, StepInput, StepSizeHint, Tolerances
from .newton_cache import ACCEPTED_DT, ATTEMPTED_DT, FACTORS_DT, FAILURES, FRESH, RATE, STALE, NewtonCache
from .stage_equations import StageEquations

MAX_ITERS = 6  # per block of stages, as in SciPy's Radau
_MAX_REUSE_RATE = 1e-3  # a slower contraction, after more than two iterations, asks for a new Jacobian
_SHRINK = 0.5  # factor of the step size after an iteration that failed
_MAX_FAILURES = 25  # failed attempts in a row, each with a smaller step, before the method gives up
_MIN_REDUCTION = 0.8  # an entry of the residual that shrinks by less than this factor does not respond to the Jacobian
_STAGNATION = 0.3  # updates of the size of round-off that shrink by less than this factor have converged
_MAX_ROUND_OFF = 0.1  # limit of what counts as round-off, in units of the tolerance
_LINEAR_RTOL = 1e-2  # relative residual of a matrix-free linear solve


@final
class SimplifiedNewton:
    """The iterations of one step attempt. Of `at`, it needs tolerances and a cache.

    The masks and counters of samples, `running`, `status`, `num_calls` and so on, have the shape (B,).
    """

    def __init__(self, at: StepInput, layout: MatrixLayout, eigensystem: BlockEigensystem) -> None:
        assert at.tolerances is not None
        self.f, self.layout, self.eigensystem = at.f, layout, eigensystem
        self.t0, self.dt = at.t0.detach(), (at.t1 - at.t0).detach().to(layout.dtype).reshape(-1, 1)
        self.y = tuple(y.detach() for y in at.y)
        self.start = layout.to_matrix(self.y)
        self.cache = NewtonCache(*at.cache)
        self.numbers = self.cache.numbers.clone()
        self.norm, self.scale = at.tolerances.norm, _tolerance_matrix(layout, self.y, at.tolerances)
        self.max_error = _max_error(at.tolerances, self.start.dtype)
        self.rejected = torch.as_tensor(at.rejected, device=self.start.device).expand(layout.num_samples)
        self.numbers[:, FRESH] *= self.rejected  # after an accepted attempt the step starts from another state
        self.running = torch.ones_like(self.rejected) if at.running is None else at.running
        self.matrix_free = not self.cache.jacobian.numel()
        zero = torch.zeros(layout.num_samples, dtype=torch.int64, device=self.start.device)
        self.num_calls, self.num_jacobians, self.num_factorisations, self.counted_calls = zero, zero, zero, 0
        self.iterations, self.status = zero, torch.full_like(zero, int(StepStatus.OK))
        self.krylov: KroneckerSolver | None = None
        self.residual = torch.zeros_like(self.start)[:, None]  # of the last iteration
        self.round_off: Tensor | None = None

    def prepare(self) -> None:
        """Before the stages: renew stale Jacobians, and factorise where the step size or the Jacobian is new."""
        stale = (self.numbers[:, STALE] != 0) & (self.numbers[:, FRESH] == 0) & self.running
        if self.matrix_free or bool(stale.any()):
            self._renew_jacobian(stale)
        if not self.matrix_free:
            self._factorise()

    def resume(self, status: Tensor | None) -> None:
        """After the step, in place of `prepare`: use the Jacobian and the factors that solved its stages."""
        if status is not None:
            self.running = self.running & (status.reshape(-1) == int(StepStatus.OK))
        if self.matrix_free:
            self._renew_jacobian(self.running)

    def _renew_jacobian(self, samples: Tensor) -> None:
        """Evaluate the Jacobian at the start of the step, for the samples of a mask; matrix-free for all."""
        if self.matrix_free:
            self.krylov = KroneckerSolver(self.f, self.layout, self.t0, self.start, self.dt)
            self._count_jacobian(self.running)
            return
        fresh, self.round_off = jacobian(self.f, self.layout, self.t0, self.start, constant=True), None
        self.cache = self.cache._replace(jacobian=torch.where(samples[:, None, None], fresh, self.cache.jacobian))
        numbers = self.numbers
        numbers[:, STALE] = torch.where(samples, 0.0, numbers[:, STALE])
        numbers[:, FRESH] = torch.where(samples, 1.0, numbers[:, FRESH])
        numbers[:, FACTORS_DT] = torch.where(samples, 0.0, numbers[:, FACTORS_DT])
        self._count_jacobian(samples)

    def _count_jacobian(self, samples: Tensor) -> None:
        self.num_calls, self.num_jacobians = self.num_calls + samples, self.num_jacobians + samples
        self.counted_calls += 1

    def _factorise(self) -> None:
        """Factorise the matrices of the running samples whose factors are of another step size or Jacobian."""
        samples = (self.numbers[:, FACTORS_DT] != self.dt[:, 0]) & self.running
        if not bool(samples.any()):
            return
        index = samples.nonzero()[:, 0]
        matrices = self.eigensystem.matrices(self.cache.jacobian[index], self.dt[index])
        factors, pivots, info = torch.linalg.lu_factor_ex(matrices)
        self.cache = self.cache._replace(
            factors=self.cache.factors.index_copy(0, index, factors),
            pivots=self.cache.pivots.index_copy(0, index, pivots),
        )
        self.numbers[:, FACTORS_DT] = torch.where(samples, self.dt[:, 0], self.numbers[:, FACTORS_DT])
        self.num_factorisations = self.num_factorisations + samples
        singular = torch.zeros_like(self.status).index_copy(0, index, (info != 0).any(1).to(self.status.dtype))
        self.status = torch.where(singular != 0, int(StepStatus.SINGULAR), self.status)

    def predicted_increments(self, nodes: Sequence[float]) -> Tensor:
        """Stages' states less y by the dense output of the last step, (B, m, n); zero where there is none."""
        cache, rejected = self.cache, self.rejected
        coefficients = torch.where(rejected[:, None, None], cache.accepted, cache.attempted)
        length = torch.where(rejected, self.numbers[:, ACCEPTED_DT], self.numbers[:, ATTEMPTED_DT])
        ratio = torch.where(length != 0, self.dt[:, 0] / torch.where(length != 0, length, 1.0), 0.0)
        theta = 1.0 + ratio[:, None] * ratio.new_tensor(nodes)  # (B, m)
        power, total = theta, torch.zeros_like(theta)[..., None]
        for d in range(coefficients.shape[1]):
            total = total + (power - 1.0)[..., None] * coefficients[:, d, None]
            power = power * theta
        return total

    def solve(self, equations: StageEquations, x: Tensor) -> Tensor:
        """Solve X = F(X) from the guess x, (B, m, n). A sample that fails with an old Jacobian retries with a new one.

        The X of a sample that fails is its guess: finite values for the stages after it.
        """
        active = self.running & (self.status == int(StepStatus.OK))
        solution, converged = self._iterate(equations, x, active)
        retry = active & ~converged & (self.numbers[:, FRESH] == 0)
        if not self.matrix_free and bool(retry.any()):
            self.status = torch.where(retry, int(StepStatus.OK), self.status)
            self._renew_jacobian(retry)
            self._factorise()
            retried, retry_converged = self._iterate(equations, x, retry & (self.status == int(StepStatus.OK)))
            solution = torch.where(retry[:, None, None], retried, solution)
            converged = converged | retry_converged
        failed = active & ~converged & (self.status == int(StepStatus.OK))
        self.status = torch.where(failed, int(StepStatus.NONLINEAR_FAILED), self.status)
        return torch.where((converged | ~active)[:, None, None], solution, x)

    def _iterate(self, equations: StageEquations, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """The last iterates, and True for samples that have converged."""
        converged, rate = torch.zeros_like(active), torch.zeros_like(self.numbers[:, RATE])
        last_size = torch.full_like(rate, torch.inf)
        iterations, last_residual = torch.zeros_like(self.iterations), torch.zeros_like(x)
        final_residual = torch.zeros_like(x)
        for k in range(MAX_ITERS):
            if not bool(active.any()):
                break
            residual = x - equations(x)
            self.num_calls = self.num_calls + active * x.shape[1]
            self.counted_calls += x.shape[1]
            iterations = iterations + active
            update = self._linear_solve(residual)
            size = round_to_float32(self.scaled_norm(equations.increments(update)))
            finite = torch.isfinite(size)
            self.status = torch.where(active & ~finite, int(StepStatus.NON_FINITE), self.status)
            at_round_off = size == 0
            if k:
                rate = torch.where(active, round_to_float32(size / last_size), rate)
                at_round_off = at_round_off | (rate > _STAGNATION) & (size <= self._round_off_norm(equations))
                hopeless = (rate >= 1.0) | (rate ** (MAX_ITERS - k) / (1.0 - rate) * size > self.max_error)
                active, rate = active & (at_round_off | ~hopeless), torch.where(at_round_off, 0.0, rate)
            active = active & finite
            x = torch.where(active[:, None, None], x - update, x)
            # only with a measured rate: with a Jacobian that is too stiff, an update is small far from the root
            close = active & (at_round_off | (k > 0) & (rate / (1.0 - rate) * size <= self.max_error))
            if k:
                close = close & ~self._residual_too_large(equations, residual, last_residual)
            final_residual = torch.where(close[:, None, None], residual, final_residual)
            converged, active, last_size, last_residual = converged | close, active & ~close, size, residual
        self.residual = torch.where(converged[:, None, None], final_residual, self.residual)
        self.numbers[:, RATE] = torch.where(iterations > 1, rate, self.numbers[:, RATE])
        self.iterations = torch.maximum(self.iterations, iterations)
        slow = converged & (iterations > 2) & (rate > _MAX_REUSE_RATE)
        self.numbers[:, STALE] = torch.where(slow, 1.0, self.numbers[:, STALE])
        return x, converged

    def check_last_stage(self, equations: StageEquations, x: Tensor) -> None:
        """Check that the last stage X solves its equation, where only the Jacobian suggests it; set `status` if not.

        An update is M^-1 times the residual: with a Jacobian that is far too stiff it is small far from the root. Where
        the residual of the last iteration, without M^-1, exceeds the tolerance, f is evaluated once more, at the last
        stage.
        """
        active = self.running & (self.status == int(StepStatus.OK))
        active = active & self._residual_too_large(equations, self.residual, torch.zeros_like(x))
        if not bool(active.any()):
            return
        last_state = self.layout.to_leaves(equations.states(x)[-1])
        slope = self.layout.to_matrix(self.f(equations.times[-1], last_state))
        self.num_calls, self.counted_calls = self.num_calls + active, self.counted_calls + 1
        residual = torch.zeros_like(x)
        residual[:, -1] = x[:, -1] - slope
        failed = active & self._residual_too_large(equations, residual, self.residual)
        self.status = torch.where(failed, int(StepStatus.NONLINEAR_FAILED), self.status)

    def _residual_too_large(self, equations: StageEquations, residual: Tensor, last_residual: Tensor) -> Tensor:
        """True where the residual exceeds the tolerance, in entries that hardly shrank from last_residual: (B,).

        An iteration multiplies the residual by M' M^-1 - I, with M' the true matrix: entries are small where the
        Jacobian is right, and near 1 where the Jacobian has a stiffness that f does not have.
        """
        unreduced = torch.where(residual.abs() > _MIN_REDUCTION * last_residual.abs(), residual, 0.0)
        increments = equations.increments(unreduced)
        increments = torch.where(increments.abs() > self._round_off(equations)[:, None], increments, 0.0)
        return self.scaled_norm(increments) > 1.0

    def _round_off(self, equations: StageEquations) -> Tensor:
        """Approximate round-off of dt f at the end of an iteration: 8 eps dt |J| |y|, (B, n)."""
        if self.round_off is None:
            eps = max(torch.finfo(d).eps for d in (self.start.dtype, *getattr(equations.f, "dtypes", ())))
            if self.krylov is not None:
                signs = torch.cos(torch.arange(self.layout.width, device=self.start.device, dtype=self.dt.dtype))
                product = self.krylov.jacobian_product(self.start * signs).abs()
            else:
                product = (self.cache.jacobian.abs() @ self.start.abs()[..., None])[..., 0]
            self.round_off = 8.0 * eps * self.dt.abs() * product
        return self.round_off

    def _round_off_norm(self, equations: StageEquations) -> Tensor:
        """Round-off of an update in units of the tolerance, at most `_MAX_ROUND_OFF`: (B,)."""
        return round_to_float32(self.scaled_norm(self._round_off(equations)[:, None])).clamp(max=_MAX_ROUND_OFF)

    def _linear_solve(self, b: Tensor) -> Tensor:
        """M^-1 b, (B, m, n)."""
        if self.krylov is not None:
            return self.krylov.solve(self.eigensystem.block, b, _LINEAR_RTOL)
        return self.eigensystem.solve(self.cache.factors, self.cache.pivots, b)

    def scaled_norm(self, increments: Tensor) -> Tensor:
        """Norm of changes of the state, (B, m, n), in units of the tolerance: (B,)."""
        scaled = increments / self.scale[:, None]
        if self.norm is None:
            return torch.linalg.vector_norm(scaled, dim=(1, 2)) / (increments.shape[1] * increments.shape[2]) ** 0.5
        norms = [torch.as_tensor(self.norm(self.layout.to_leaves(k))).reshape(-1) for k in scaled.unbind(1)]
        return torch.stack(norms).amax(0).to(increments.dtype)

    def filter_error(self, error: Tensor) -> Tensor:
        """(I - dt g J)^-1 error, (B, n), with g the real eigenvalue."""
        if self.matrix_free:
            self.krylov = self.krylov or KroneckerSolver(self.f, self.layout, self.t0, self.start, self.dt)
            return self.krylov.solve([[self.eigensystem.real_value]], error[:, None], _LINEAR_RTOL)[:, 0]
        return self.eigensystem.solve_real(self.cache.factors, self.cache.pivots, error)

    def finish(self, polynomial: Tensor) -> tuple[Cache, Tensor, StepSizeHint, Counts]:
        """The cache, status, step size hint and counts of the attempt. polynomial: its dense output, (B, D, n)."""
        numbers, ok = self.numbers, self.status == int(StepStatus.OK)
        accepted = torch.where(self.rejected[:, None, None], self.cache.accepted, self.cache.attempted)
        numbers[:, ACCEPTED_DT] = torch.where(self.rejected, numbers[:, ACCEPTED_DT], numbers[:, ATTEMPTED_DT])
        numbers[:, ATTEMPTED_DT] = self.dt[:, 0]
        numbers[:, FAILURES] = torch.where(ok, 0.0, numbers[:, FAILURES] + 1.0)
        numbers[:, STALE] = torch.where(ok, numbers[:, STALE], 1.0)
        factor = (2.0 * MAX_ITERS + 1.0) / (2.0 * MAX_ITERS + self.iterations)
        factor = torch.where(ok, factor, torch.where(numbers[:, FAILURES] >= _MAX_FAILURES, 0.0, _SHRINK))
        hold = ok & (numbers[:, STALE] == 0) & (not self.matrix_free)
        shape = self.t0.shape
        hint = StepSizeHint(factor.reshape(shape).to(self.t0.dtype), hold.reshape(shape))
        cache = self.cache._replace(numbers=numbers, accepted=accepted, attempted=polynomial)
        return tuple(cache), self.status.reshape(shape), hint, self.counts()

    def counts(self) -> Counts:
        shape = self.t0.shape
        num_jacobians, num_factorisations = self.num_jacobians.reshape(shape), self.num_factorisations.reshape(shape)
        return Counts(num_jacobians, num_factorisations, self.num_calls.reshape(shape), self.counted_calls)


def _tolerance_matrix(layout: MatrixLayout, y: Leaves, tolerances: Tolerances) -> Tensor:
    """atol + rtol |y|, (B, n)."""
    scale = tolerance_scale(y, tolerances.rtol, tolerances.atol)
    scale = tuple(torch.complex(s, s) if y.is_complex() else s for s, y in zip(scale, y, strict=True))
    return layout.to_matrix(scale)


def _max_error(tolerances: Tolerances, dtype: torch.dtype) -> float:
    """The largest error of a stage, in units of the tolerance, that ends an iteration: a fifth of SciPy's Radau.

    Measured on five stiff problems at two tolerances: a fifth costs 6 % more evaluations, and gives half a digit.
    """
    rtol = min(float(r.min()) if isinstance(r, Tensor) and r.numel() else float(r) for r in tolerances.rtol)
    eps = torch.finfo(dtype).eps
    return max(10.0 * eps / max(rtol, eps), 0.2 * min(0.03, max(rtol, eps) ** 0.5))
