"""Newton's method for coupled stages, and the stages as differentiable functions of all that they depend on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.leaves import forward_mode
from ..errors import ConvergenceWarning, warn
from .stage_equations import Dense, Equations, Linear, MatrixFree, linearised, value_and_linear

_INEXACT = 1e-4  # relative residual of the linear systems of a matrix-free Newton iteration
_SLOW = 0.05  # an update that shrinks less than this asks for a new Jacobian


@torch.no_grad()
def newton(
    equations: Equations, guess: Tensor, start: Tensor, max_iters: int, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """X = F(X) to rounding, each row of the batch on its own; how many Jacobians each row took; whose was singular.

    start: (B, n), the state; dt X is found to rounding beside its largest entry. The Jacobian is kept while the updates
    shrink fast, and made anew for the rows where they do not. Warns where max_iters is not enough.
    """
    equations, x, eps = equations.bare(), guess, torch.finfo(guess.dtype).eps
    # what f rounds to: a half-precision state is carried in float32
    floor = max([1e4 * eps, *(4 * torch.finfo(d).eps for d in getattr(equations.f, "dtypes", ()))])
    linear: Linear | None = None
    jacobians = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    scale = start.abs().amax(1)
    last = torch.full_like(scale, torch.inf)
    stale, singular = active, torch.zeros_like(active)
    for _ in range(max_iters):
        if linear is None or bool(stale.any()):
            value, fresh = value_and_linear(equations, x, _INEXACT)
            jacobians = jacobians + stale
            linear = linear.mixed(stale, fresh) if isinstance(linear, Dense) and isinstance(fresh, Dense) else fresh
        else:
            value = equations(x)
        update = linear.solve(x - value)
        x = torch.where(active[:, None, None], x - update, x)
        size = _largest(equations.dt[..., None] * update) / (scale + _largest(equations.dt[..., None] * x))
        # near rounding an update no longer shrinks; what is not finite will not become so
        settled = (size <= 4 * eps) | ((size <= floor) & (size > 0.5 * last)) | ~torch.isfinite(size)
        unsolved = ~torch.isfinite(update) & torch.isfinite(value)
        singular = singular | active & unsolved.flatten(1).any(1)
        active = active & ~settled
        if not bool(active.any()):
            return x, jacobians, singular
        stale = active & (size > _SLOW * last) | torch.isinf(last)
        last = torch.where(active, size, last)
    warn(
        f"{name}: the nonlinear solve did not converge in {max_iters} iterations before t="
        f"{float(equations.times[-1].max()):.6g}; the solution may be wrong. Take smaller steps, or raise max_iters.",
        ConvergenceWarning,
    )
    return x, jacobians, singular


def attached(equations: Equations, root: Tensor, order: int) -> Tensor:
    """The root as a function of all that F uses, to derivatives of this order, by the implicit function theorem.

    X + M^-1 (F(X) - X) with a constant M is a Newton step: each adds an order of derivative to what X has, and the
    first, from a constant root, gives dX = M^-1 dF.
    """
    x, flow = root, None
    for _ in range(order):
        states = equations.states(x)
        slopes = equations.slopes(states)
        if torch.is_grad_enabled() and not all(y.requires_grad for y in states):
            if not forward_mode() and not any(z.requires_grad for z in (*states, *slopes)):
                return root  # nothing asks for a gradient
            states = [y if y.requires_grad else y.requires_grad_() for y in states]
            slopes = equations.slopes(states)  # with graphs from the states
        flow = flow or Flow(equations, root, states, slopes)
        x = x + _Solve.apply(torch.stack(slopes, 1) - x, flow, False, True)
    return x


class Flow:
    """M at a root, made when the first derivative is asked for."""

    def __init__(self, equations: Equations, root: Tensor, states: list[Tensor], slopes: list[Tensor]) -> None:
        self.equations, self.root, self.states, self.slopes = equations, root, states, slopes
        self.linear: Linear | None = None

    def solve(self, b: Tensor, transposed: bool) -> Tensor:
        with torch.no_grad():
            linear = self.linear = self.linear or self._made()
            out = linear.solve_transposed(b) if transposed else linear.solve(b)
        if isinstance(linear, MatrixFree) and not linear.converged:
            warn(
                "the linear solve for the gradient of an implicit step did not converge; the gradient may be wrong. "
                "Take smaller steps.",
                ConvergenceWarning,
            )
        return out

    def _made(self) -> Linear:
        exact = 4 * torch.finfo(self.root.dtype).eps
        if not forward_mode() and any(k.requires_grad for k in self.slopes):
            return linearised(self.equations, self.states, self.slopes, exact)
        bare = self.equations.bare()
        return linearised(bare, *bare.opened(self.root), exact)


class _Solve(torch.autograd.Function):
    """M^-1 b, or M^-T b. vanishes: b is the residual of a root, and so the value rounding, which is left out."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, flow: Flow, transposed: bool, vanishes: bool) -> Tensor:
        ctx.flow, ctx.transposed = flow, transposed
        return torch.zeros_like(b) if vanishes else flow.solve(b, transposed)

    @staticmethod
    def jvp(ctx: Any, b: Tensor, *others: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.flow.solve(b, ctx.transposed)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Solve.apply(bar, ctx.flow, not ctx.transposed, False), None, None, None


def _largest(x: Tensor) -> Tensor:
    return x.abs().flatten(1).amax(1)
