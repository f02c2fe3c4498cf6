"""The polynomial through a function's values at the Chebyshev points of [0, 1], called nodes here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

NODES = 9  # so the polynomial has degree 8
_FINE = 96  # intervals of the fine grid, on which the sign of the polynomial is tested


@cache
def nodes() -> tuple[float, ...]:
    """The Chebyshev points of [0, 1], with both ends."""
    return tuple((1 - math.cos(math.pi * i / (NODES - 1))) / 2 for i in range(NODES))


@cache
def node_points() -> Tensor:
    """`nodes` as a tensor (n,)."""
    return torch.tensor(nodes(), dtype=torch.float64)


@cache
def fine_grid() -> tuple[Tensor, Tensor, Tensor]:
    """Points, nodes among them; the matrix from values at the nodes to values at the points; which points are nodes."""
    points = sorted({i / _FINE for i in range(_FINE + 1)} | set(nodes()))
    is_node = torch.tensor([x in nodes() for x in points])
    return torch.tensor(points, dtype=torch.float64), _interpolation(points), is_node


@cache
def node_grid() -> tuple[Tensor, Tensor, Tensor]:
    """`fine_grid` with the nodes as its only points."""
    is_node = torch.ones(NODES, dtype=torch.bool)
    return node_points(), torch.eye(NODES, dtype=torch.float64), is_node


def _interpolation(points: Sequence[float]) -> Tensor:
    """The matrix (len(points), n) from values at the nodes to values of their polynomial at these points.

    By the barycentric formula: J.-P. Berrut, L. N. Trefethen, Barycentric Lagrange interpolation, SIAM Review 46
    (2004), 501-517.
    """
    x = nodes()
    weights = [(-1.0) ** i * (0.5 if i in (0, NODES - 1) else 1.0) for i in range(NODES)]
    rows: list[list[float]] = []
    for point in points:
        if point in x:
            rows.append([float(point == node) for node in x])
            continue
        terms = [w / (point - node) for w, node in zip(weights, x, strict=True)]
        rows.append([term / sum(terms) for term in terms])
    return torch.tensor(rows, dtype=torch.float64)


@cache
def value_at(x: float) -> Tensor:
    """The matrix (n, 1) from values at the nodes to the value of their polynomial at x."""
    return _interpolation([x]).mT


@cache
def last_coefficients() -> Tensor:
    """The matrix (n, 3) from values at the nodes to the last three Chebyshev coefficients of their polynomial."""
    n = NODES - 1
    weights = [0.5 if i in (0, n) else 1.0 for i in range(NODES)]
    rows = [
        [(1.0 if k == n else 2.0) / n * w * math.cos(math.pi * k * i / n) for k in (n - 2, n - 1, n)]
        for i, w in enumerate(weights)
    ]
    return torch.tensor(rows, dtype=torch.float64)
