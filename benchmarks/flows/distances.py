"""Distances between two samples of the same size."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def wasserstein(x: Tensor, y: Tensor) -> float:
    """The 2-Wasserstein distance of samples (n, D) and (n, D), exact.

    Between equally many points of equal weight an optimal plan is a permutation, so this is the square root of POT's
    emd2 on squared distances.
    """
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** 0.5)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The square root of 2 E|X - Y| - E|X - X'| - E|Y - Y'|, of samples (n, D); pairs of different points."""
    n, x, y = len(x), x.double(), y.double()
    within = (torch.cdist(x, x).sum() + torch.cdist(y, y).sum()) / (n * (n - 1))
    return float((2 * torch.cdist(x, y).mean() - within).clamp(min=0)) ** 0.5


def rms(x: Tensor, y: Tensor) -> float:
    """The root of the mean squared difference of the components."""
    return float((x.double() - y.double()).square().mean().sqrt())
