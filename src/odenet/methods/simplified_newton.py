"""Simplified Newton iterations for the stages of one step, to a tolerance tied to that of the solve.

Hairer & Wanner II, IV.8: one Jacobian, taken at the start of a step, serves all stages and iterations, and the factors
of I - dt a J are used again in later steps, as long as the step size stays and the iteration converges fast. Each
sample of a batch has its own Jacobian, factors, convergence and failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.norms import tolerance_scale
from ..core.scalars import round_to_float32
from ..core.status import StepStatus
from .block_eigensystem import BlockEigensystem
from .matrix_layout import MatrixLayout
from .method import Cache, Counts, StepInput, StepSizeHint, Tolerances
from .stage_equations import Equations, Krylov, few_enough, jacobian

ITERATIONS = 6  # at most, for the stages of a block. SciPy's Radau has as many
_SLOW = 1e-3  # a contraction beyond this, after more than two iterations, asks for a new Jacobian
_SHRINK = 0.5  # the next step size after an iteration that failed
_GIVE_UP = 25  # failures one after the other, each with a smaller step
_UNMOVED = 0.8  # a residual that an iteration leaves larger than this, in its own size, has not felt the Jacobian
_STILL = 0.3  # updates that shrink less than this, and are no more than rounding leaves, have arrived
_ROUNDED = 0.1  # of the tolerance: more than this, rounding may not leave
_LINEAR = 1e-2  # relative residual of a linear system that is solved without a matrix


class Memory(NamedTuple):
    """What lasts from attempt to attempt: a row for each of B samples of n unknowns.

    jacobian: (B, n, n). factors, pivots: of I - dt l J for each kept eigenvalue l, (B, E, n, n) and (B, E, n). numbers:
    (B, 7), see below. before, tried: dense output of the last accepted step, and of the last attempt, as coefficients
    (B, D, n), where the iteration begins by it; which of them leads on depends on whether that attempt was accepted.
    Without a matrix (too many unknowns) the first three have no entries.
    """

    jacobian: Tensor
    factors: Tensor
    pivots: Tensor
    numbers: Tensor
    before: Tensor
    tried: Tensor


_DT, _BEFORE, _TRIED, _STALE, _FRESH, _FAILURES, _RATE = range(7)
# of `numbers`: the step size of the factors (0: none); those of `before` and `tried` (0: none); whether the next step
# wants a new Jacobian; whether it is that of the start of the last attempt; failures in a row; the rate of convergence
# of the last iteration


def empty(t: Tensor, rows: MatrixLayout, spectrum: BlockEigensystem, powers: int) -> Memory:
    """Before the first step."""
    count, width, like = rows.num_samples, rows.width, t.new_zeros((), dtype=rows.dtype)
    edge = width if few_enough(count, width, len(spectrum)) else 0
    numbers = like.new_zeros(count, 7)
    numbers[:, _STALE] = 1.0
    jacobian, polynomial = like.new_zeros(count, edge, edge), like.new_zeros(count, powers, width)
    # of the unit matrix, for samples that never run beside others
    unit = torch.eye(edge, dtype=spectrum.dtype(rows.dtype), device=t.device)
    factors = unit.repeat(count, len(spectrum), 1, 1)
    pivots = torch.arange(1, edge + 1, dtype=torch.int32, device=t.device).repeat(count, len(spectrum), 1)
    return Memory(jacobian, factors, pivots, numbers, polynomial, polynomial)


def told(cache: Cache, sample: int | None) -> str:
    """How the last iterations of a sample failed, for a message."""
    if not cache:
        return "the matrix of Newton's iteration is singular"
    numbers = Memory(*cache).numbers[sample or 0]
    count, rate = int(numbers[_FAILURES]), float(numbers[_RATE])
    if rate == 0.0:
        how = "met a singular matrix, or NaN, or infinity"
    elif rate >= 1.0:
        how = f"diverged (each update {rate:.3g} times the last)"
    else:
        how = f"was too slow ({rate:.3g} an iteration)"
    last = f"last {count} attempts (each half as long as the one before)" if count > 1 else "last attempt"
    return f"Newton's iteration failed in the {last}, and {how}"


@final
class Simplified:
    """The stages of one attempt; made anew for each."""

    def __init__(self, at: StepInput, rows: MatrixLayout, spectrum: BlockEigensystem) -> None:
        assert at.tolerances is not None
        self.f, self.rows, self.spectrum = at.f, rows, spectrum
        self.t0, self.dt = at.t0.detach(), (at.t1 - at.t0).detach().to(rows.dtype).reshape(-1, 1)
        self.y = tuple(y.detach() for y in at.y)
        self.start = rows.to_matrix(self.y)
        self.memory = Memory(*at.cache)
        self.numbers = self.memory.numbers.clone()
        self.norm, self.scale = at.tolerances.norm, _scale(rows, self.y, at.tolerances)
        self.limit = _limit(at.tolerances, self.start.dtype)
        self.rejected = torch.as_tensor(at.rejected, device=self.start.device).expand(rows.num_samples)
        self.numbers[:, _FRESH] *= self.rejected  # else the step starts elsewhere
        self.running = torch.ones_like(self.rejected) if at.running is None else at.running
        self.matrix_free = not self.memory.jacobian.numel()
        zero = torch.zeros(rows.num_samples, dtype=torch.int64, device=self.start.device)
        self.calls, self.jacobians, self.factorised, self.within = zero, zero, zero, 0
        self.iterations, self.status = zero, torch.full_like(zero, int(StepStatus.OK))
        self.linear: Krylov | None = None
        self.left = torch.zeros_like(self.start)[:, None]
        self.rounding: Tensor | None = None

    def prepare(self) -> None:
        """See to a Jacobian, where the one at hand has served its time, and to factors."""
        wanted = (self.numbers[:, _STALE] != 0) & (self.numbers[:, _FRESH] == 0) & self.running
        if self.matrix_free or bool(wanted.any()):
            self._linearise(wanted)
        if not self.matrix_free:
            self._factorise()

    def resume(self, status: Tensor | None) -> None:
        """Instead, after the step: with the Jacobian and the factors that found its stages."""
        if status is not None:
            self.running = self.running & (status.reshape(-1) == int(StepStatus.OK))
        if self.matrix_free:
            self._linearise(self.running)

    def _linearise(self, lanes: Tensor) -> None:
        """A new Jacobian at the start of the step, for some samples."""
        if self.matrix_free:
            self.linear = Krylov(self.f, self.rows, self.t0, self.start, self.dt)
            self._called(self.running)
            return
        fresh, self.rounding = jacobian(self.f, self.rows, self.t0, self.start, constant=True), None
        self.memory = self.memory._replace(jacobian=torch.where(lanes[:, None, None], fresh, self.memory.jacobian))
        numbers = self.numbers
        numbers[:, _STALE] = torch.where(lanes, 0.0, numbers[:, _STALE])
        numbers[:, _FRESH] = torch.where(lanes, 1.0, numbers[:, _FRESH])
        numbers[:, _DT] = torch.where(lanes, 0.0, numbers[:, _DT])
        self._called(lanes)

    def _called(self, lanes: Tensor) -> None:
        self.calls, self.jacobians, self.within = self.calls + lanes, self.jacobians + lanes, self.within + 1

    def _factorise(self) -> None:
        """Factors for the step sizes at hand, of those samples that have none."""
        lanes = (self.numbers[:, _DT] != self.dt[:, 0]) & self.running
        if not bool(lanes.any()):
            return
        index = lanes.nonzero()[:, 0]
        matrices = self.spectrum.matrices(self.memory.jacobian[index], self.dt[index])
        factors, pivots, info = torch.linalg.lu_factor_ex(matrices)
        self.memory = self.memory._replace(
            factors=self.memory.factors.index_copy(0, index, factors),
            pivots=self.memory.pivots.index_copy(0, index, pivots),
        )
        self.numbers[:, _DT] = torch.where(lanes, self.dt[:, 0], self.numbers[:, _DT])
        self.factorised = self.factorised + lanes
        singular = torch.zeros_like(self.status).index_copy(0, index, (info != 0).any(1).to(self.status.dtype))
        self.status = torch.where(singular != 0, int(StepStatus.SINGULAR), self.status)

    def guess(self, nodes: Sequence[float]) -> Tensor:
        """States of stages by the dense output of the step before, less y: (B, m, n); zero where there is none."""
        memory, rejected = self.memory, self.rejected
        coefficients = torch.where(rejected[:, None, None], memory.before, memory.tried)
        length = torch.where(rejected, self.numbers[:, _BEFORE], self.numbers[:, _TRIED])
        ratio = torch.where(length != 0, self.dt[:, 0] / torch.where(length != 0, length, 1.0), 0.0)
        theta = 1.0 + ratio[:, None] * ratio.new_tensor(nodes)  # (B, m)
        powers, total = theta, torch.zeros_like(theta)[..., None]
        for d in range(coefficients.shape[1]):
            total = total + (powers - 1.0)[..., None] * coefficients[:, d, None]
            powers = powers * theta
        return total

    def solve(self, equations: Equations, x: Tensor) -> Tensor:
        """X = F(X) from the guess x, (B, m, n). Samples that fail with an old Jacobian are tried with a new one."""
        going = self.running & (self.status == int(StepStatus.OK))
        found, done = self._iterate(equations, x, going)
        again = going & ~done & (self.numbers[:, _FRESH] == 0)
        if not self.matrix_free and bool(again.any()):
            self.status = torch.where(again, int(StepStatus.OK), self.status)
            self._linearise(again)
            self._factorise()
            more, also = self._iterate(equations, x, again & (self.status == int(StepStatus.OK)))
            found, done = torch.where(again[:, None, None], more, found), done | also
        failed = going & ~done & (self.status == int(StepStatus.OK))
        self.status = torch.where(failed, int(StepStatus.NONLINEAR_FAILED), self.status)
        # what failed must not spoil later stages
        return torch.where((done | ~going)[:, None, None], found, x)

    def _iterate(self, equations: Equations, x: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        """The last iterates, and which samples have converged."""
        done, rate = torch.zeros_like(going), torch.zeros_like(self.numbers[:, _RATE])
        last = torch.full_like(rate, torch.inf)
        used, before, left = torch.zeros_like(self.iterations), torch.zeros_like(x), torch.zeros_like(x)
        for k in range(ITERATIONS):
            if not bool(going.any()):
                break
            residual = x - equations(x)
            self.calls, self.within = self.calls + going * x.shape[1], self.within + x.shape[1]
            used = used + going
            update = self._solved(residual)
            size = round_to_float32(self.size(equations.shift(update)))
            finite = torch.isfinite(size)
            self.status = torch.where(going & ~finite, int(StepStatus.NON_FINITE), self.status)
            arrived = size == 0
            if k:
                rate = torch.where(going, round_to_float32(size / last), rate)
                arrived = arrived | (rate > _STILL) & (size <= self._noise(equations))
                hopeless = (rate >= 1.0) | (rate ** (ITERATIONS - k) / (1.0 - rate) * size > self.limit)
                going, rate = going & (arrived | ~hopeless), torch.where(arrived, 0.0, rate)
            going = going & finite
            x = torch.where(going[:, None, None], x - update, x)
            # by the rate that this step has shown: a Jacobian that is too stiff makes updates small far from the root
            close = going & (arrived | (k > 0) & (rate / (1.0 - rate) * size <= self.limit))
            if k:
                close = close & ~self._unproven(equations, residual, before)
            left = torch.where(close[:, None, None], residual, left)
            done, going, last, before = done | close, going & ~close, size, residual
        self.left = torch.where(done[:, None, None], left, self.left)
        self.numbers[:, _RATE] = torch.where(used > 1, rate, self.numbers[:, _RATE])
        self.iterations = torch.maximum(self.iterations, used)
        slow = done & (used > 2) & (rate > _SLOW)
        self.numbers[:, _STALE] = torch.where(slow, 1.0, self.numbers[:, _STALE])
        return x, done

    def prove(self, equations: Equations, x: Tensor) -> None:
        """See whether the last stage X satisfies its equation, where only the Jacobian says so.

        An update is M^-1 times the residual: with a Jacobian that is far too stiff it is small far from the root. Where
        what the last iteration met is more than the tolerance without M^-1, f is evaluated once more, at the end.
        """
        going = self.running & (self.status == int(StepStatus.OK))
        going = going & self._unproven(equations, self.left, torch.zeros_like(x))
        if not bool(going.any()):
            return
        end = self.rows.to_matrix(self.f(equations.times[-1], self.rows.to_leaves(equations.states(x)[-1])))
        self.calls, self.within = self.calls + going, self.within + 1
        residual = torch.zeros_like(x)
        residual[:, -1] = x[:, -1] - end
        failed = going & self._unproven(equations, residual, self.left)
        self.status = torch.where(failed, int(StepStatus.NONLINEAR_FAILED), self.status)

    def _unproven(self, equations: Equations, residual: Tensor, before: Tensor) -> Tensor:
        """Whether a residual is more than the tolerance, in entries that hardly shrank from those `before`: (B,).

        An iteration multiplies the residual by M' M^-1 - I, with M' the true matrix: it is small where the Jacobian is
        right, and near 1 where the Jacobian has a stiffness that f has not.
        """
        kept = torch.where(residual.abs() > _UNMOVED * before.abs(), residual, 0.0)
        shift = equations.shift(kept)
        shift = torch.where(shift.abs() > self._rounding(equations)[:, None], shift, 0.0)
        return self.size(shift) > 1.0

    def _rounding(self, equations: Equations) -> Tensor:
        """What rounding leaves of dt f at the end of an iteration, about: dt |J| |y| in units in the last place."""
        if self.rounding is None:
            eps = max(torch.finfo(d).eps for d in (self.start.dtype, *getattr(equations.f, "dtypes", ())))
            if self.linear is not None:
                signs = torch.cos(torch.arange(self.rows.width, device=self.start.device, dtype=self.dt.dtype))
                moved = self.linear.product(self.start * signs).abs()
            else:
                moved = (self.memory.jacobian.abs() @ self.start.abs()[..., None])[..., 0]
            self.rounding = 8.0 * eps * self.dt.abs() * moved
        return self.rounding

    def _noise(self, equations: Equations) -> Tensor:
        """What rounding leaves of an update, in units of the tolerance, at most: (B,)."""
        return round_to_float32(self.size(self._rounding(equations)[:, None])).clamp(max=_ROUNDED)

    def _solved(self, b: Tensor) -> Tensor:
        """M^-1 b, (B, m, n)."""
        if self.linear is not None:
            return self.linear.solve(self.spectrum.block, b, _LINEAR)
        return self.spectrum.solve(self.memory.factors, self.memory.pivots, b)

    def size(self, x: Tensor) -> Tensor:
        """Of changes of the state, (B, m, n), in units of the tolerance: (B,)."""
        scaled = x / self.scale[:, None]
        if self.norm is None:
            return torch.linalg.vector_norm(scaled, dim=(1, 2)) / (x.shape[1] * x.shape[2]) ** 0.5
        each = [torch.as_tensor(self.norm(self.rows.to_leaves(k))).reshape(-1) for k in scaled.unbind(1)]
        return torch.stack(each).amax(0).to(x.dtype)

    def smoothed(self, raw: Tensor) -> Tensor:
        """(I - dt g J)^-1 raw, (B, n)."""
        if self.matrix_free:
            self.linear = self.linear or Krylov(self.f, self.rows, self.t0, self.start, self.dt)
            return self.linear.solve([[self.spectrum.real]], raw[:, None], _LINEAR)[:, 0]
        return self.spectrum.filtered(self.memory.factors, self.memory.pivots, raw)

    def finished(self, polynomial: Tensor) -> tuple[Cache, Tensor, StepSizeHint, Counts]:
        """The cache, status, wish and counts of the attempt. polynomial: its dense output, (B, D, n)."""
        numbers, ok = self.numbers, self.status == int(StepStatus.OK)
        before = torch.where(self.rejected[:, None, None], self.memory.before, self.memory.tried)
        numbers[:, _BEFORE] = torch.where(self.rejected, numbers[:, _BEFORE], numbers[:, _TRIED])
        numbers[:, _TRIED] = self.dt[:, 0]
        numbers[:, _FAILURES] = torch.where(ok, 0.0, numbers[:, _FAILURES] + 1.0)
        numbers[:, _STALE] = torch.where(ok, numbers[:, _STALE], 1.0)
        most = (2.0 * ITERATIONS + 1.0) / (2.0 * ITERATIONS + self.iterations)
        most = torch.where(ok, most, torch.where(numbers[:, _FAILURES] >= _GIVE_UP, 0.0, _SHRINK))
        hold = ok & (numbers[:, _STALE] == 0) & (not self.matrix_free)
        shape = self.t0.shape
        wish = StepSizeHint(most.reshape(shape).to(self.t0.dtype), hold.reshape(shape))
        memory = self.memory._replace(numbers=numbers, before=before, tried=polynomial)
        return tuple(memory), self.status.reshape(shape), wish, self.counts()

    def counts(self) -> Counts:
        calls, jacobians, factorised = (x.reshape(self.t0.shape) for x in (self.calls, self.jacobians, self.factorised))
        return Counts(jacobians, factorised, calls, self.within)


def _scale(rows: MatrixLayout, y: Leaves, tolerances: Tolerances) -> Tensor:
    """atol + rtol |y|, (B, n)."""
    scale = tolerance_scale(y, tolerances.rtol, tolerances.atol)
    whole = tuple(torch.complex(s, s) if y.is_complex() else s for s, y in zip(scale, y, strict=True))
    return rows.to_matrix(whole)


def _limit(tolerances: Tolerances, dtype: torch.dtype) -> float:
    """What is left of a stage's error, in units of the tolerance; a fifth of what SciPy's Radau leaves.

    Measured on five stiff problems at two tolerances: a fifth costs 6 % more evaluations, and gives half a digit.
    """
    least = min(float(r.min()) if isinstance(r, Tensor) and r.numel() else float(r) for r in tolerances.rtol)
    eps = torch.finfo(dtype).eps
    return max(10.0 * eps / max(least, eps), 0.2 * min(0.03, max(least, eps) ** 0.5))
