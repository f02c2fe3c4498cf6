"""Problems with a known solution, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExactProblem:
    """dy/dt = f(t, y) from y0 over [0, end]. solution: y at the end. stiff: the problem is for implicit methods."""

    name: str
    text: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    end: float
    solution: Tensor
    stiff: bool = False


_ECCENTRICITY = 0.3
_EPSILON = 1e-4


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _orbit(t: Tensor, y: Tensor) -> Tensor:
    place, speed = y[:2], y[2:]
    return torch.cat([speed, -place / place.square().sum() ** 1.5])


def _rotation(t: Tensor, y: Tensor) -> Tensor:
    speed = 1 + 0.5 * torch.cos(t)
    return torch.stack([-y[1] * speed, y[0] * speed])


def _kaps(t: Tensor, y: Tensor) -> Tensor:
    square = y[1] * y[1]
    return torch.stack([-(1 / _EPSILON + 2) * y[0] + square / _EPSILON, y[0] - y[1] - square])


_START = _vector(1 - _ECCENTRICITY, 0, 0, math.sqrt((1 + _ECCENTRICITY) / (1 - _ECCENTRICITY)))
_ANGLE = 8.0 + 0.5 * math.sin(8.0)
_TURNED, _DECAYED = _vector(math.cos(_ANGLE), math.sin(_ANGLE)), _vector(math.exp(-2), math.exp(-1))

PROBLEMS = (
    ExactProblem("orbit", "Kepler's problem, eccentricity 0.3, one period", _orbit, _START, 2 * math.pi, _START),
    ExactProblem("rotation", "a rotation with speed 1 + cos(t)/2, t1 8", _rotation, _vector(1, 0), 8.0, _TURNED),
    ExactProblem("Kaps", "Kaps's problem, epsilon 1e-4, t1 1", _kaps, _vector(1, 1), 1.0, _DECAYED, stiff=True),
)
