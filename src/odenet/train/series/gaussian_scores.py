"""Scores of Gaussian forecasts: each entry has a mean and a standard deviation, and a value that came."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BAND = 1.6448536269514722  # deviations on each side of the mean that hold 90 %


class Gaussian(NamedTuple):
    """mean, std: (B, Q, C)."""

    mean: Tensor
    std: Tensor


def nll(forecast: Gaussian, value: Tensor) -> Tensor:
    """Negative log-likelihood, in nats."""
    z = (value - forecast.mean) / forecast.std
    return 0.5 * z.square() + forecast.std.log() + 0.5 * math.log(2 * math.pi)


def crps(forecast: Gaussian, value: Tensor) -> Tensor:
    """Continuous ranked probability score, the integral of (F(y) - 1[y >= value])^2 dy, in the units of the value.

    Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
    """
    z = (value - forecast.mean) / forecast.std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return forecast.std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def covered(forecast: Gaussian, value: Tensor) -> Tensor:
    """Whether the value is within the central band of 90 %."""
    return (value - forecast.mean).abs() <= BAND * forecast.std
