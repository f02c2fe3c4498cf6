"""Spirals in the plane, seen at some of their points.

Chen et al. 2018, "Neural ordinary differential equations", section 5.1, with the constants of the example latent_ode.py
of torchdiffeq: 1000 points of angle in [0, 6 pi]; half of the spirals turn counter-clockwise, with radius 0.3 angle
about (5, 0), and half clockwise, with radius 15 / angle about (-5, 0). Each begins at a point of its own, and has 100
points with Gaussian noise of deviation 0.3; a random part of them is observed.
"""

from __future__ import annotations

import math

import torch

from ...series import Series

WINDOW = 100  # points that are observed, and as many beyond them
DIRECTIONS = ("counter-clockwise", "clockwise")
_POINTS, _RATE, _NOISE = 1000, 0.3, 0.3


def spirals(count: int, points: int, seed: int) -> tuple[Series, Series, torch.Tensor]:
    """The observed series, `points` rows of the first 100; the true ones, 200 rows; and the directions, (count,).

    Half of them, rounded up, are counter-clockwise (0), the others clockwise (1). Time is the angle from the first row.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = (torch.arange(count) % 2)[torch.randperm(count, generator=generator)]
    angle = torch.linspace(0.0, 6.0 * math.pi, _POINTS)
    # not at the beginning, where the clockwise spirals are slow and the others a point
    first = torch.randint(WINDOW, _POINTS - 2 * WINDOW, (count,), generator=generator)
    theta = angle[first[:, None] + torch.arange(2 * WINDOW)]
    falling = 6.0 * math.pi + 1.0 - theta
    clockwise = (direction == 1)[:, None]
    phase = torch.where(clockwise, falling, theta)
    radius = torch.where(clockwise, 50.0 * _RATE / falling, _RATE * theta)
    centre = torch.where(clockwise, -5.0, 5.0)
    path = torch.stack([radius * phase.cos() + centre, radius * phase.sin()], -1)
    truth = Series(angle[: 2 * WINDOW].clone(), path, channels=("x", "y"))
    noisy = path[:, :WINDOW] + _NOISE * torch.randn(count, WINDOW, 2, generator=generator)
    rank = torch.rand(count, WINDOW, generator=generator).argsort(1).argsort(1)
    seen = Series(angle[:WINDOW].clone(), noisy, channels=("x", "y")).select(rank < points)
    return seen, truth, direction
