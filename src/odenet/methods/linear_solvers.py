"""Linear systems of the Newton iterations: by a factorised matrix, or matrix-free by GMRES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .gmres import gmres
from .jacobian import jacobian, stage_jacobians
from .matrix_layout import MatrixLayout
from .method import Field
from .stage_equations import StageEquations

MAX_DENSE = 500  # unknowns per sample up to which a system is solved by a factorised matrix: see docs/methods.md
MAX_ENTRIES = 2**26  # of the Jacobians and factors of all samples together


def fits_dense(num_samples: int, width: int, num_systems: int) -> bool:
    """True where dense Jacobians and the factors of `num_systems` matrices, (B, n, n) each, are within the limits."""
    return width <= MAX_DENSE and num_samples * width * width * (1 + 2 * num_systems) <= MAX_ENTRIES


class LinearSolver(Protocol):
    """Solves systems with M = I - dt (a_ij J_i), the Newton matrix of `StageEquations`, at some X."""

    def solve(self, b: Tensor) -> Tensor:
        """The x with M x = b; (B, m, n)."""
        ...

    def solve_transposed(self, b: Tensor) -> Tensor:
        """The x with M^T x = b; (B, m, n)."""
        ...


class LUSolver:
    """LU factors of M for each sample. matrix: (B, m n, m n)."""

    def __init__(self, matrix: Tensor) -> None:
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(self, b: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.factors, self.pivots, b.flatten(1)[..., None])[..., 0].view_as(b)

    def solve_transposed(self, b: Tensor) -> Tensor:
        columns = b.flatten(1)[..., None]
        return torch.linalg.lu_solve(self.factors, self.pivots, columns, adjoint=True)[..., 0].view_as(b)

    def replaced(self, samples: Tensor, new: LUSolver) -> LUSolver:
        """The factors of `new` for `samples`, a mask (B,), and those of this solver for the others."""
        solver = LUSolver.__new__(LUSolver)
        solver.factors = torch.where(samples[:, None, None], new.factors, self.factors)
        solver.pivots = torch.where(samples[:, None], new.pivots, self.pivots)
        return solver


class MatrixFreeSolver:
    """GMRES with products of M and M^T, both by VJPs of f. rtol: relative residual.

    states, slopes: of the stages, with a graph (`StageEquations.evaluate_with_graph`).
    """

    def __init__(self, equations: StageEquations, states: list[Tensor], slopes: list[Tensor], rtol: float) -> None:
        self.equations, self.states, self.slopes, self.rtol = equations, states, slopes, rtol
        self.vjp_graph: tuple[list[Tensor], list[Tensor | None]] | None = None
        self.converged = True

    def solve(self, b: Tensor) -> Tensor:
        return self._gmres(self.product, b)

    def solve_transposed(self, b: Tensor) -> Tensor:
        return self._gmres(self.transposed_product, b)

    def product(self, v: Tensor) -> Tensor:
        """M v, (B, m, n). J_i u is the derivative of (J_i^T w) . u with respect to w, in which it is linear."""
        if self.vjp_graph is None:
            with torch.enable_grad():
                w = [torch.zeros_like(k, requires_grad=True) for k in self.slopes]
                self.vjp_graph = w, stage_vjps(self.states, self.slopes, w, create_graph=True)
        w, vjps = self.vjp_graph
        tangents = [
            self.equations.dt * sum(k * c for k, c in zip(v.unbind(1), row, strict=True)) for row in self.equations.a
        ]
        pairs = [(g, u) for g, u in zip(vjps, tangents, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return v
        outputs, bars = zip(*pairs, strict=True)
        jvps = torch.autograd.grad(outputs, w, bars, retain_graph=True, allow_unused=True)
        return v - torch.stack([_or_zeros(jvp, x) for x, jvp in zip(w, jvps, strict=True)], 1)

    def transposed_product(self, w: Tensor) -> Tensor:
        """M^T w, (B, m, n)."""
        return self.equations.transposed_product(stage_vjps(self.states, self.slopes, w.unbind(1)), w)

    def _gmres(self, product: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        with torch.no_grad():
            x, converged = gmres(lambda v: product(v.view_as(b)).flatten(1), b.flatten(1), self.rtol)
        self.converged = bool(converged.all())
        return x.view_as(b)


class KroneckerSolver:
    """Systems I - dt a (x) J with one Jacobian J for all stages, at (t, y), by GMRES with products of J alone."""

    def __init__(self, f: Field, layout: MatrixLayout, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.dt = dt
        with torch.enable_grad():
            state = y.detach().requires_grad_()
            slope = layout.to_matrix(f(t, layout.to_leaves(state)))
            self.w = torch.zeros_like(slope, requires_grad=True)
            self.vjp = stage_vjps([state], [slope], [self.w], create_graph=True)[0]

    def jacobian_product(self, v: Tensor) -> Tensor:
        """J v, (B, n): the derivative of (J^T w) . v with respect to w, in which it is linear."""
        if self.vjp is None or not self.vjp.requires_grad:
            return torch.zeros_like(v)
        (jvp,) = torch.autograd.grad(self.vjp, self.w, v, retain_graph=True, allow_unused=True)
        return _or_zeros(jvp, v)

    def solve(self, a: Sequence[Sequence[float]], b: Tensor, rtol: float) -> Tensor:
        """The x with x - dt a (x) J x = b to the relative residual rtol; (B, m, n)."""

        def product(flat: Tensor) -> Tensor:
            v = flat.view_as(b)
            jvps = torch.stack([self.jacobian_product(x) for x in v.unbind(1)], 1)
            coupled = (jvps.new_tensor(a)[None, :, :, None] * jvps[:, None]).sum(2)
            return (v - self.dt[..., None] * coupled).flatten(1)

        return gmres(product, b.flatten(1), rtol)[0].view_as(b)


def stage_vjps(
    states: Sequence[Tensor], slopes: Sequence[Tensor], bars: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """J_i^T w_i for each stage, (B, n), with `bars` w_i; None: zero."""
    pairs = [(k, w) for k, w in zip(slopes, bars, strict=True) if k.requires_grad]
    if not pairs:
        return [None] * len(states)
    outputs, grads = zip(*pairs, strict=True)
    vjps = torch.autograd.grad(
        outputs, tuple(states), grads, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return list(vjps)


def newton_matrix(equations: StageEquations, jacobians: Sequence[Tensor | None]) -> Tensor:
    """M, (B, m n, m n), from the Jacobians of f at the stages, (n, B, n) each; None: zero."""
    num_samples, width = equations.base[0].shape
    m = len(jacobians)
    out = torch.eye(m * width, dtype=equations.dt.dtype, device=equations.dt.device).expand(num_samples, -1, -1).clone()
    for i, jacobian_i in enumerate(jacobians):
        if jacobian_i is None:
            continue
        block_row = torch.cat([jacobian_i * c for c in equations.a[i]], -1)  # dF_i/dX over dt, (n, B, m n)
        block = torch.zeros_like(out).view(num_samples, m, width, -1)
        block = torch.cat([block[:, :i], block_row.transpose(0, 1)[:, None], block[:, i + 1 :]], 1)
        out = out - equations.dt[..., None] * block.view_as(out)
    return out


def linearise(equations: StageEquations, states: list[Tensor], slopes: list[Tensor], rtol: float) -> LinearSolver:
    """A solver for M, from stages with a graph. rtol: relative residual of a matrix-free solver."""
    if len(states) * states[0].shape[1] <= MAX_DENSE:
        return LUSolver(newton_matrix(equations, stage_jacobians(states, slopes)).detach())
    return MatrixFreeSolver(equations, states, slopes, rtol)


def value_and_linear_solver(equations: StageEquations, x: Tensor, rtol: float) -> tuple[Tensor, LinearSolver]:
    """F(X), and a solver for M at X, by the caller's Jacobian where there is one. rtol: see `linearise`."""
    if getattr(equations.f, "jacobian", None) is None or x.shape[1] * x.shape[2] > MAX_DENSE:
        states, slopes = equations.evaluate_with_graph(x)
        return torch.stack(slopes, 1).detach(), linearise(equations, states, slopes, rtol)
    states, f, layout = equations.states(x), equations.f, equations.layout
    jacobians = [
        jacobian(f, layout, t, y, constant=True).transpose(0, 1) for t, y in zip(equations.times, states, strict=True)
    ]
    return torch.stack(equations.slopes(states), 1), LUSolver(newton_matrix(equations, jacobians))


def _or_zeros(x: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if x is None else x
