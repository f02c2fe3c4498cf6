"""Stages of an implicit step that depend on one another: their equations, linearised, and their Newton solve.

With X = (k_1 ... k_m), (B, m, n) in rows, and F_i(X) = f(t_i, base_i + dt sum_j a_ij k_j), the equations are X = F(X);
their derivative is M = I - dt (a_ij J_i) with J_i the Jacobian of f at stage i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..core.field_protocols import Field
from ..core.leaf_function import bypasses_autograd
from ..core.leaves import forward_mode
from .gmres import gmres
from .state_matrix import StateMatrix

_FEW = 12  # Jacobians of up to so many rows are computed row by row, larger ones as one batched product
MOST = 2**26  # entries of Jacobians and their factors, of all samples together
DENSE = 500  # unknowns of a system (of a sample) up to which it is solved by a factorised matrix: see docs/methods.md


@dataclass
class Equations:
    """X = F(X). times: of the stages. base: what stage i starts from, (B, n) each. dt: (B, 1). a: the m x m block."""

    f: Field
    rows: StateMatrix
    times: list[Tensor]
    base: list[Tensor]
    dt: Tensor
    a: Sequence[Sequence[float]]

    def bare(self) -> Equations:
        """The same without a graph, or a tangent of forward mode."""

        def primal(x: Tensor) -> Tensor:
            return forward_ad.unpack_dual(x).primal.detach() if forward_mode() else x.detach()

        times, base = [primal(t) for t in self.times], [primal(y) for y in self.base]
        return replace(self, times=times, base=base, dt=primal(self.dt))

    def shift(self, x: Tensor) -> Tensor:
        """dt sum_j a_ij x_j, (B, m, n)."""
        if len(self.a) == 1:
            return self.dt[..., None] * self.a[0][0] * x
        return self.dt[..., None] * (x.new_tensor(self.a)[None, :, :, None] * x[:, None]).sum(2)

    def slopes_of(self, shift: Tensor, otherwise: Tensor) -> Tensor:
        """x with that shift; `otherwise` for samples whose step has no length."""
        inverse = torch.linalg.inv(torch.tensor(self.a, dtype=torch.float64)).to(shift)
        moves = self.dt[..., None] != 0
        found = (inverse[None, :, :, None] * shift[:, None]).sum(2) / torch.where(moves, self.dt[..., None], 1.0)
        return torch.where(moves, found, otherwise)

    def states(self, x: Tensor) -> list[Tensor]:
        """base_i + dt sum_j a_ij k_j."""
        out = []
        for base, row in zip(self.base, self.a, strict=True):
            total = sum(k * c for k, c in zip(x.unbind(1), row, strict=True) if c != 0.0)
            out.append(base + self.dt * total)
        return out

    def slopes(self, states: Sequence[Tensor]) -> list[Tensor]:
        return [self.rows.join(self.f(t, self.rows.part(y))) for t, y in zip(self.times, states, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack(self.slopes(self.states(x)), 1)

    def opened(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stages' states, as leaves of their own, and slopes, with a graph from each state to its slope."""
        with torch.enable_grad():
            states = [y.detach().requires_grad_() for y in self.states(x)]
            return states, self.slopes(states)

    def transposed(self, pulled: Sequence[Tensor | None], w: Tensor) -> Tensor:
        """M^T w, where `pulled` is J_i^T w_i."""
        columns = []
        for j, own in enumerate(w.unbind(1)):
            total: Tensor | None = None
            for g, row in zip(pulled, self.a, strict=True):
                if row[j] != 0.0 and g is not None:
                    total = g * row[j] if total is None else total + g * row[j]
            columns.append(own if total is None else own - self.dt * total)
        return torch.stack(columns, 1)


class Linear(Protocol):
    """M at some X, to be solved with."""

    def solve(self, b: Tensor) -> Tensor:
        """x with M x = b; (B, m, n)."""
        ...

    def solve_transposed(self, b: Tensor) -> Tensor: ...


class Dense:
    """M as a factorised matrix for each row of the batch."""

    def __init__(self, matrix: Tensor) -> None:
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(self, b: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.factors, self.pivots, b.flatten(1)[..., None])[..., 0].view_as(b)

    def solve_transposed(self, b: Tensor) -> Tensor:
        columns = b.flatten(1)[..., None]
        return torch.linalg.lu_solve(self.factors, self.pivots, columns, adjoint=True)[..., 0].view_as(b)

    def mixed(self, lanes: Tensor, other: Dense) -> Dense:
        """That of `other` for `lanes`."""
        out = Dense.__new__(Dense)
        out.factors = torch.where(lanes[:, None, None], other.factors, self.factors)
        out.pivots = torch.where(lanes[:, None], other.pivots, self.pivots)
        return out


class MatrixFree:
    """M by its products; both by vector-Jacobian products of f."""

    def __init__(self, equations: Equations, states: list[Tensor], slopes: list[Tensor], rtol: float) -> None:
        self.equations, self.states, self.slopes, self.rtol = equations, states, slopes, rtol
        self.doubled: tuple[list[Tensor], list[Tensor | None]] | None = None
        self.converged = True

    def solve(self, b: Tensor) -> Tensor:
        return self._gmres(self.product, b)

    def solve_transposed(self, b: Tensor) -> Tensor:
        return self._gmres(self.transposed, b)

    def product(self, v: Tensor) -> Tensor:
        """M v. J_i u is the derivative with respect to w of (J_i^T w) . u, as that is linear in w."""
        if self.doubled is None:
            with torch.enable_grad():
                w = [torch.zeros_like(k, requires_grad=True) for k in self.slopes]
                self.doubled = w, pulled(self.states, self.slopes, w, create_graph=True)
        w, back = self.doubled
        moved = [
            self.equations.dt * sum(k * c for k, c in zip(v.unbind(1), row, strict=True)) for row in self.equations.a
        ]
        pairs = [(g, u) for g, u in zip(back, moved, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return v
        outs, bars = zip(*pairs, strict=True)
        pushed = torch.autograd.grad(outs, w, bars, retain_graph=True, allow_unused=True)
        return v - torch.stack([torch.zeros_like(x) if p is None else p for x, p in zip(w, pushed, strict=True)], 1)

    def transposed(self, w: Tensor) -> Tensor:
        return self.equations.transposed(pulled(self.states, self.slopes, w.unbind(1)), w)

    def _gmres(self, product, b: Tensor) -> Tensor:
        with torch.no_grad():
            x, converged = gmres(lambda v: product(v.view_as(b)).flatten(1), b.flatten(1), self.rtol)
        self.converged = bool(converged.all())
        return x.view_as(b)


def pulled(
    states: Sequence[Tensor], slopes: Sequence[Tensor], bars: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """J_i^T w_i for each stage."""
    pairs = [(k, w) for k, w in zip(slopes, bars, strict=True) if k.requires_grad]
    if not pairs:
        return [None] * len(states)
    outs, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        outs, tuple(states), grads, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return list(found)


def matrix(equations: Equations, jacobians: Sequence[Tensor | None]) -> Tensor:
    """M, (B, m n, m n), from the Jacobians of f at the stages, (n, B, n) each."""
    count, width = equations.base[0].shape
    m = len(jacobians)
    out = torch.eye(m * width, dtype=equations.dt.dtype, device=equations.dt.device).expand(count, -1, -1).clone()
    for i, found in enumerate(jacobians):
        if found is None:
            continue
        row = torch.cat([found * c for c in equations.a[i]], -1)  # (n, B, m n): what each entry of F_i asks of X
        block = torch.zeros_like(out).view(count, m, width, -1)
        block = torch.cat([block[:, :i], row.transpose(0, 1)[:, None], block[:, i + 1 :]], 1)
        out = out - equations.dt[..., None] * block.view_as(out)
    return out


def _jacobians(states: list[Tensor], slopes: list[Tensor], create_graph: bool = False) -> Sequence[Tensor | None]:
    """Of each stage, (n, B, n): one vector-Jacobian product for each of the n entries of a row, all stages at once."""
    chosen = [k for k in slopes if k.requires_grad]
    if not chosen:
        return [None] * len(states)
    unit = torch.eye(states[0].shape[1], dtype=states[0].dtype, device=states[0].device)
    bars = [unit[:, None, :].expand(-1, *k.shape).contiguous() for k in chosen]
    keep = {"retain_graph": True, "allow_unused": True, "create_graph": create_graph}
    if len(unit) > _FEW:
        try:
            return torch.autograd.grad(chosen, states, bars, is_grads_batched=True, **keep)
        except RuntimeError:  # f has an operation that cannot be batched; a true error comes again below
            pass
    singly = [torch.autograd.grad(chosen, states, [b[i] for b in bars], **keep) for i in range(len(unit))]
    columns: list[Sequence[Any]] = list(zip(*singly, strict=True))
    return [None if column[0] is None else torch.stack(list(column)) for column in columns]


def linearised(equations: Equations, states: list[Tensor], slopes: list[Tensor], rtol: float) -> Linear:
    """M, from stages that were opened. rtol: of a matrix-free solve."""
    if len(states) * states[0].shape[1] <= DENSE:
        return Dense(matrix(equations, _jacobians(states, slopes)).detach())
    return MatrixFree(equations, states, slopes, rtol)


def value_and_linear(equations: Equations, x: Tensor, rtol: float) -> tuple[Tensor, Linear]:
    """F(X), and M there, by the caller's Jacobian where there is one. rtol: of a matrix-free solve."""
    if getattr(equations.f, "jacobian", None) is None or x.shape[1] * x.shape[2] > DENSE:
        states, slopes = equations.opened(x)
        return torch.stack(slopes, 1).detach(), linearised(equations, states, slopes, rtol)
    states, f, rows = equations.states(x), equations.f, equations.rows
    found = [
        jacobian(f, rows, t, y, constant=True).transpose(0, 1) for t, y in zip(equations.times, states, strict=True)
    ]
    return torch.stack(equations.slopes(states), 1), Dense(matrix(equations, found))


def few_enough(count: int, width: int, systems: int) -> bool:
    """Whether `count` samples of so many unknowns have room for their Jacobians and factors."""
    return width <= DENSE and count * width * width * (1 + 2 * systems) <= MOST


def jacobian(f: Field, rows: StateMatrix, t: Tensor, y: Tensor, constant: bool = False) -> Tensor:
    """df/dy, (B, n, n), at (t, y) with y in rows; by the caller's function where there is one.

    Differentiable in grad mode, as the steps of a Rosenbrock method are made of it, but where it is to be a `constant`.
    """
    given = getattr(f, "jacobian", None)
    if given is not None:
        found = given(t, rows.part(y))
        found = found if found.layout == torch.strided else found.to_dense()
        return found.reshape(rows.count, rows.width, rows.width).to(y)
    attached = not constant and (torch.is_grad_enabled() or forward_mode())
    with torch.inference_mode(False), torch.enable_grad():
        state = y if attached and y.requires_grad else (y if attached else y.detach().clone()).requires_grad_()
        try:
            slope = rows.join(f(t.clone(), rows.part(state)))
        except RuntimeError as error:
            if bypasses_autograd(error):
                error.add_note("An implicit method needs df/dy, which autograd does not find of this f: give jacobian=")
            raise
        (found,) = _jacobians([state], [slope], attached)
    return y.new_zeros(rows.count, rows.width, rows.width) if found is None else found.transpose(0, 1)


class Krylov:
    """Systems I - dt a (x) J with J at one state, by products with J alone."""

    def __init__(self, f: Field, rows: StateMatrix, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.dt = dt
        with torch.enable_grad():
            self.state = y.detach().requires_grad_()
            slope = rows.join(f(t, rows.part(self.state)))
            self.w = torch.zeros_like(slope, requires_grad=True)
            self.back = pulled([self.state], [slope], [self.w], create_graph=True)[0]

    def product(self, v: Tensor) -> Tensor:
        """J v, (B, n): the derivative with respect to w of (J^T w) . v, which is linear in w."""
        if self.back is None or not self.back.requires_grad:
            return torch.zeros_like(v)
        (found,) = torch.autograd.grad(self.back, self.w, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if found is None else found

    def solve(self, a: Sequence[Sequence[float]], b: Tensor, rtol: float) -> Tensor:
        """x with x - dt a (x) J x = b to this relative residual; (B, m, n)."""

        def system(flat: Tensor) -> Tensor:
            v = flat.view_as(b)
            pushed = [self.product(x) for x in v.unbind(1)]
            whole = torch.stack(pushed, 1)
            rises = (whole.new_tensor(a)[None, :, :, None] * whole[:, None]).sum(2)
            return (v - self.dt[..., None] * rises).flatten(1)

        return gmres(system, b.flatten(1), rtol)[0].view_as(b)
