"""Densities in the plane that are known up to a factor: exp(-U(z)).

Rezende & Mohamed 2015, "Variational inference with normalizing flows", table 1. Their U2 and U3 are constant along the
first component, so exp(-U) has no integral there; here all have a wall on |z1| > 4, the edge of the paper's figures:
without it a flow widens for ever. The normaliser comes from quadrature on a grid, so that a divergence is absolute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

EDGE = 4.0
_WALL = 0.4  # standard deviation of the normal tails beyond the edge


def _wave(z: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * z[:, 0])


def _bump(x: Tensor, width: float) -> Tensor:
    """log exp(-(x / width)^2 / 2)."""
    return -0.5 * (x / width).square()


def _ring(z: Tensor) -> Tensor:
    """A ring of radius 2, at its heaviest left and right."""
    sides = torch.logaddexp(_bump(z[:, 0] - 2, 0.6), _bump(z[:, 0] + 2, 0.6))
    return _bump(z.norm(dim=1) - 2, 0.4) + sides


def _sine(z: Tensor) -> Tensor:
    return _bump(z[:, 1] - _wave(z), 0.4)


def _split_sine(z: Tensor) -> Tensor:
    """A wave that parts in two and comes together again."""
    x = z[:, 1] - _wave(z)
    return torch.logaddexp(_bump(x, 0.35), _bump(x + 3 * _bump(z[:, 0] - 1, 0.6).exp(), 0.35))


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"U1": _ring, "U2": _sine, "U3": _split_sine}
TARGETS = tuple(_SHAPES)


def log_target(name: str, z: Tensor) -> Tensor:
    """-U(z), (n,), of points (n, 2)."""
    return _SHAPES[name](z) + _bump((z[:, 0].abs() - EDGE).clamp(min=0), _WALL)


def grid(n: int, edge: float) -> tuple[Tensor, float]:
    """The centres of n x n cells of [-edge, edge]^2, (n^2, 2), the first component slowest, and the area of a cell."""
    side = 2 * edge / n
    at = (torch.arange(n, dtype=torch.float64) + 0.5) * side - edge
    return torch.cartesian_prod(at, at), side**2


@lru_cache
def log_normaliser(name: str) -> float:
    """log of the integral of exp(-U), by the midpoint rule, whose error for smooth tails is of rounding."""
    points, area = grid(1200, 8.0)
    return float(log_target(name, points).logsumexp(0) + math.log(area))
