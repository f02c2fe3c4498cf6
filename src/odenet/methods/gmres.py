"""GMRES for a batch of linear systems.

Source: Y. Saad, M. H. Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems,
SIAM J. Sci. Stat. Comput. 7 (1986), 856-869.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gmres(
    product: Callable[[Tensor], Tensor], b: Tensor, rtol: float, subspace: int = 60, cycles: int = 20
) -> tuple[Tensor, Tensor]:
    """The x with product(x) = b, (B, N), and True for each system that converged, (B,).

    product: the matrices of all systems times x, (B, N). rtol: relative residual. subspace: products before a restart.
    Called without grad mode.
    """
    x, residual = torch.zeros_like(b), b
    goal = rtol * b.norm(dim=1)
    for _ in range(cycles):
        size = residual.norm(dim=1)
        if not bool((size > goal).any()):
            break
        x = x + _cycle(product, residual, size, goal, min(subspace, b.shape[1]))
        residual = b - product(x)
    # round-off of the residual may exceed the goal
    return x, residual.norm(dim=1) <= 100 * goal


def _cycle(product: Callable[[Tensor], Tensor], b: Tensor, size: Tensor, goal: Tensor, subspace: int) -> Tensor:
    """The correction that minimises the residual in the Krylov space of b, (B, N). size: norms of b, (B,)."""
    basis = [b / _nonzero(size)[:, None]]
    triangle = b.new_zeros(b.shape[0], subspace, subspace)  # R of the QR factors of the Hessenberg matrix
    rotated = [size]  # the right-hand side after the rotations
    rotations: list[tuple[Tensor, Tensor]] = []
    for j in range(subspace):
        w = product(basis[j])
        round_off = 10 * torch.finfo(b.dtype).eps * w.norm(dim=1)
        column: list[Tensor] = []
        for v in basis:
            h = (w * v).sum(1)
            w = w - h[:, None] * v
            column.append(h)
        length = w.norm(dim=1)
        length = torch.where(length <= round_off, torch.zeros_like(length), length)
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = torch.hypot(column[j], length)
        degenerate = radius <= round_off
        c = torch.where(degenerate, 1.0, column[j] / _nonzero(radius))
        s = torch.where(degenerate, 0.0, length / _nonzero(radius))
        rotations.append((c, s))
        column[j] = torch.where(degenerate, 1.0, radius)
        triangle[:, : j + 1, j] = torch.stack(column, 1)
        rotated[j], last = torch.where(degenerate, 0.0, c * rotated[j]), -s * rotated[j]
        rotated.append(last)
        active = (last.abs() > goal) & (length > 0)
        if not bool(active.any()):
            break
        basis.append(torch.where(active[:, None], w / _nonzero(length)[:, None], 0.0))
    count = len(rotations)
    right = torch.stack(rotated[:count], 1)[:, :, None]
    weights = torch.linalg.solve_triangular(triangle[:, :count, :count], right, upper=True)[:, :, 0]
    correction = torch.zeros_like(b)
    for k in range(count):
        correction = correction + weights[:, k, None] * basis[k]
    return correction


def _nonzero(x: Tensor) -> Tensor:
    """x, with ones in place of zeros."""
    return torch.where(x == 0, torch.ones_like(x), x)
