"""Stages of an implicit step that depend on one another: their equations, linearised, and their Newton solve.

With X = (k_1 ... k_m), (B, m, n) in rows, and F_i(X) = f(t_i, base_i + dt sum_j a_ij k_j), the equations are X = F(X);
their derivative is M = I - dt (a_ij J_i) with J_i the Jacobian of f at stage i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.krylov import gmres
from ..core.rows import Rows
from .base import Field

_FEW = 12  # Jacobians of up to so many rows are computed row by row, larger ones as one batched product
DENSE = 500  # unknowns of a system (of a sample) up to which it is solved by a factorised matrix: see docs/methods.md


@dataclass
class Equations:
    """X = F(X). times: of the stages. base: what stage i starts from, (B, n) each. dt: (B, 1). a: the m x m block."""

    f: Field
    rows: Rows
    times: list[Tensor]
    base: list[Tensor]
    dt: Tensor
    a: Sequence[Sequence[float]]

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


def matrix(equations: Equations, states: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """M, (B, m n, m n): one vector-Jacobian product for each of the n entries of a row, all stages at once."""
    count, width = states[0].shape
    m = len(states)
    unit = torch.eye(width, dtype=states[0].dtype, device=states[0].device)
    out = torch.eye(m * width, dtype=unit.dtype, device=unit.device).expand(count, -1, -1).clone()
    for i, jacobian in enumerate(_jacobians(states, slopes, unit)):
        if jacobian is None:
            continue
        row = torch.cat([jacobian * c for c in equations.a[i]], -1)  # (n, B, m n): what each entry of F_i asks of X
        block = torch.zeros_like(out).view(count, m, width, -1)
        block = torch.cat([block[:, :i], row.transpose(0, 1)[:, None], block[:, i + 1 :]], 1)
        out = out - equations.dt[..., None] * block.view_as(out)
    return out


def _jacobians(states: list[Tensor], slopes: list[Tensor], unit: Tensor) -> Sequence[Tensor | None]:
    """Of each stage, (n, B, n)."""
    chosen = [k for k in slopes if k.requires_grad]
    if not chosen:
        return [None] * len(states)
    bars = [unit[:, None, :].expand(-1, *k.shape).contiguous() for k in chosen]
    keep = {"retain_graph": True, "allow_unused": True}
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
        return Dense(matrix(equations, states, slopes).detach())
    return MatrixFree(equations, states, slopes, rtol)
