"""Problems with a known solution, float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exact:
    """dy/dt = f(t, y) from y0 over [0, end], where y is `solution` at the end. stiff: for implicit methods."""

    name: str
    text: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    end: float
    solution: Tensor
    stiff: bool


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_ECCENTRICITY = 0.3
_EPSILON = 1e-4


def _orbit(t: Tensor, y: Tensor) -> Tensor:
    place, speed = y[:2], y[2:]
    return torch.cat([speed, -place / place.square().sum() ** 1.5])


def _forced(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-y[1] * (1 + 0.5 * torch.cos(t)), y[0] * (1 + 0.5 * torch.cos(t))])


def _kaps(t: Tensor, y: Tensor) -> Tensor:
    square = y[1] * y[1]
    return torch.stack([-(1 / _EPSILON + 2) * y[0] + square / _EPSILON, y[0] - y[1] - square])


def problems() -> list[Exact]:
    start = _vector(1 - _ECCENTRICITY, 0, 0, math.sqrt((1 + _ECCENTRICITY) / (1 - _ECCENTRICITY)))
    angle = 8.0 + 0.5 * math.sin(8.0)
    return [
        Exact("orbit", "Kepler's problem, eccentricity 0.3, one period", _orbit, start, 2 * math.pi, start, False),
        Exact(
            "rotation",
            "a rotation with speed 1 + cos(t)/2, t1 8",
            _forced,
            _vector(1, 0),
            8.0,
            _vector(math.cos(angle), math.sin(angle)),
            False,
        ),
        Exact(
            "Kaps",
            "Kaps's problem, epsilon 1e-4, t1 1",
            _kaps,
            _vector(1, 1),
            1.0,
            _vector(math.exp(-2), math.exp(-1)),
            True,
        ),
    ]
