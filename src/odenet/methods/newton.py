"""Newton's method for the stages of an implicit step, to round-off, and the derivatives of its root."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.leaves import forward_mode
from ..errors import ConvergenceWarning, warn
from .linear_solvers import LinearSolver, LUSolver, MatrixFreeSolver, linearise, value_and_linear_solver
from .stage_equations import StageEquations

_LINEAR_RTOL = 1e-4  # relative residual of the linear systems of a matrix-free Newton iteration
_MAX_CONTRACTION = 0.05  # an update that shrinks by less than this factor asks for a new Jacobian


@torch.no_grad()
def newton(
    equations: StageEquations, guess: Tensor, start: Tensor, max_iters: int, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve X = F(X) to round-off, each sample by itself.

    Gives X, (B, m, n); the number of Jacobians of each sample, (B,); and True for samples with a singular matrix, (B,).

    guess: of X. start: the state, (B, n); dt X is accurate to round-off of its largest entry. name: of the method, for
    the warning where max_iters is too small. A Jacobian is reused while the updates shrink fast, and renewed for the
    samples where they do not.
    """
    equations, x, eps = equations.detached(), guess, torch.finfo(guess.dtype).eps
    # round-off of f: a half-precision state is float32 here, and half precision where f sees it
    f_eps = max([1e4 * eps, *(4 * torch.finfo(d).eps for d in getattr(equations.f, "dtypes", ()))])
    solver: LinearSolver | None = None
    num_jacobians = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    scale = start.abs().amax(1)
    last_size = torch.full_like(scale, torch.inf)
    stale, singular = active, torch.zeros_like(active)
    for _ in range(max_iters):
        if solver is None or bool(stale.any()):
            value, fresh = value_and_linear_solver(equations, x, _LINEAR_RTOL)
            num_jacobians = num_jacobians + stale
            if isinstance(solver, LUSolver) and isinstance(fresh, LUSolver):
                fresh = solver.replaced(stale, fresh)
            solver = fresh
        else:
            value = equations(x)
        update = solver.solve(x - value)
        x = torch.where(active[:, None, None], x - update, x)
        size = _max_abs(equations.dt[..., None] * update) / (scale + _max_abs(equations.dt[..., None] * x))
        # stop at round-off, where updates no longer shrink, and at NaN or infinity, which cannot recover
        stop = (size <= 4 * eps) | ((size <= f_eps) & (size > 0.5 * last_size)) | ~torch.isfinite(size)
        unsolved = ~torch.isfinite(update) & torch.isfinite(value)
        singular = singular | active & unsolved.flatten(1).any(1)
        active = active & ~stop
        if not bool(active.any()):
            return x, num_jacobians, singular
        stale = active & (size > _MAX_CONTRACTION * last_size) | torch.isinf(last_size)
        last_size = torch.where(active, size, last_size)
    warn(
        f"{name}: the nonlinear solve did not converge in {max_iters} iterations before t="
        f"{float(equations.times[-1].max()):.6g}; the solution may be wrong. Take smaller steps, or raise max_iters.",
        ConvergenceWarning,
    )
    return x, num_jacobians, singular


def differentiable_root(equations: StageEquations, root: Tensor, order: int) -> Tensor:
    """The root X as a function of all inputs of F, with derivatives up to `order`, by the implicit function theorem.

    X + M^-1 (F(X) - X) with a constant M is a Newton step: each adds one order of derivative to those of X, and the
    first, from a constant root, gives dX = M^-1 dF.
    """
    x, linearisation = root, None
    for _ in range(order):
        states = equations.states(x)
        slopes = equations.slopes(states)
        if torch.is_grad_enabled() and not all(y.requires_grad for y in states):
            if not forward_mode() and not any(z.requires_grad for z in (*states, *slopes)):
                return root  # no input requires a gradient
            states = [y if y.requires_grad else y.requires_grad_() for y in states]
            slopes = equations.slopes(states)  # with a graph from each state
        linearisation = linearisation or _RootLinearisation(equations, root, states, slopes)
        x = x + _Solve.apply(torch.stack(slopes, 1) - x, linearisation, False, True)
    return x


class _RootLinearisation:
    """M at a root, computed for the first derivative that needs it. states, slopes: of the stages, with a graph."""

    def __init__(self, equations: StageEquations, root: Tensor, states: list[Tensor], slopes: list[Tensor]) -> None:
        self.equations, self.root, self.states, self.slopes = equations, root, states, slopes
        self.solver: LinearSolver | None = None

    def solve(self, b: Tensor, transposed: bool) -> Tensor:
        with torch.no_grad():
            solver = self.solver = self.solver or self._linearise()
            out = solver.solve_transposed(b) if transposed else solver.solve(b)
        if isinstance(solver, MatrixFreeSolver) and not solver.converged:
            warn(
                "the linear solve for the gradient of an implicit step did not converge; the gradient may be wrong. "
                "Take smaller steps.",
                ConvergenceWarning,
            )
        return out

    def _linearise(self) -> LinearSolver:
        rtol = 4 * torch.finfo(self.root.dtype).eps
        if not forward_mode() and any(k.requires_grad for k in self.slopes):
            return linearise(self.equations, self.states, self.slopes, rtol)
        detached = self.equations.detached()
        return linearise(detached, *detached.evaluate_with_graph(self.root), rtol)


class _Solve(torch.autograd.Function):
    """M^-1 b, or M^-T b where `transposed`.

    at_root: b is the residual of a root; the value is zero up to round-off, and is set to zero.
    """

    @staticmethod
    def forward(ctx: Any, b: Tensor, linearisation: _RootLinearisation, transposed: bool, at_root: bool) -> Tensor:
        ctx.linearisation, ctx.transposed = linearisation, transposed
        return torch.zeros_like(b) if at_root else linearisation.solve(b, transposed)

    @staticmethod
    def jvp(ctx: Any, b: Tensor, *_: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] torch's stub
        return ctx.linearisation.solve(b, ctx.transposed)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] torch's stub
        return _Solve.apply(bar, ctx.linearisation, not ctx.transposed, False), None, None, None


def _max_abs(x: Tensor) -> Tensor:
    """The largest magnitude of each sample, (B,)."""
    return x.abs().flatten(1).amax(1)
