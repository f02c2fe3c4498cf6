"""GMRES, for many systems side by side.

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
    """x with product(x) = b, and a boolean for each row that got there. b, x: (B, N), a system in each row.

    Restarted after `subspace` products. Called without grad mode.
    """
    x, residual = torch.zeros_like(b), b
    goal = rtol * b.norm(dim=1)
    for _ in range(cycles):
        left = residual.norm(dim=1)
        if not bool((left > goal).any()):
            break
        x = x + _cycle(product, residual, left, goal, min(subspace, b.shape[1]))
        residual = b - product(x)
    # what rounding leaves of the residual may lie above the goal
    return x, residual.norm(dim=1) <= 100 * goal


def _cycle(product: Callable[[Tensor], Tensor], b: Tensor, size: Tensor, goal: Tensor, most: int) -> Tensor:
    """The correction with the least residual from the Krylov space of b."""
    basis = [b / _safe(size)[:, None]]
    triangle = b.new_zeros(b.shape[0], most, most)
    heights = [size]  # the residual in the rotated basis
    turns: list[tuple[Tensor, Tensor]] = []
    for j in range(most):
        w = product(basis[j])
        least = 10 * torch.finfo(b.dtype).eps * w.norm(dim=1)  # what is left of w below this is rounding
        column = []
        for v in basis:
            h = (w * v).sum(1)
            w = w - h[:, None] * v
            column.append(h)
        length = w.norm(dim=1)
        length = torch.where(length <= least, torch.zeros_like(length), length)
        for i, (c, s) in enumerate(turns):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = torch.hypot(column[j], length)
        flat = radius <= least
        c = torch.where(flat, 1.0, column[j] / _safe(radius))
        s = torch.where(flat, 0.0, length / _safe(radius))
        turns.append((c, s))
        column[j] = torch.where(flat, 1.0, radius)
        triangle[:, : j + 1, j] = torch.stack(column, 1)
        heights[j], height = torch.where(flat, 0.0, c * heights[j]), -s * heights[j]
        heights.append(height)
        going = (height.abs() > goal) & (length > 0)
        if not bool(going.any()):
            break
        basis.append(torch.where(going[:, None], w / _safe(length)[:, None], 0.0))
    count = len(turns)
    right = torch.stack(heights[:count], 1)[:, :, None]
    weights = torch.linalg.solve_triangular(triangle[:, :count, :count], right, upper=True)[:, :, 0]
    total = torch.zeros_like(b)
    for k in range(count):
        total = total + weights[:, k, None] * basis[k]
    return total


def _safe(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.ones_like(x), x)
