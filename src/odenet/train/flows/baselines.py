"""Densities that a flow is compared with, trained on the same rows: Gaussian, kernels, planar, coupling, spline flows.

All of them see columns of mean 0 and deviation 1. Learned ones keep the weights of the epoch that was best in
validation.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .planar import PlanarFlow

LogProb = Callable[[Tensor], Tensor]
NAMES = {
    "gaussian": "Gaussian",
    "kde": "kernel density",
    "planar": "planar flow",
    "coupling": "affine coupling flow",
    "spline": "spline flow",
}
_ZUKO = ("coupling", "spline")
_KERNELS = 10_000  # rows that a kernel density keeps
_LAYERS = 32  # of the planar flow
_PAIRS = 4_000_000  # distances held at a time


@dataclass(frozen=True)
class Rows:
    """The rows of a comparison, and how often they are passed over, as for the flow.

    train: the rows of an epoch, (N, D). val, test: (N, D).
    """

    train: Callable[[int], Tensor]
    val: Tensor
    test: Tensor
    batch_size: int
    epochs: int
    seed: int


@dataclass(frozen=True)
class Baseline:
    """log_prob: of the test rows, (N,), in nats. seconds: of its training. parameters: numbers that were fitted."""

    name: str
    log_prob: Tensor
    parameters: int
    seconds: float


def missing(names: list[str], dim: int) -> str:
    """Which of the baselines cannot be made here of D columns, and why; empty where all can."""
    absent = [name for name in names if name in _ZUKO]
    if not absent or (dim > 1 and find_spec("zuko") is not None):
        return ""
    left_out = f"{' and '.join(NAMES[name] for name in absent)} left out"
    return (
        f"{left_out}: of two columns or more"
        if dim < 2
        else f'{left_out}, zuko is missing: pip install "torch-odenet[flows]"'
    )


def baselines(names: list[str], rows: Rows) -> Iterator[Baseline]:
    """The baselines, one after the other; those that need zuko are left out without it, and in one dimension."""
    first = rows.train(0)
    mean, std = first.double().mean(0), first.double().std(0, correction=0)
    dim = first.shape[1]

    def scaled(x: Tensor) -> Tensor:
        return ((x.double() - mean) / std).to(x.dtype)

    standard = Rows(
        lambda epoch: scaled(rows.train(epoch)),
        scaled(rows.val),
        scaled(rows.test),
        rows.batch_size,
        rows.epochs,
        rows.seed,
    )
    for name in names:
        if missing([name], dim):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rows.seed)
            start = time.perf_counter()
            density, parameters = _MAKE[name](standard)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                parts = [density(part).double() for part in standard.test.split(1000)]
        yield Baseline(name, torch.cat(parts) - std.log().sum(), parameters, seconds)


def gaussian(train: Tensor) -> LogProb:
    """The normal distribution of maximum likelihood. train: rows, (N, D)."""
    x = train.double()
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0).view(x.shape[1], x.shape[1]))
    return lambda z: normal.log_prob(z.double())


def kernel_density(train: Tensor, val: Tensor) -> LogProb:
    """Gaussian kernels on the rows (N, D), of one bandwidth: that of 25 which is best for val."""
    centres = train[:_KERNELS]

    def log_prob(x: Tensor, width: float) -> Tensor:
        constant = -math.log(len(centres)) - x.shape[1] * (math.log(width) + 0.5 * math.log(2.0 * math.pi))
        parts = x.split(max(_PAIRS // len(centres), 1))
        distances = (torch.cdist(part, centres, compute_mode="donot_use_mm_for_euclid_dist") for part in parts)
        return constant + torch.cat([torch.logsumexp(-0.5 * (d / width).square(), 1) for d in distances])

    widths = torch.logspace(-2.0, 0.4, 25).tolist()
    best = max(widths, key=lambda width: float(log_prob(val, width).mean()))
    return lambda x: log_prob(x, best)


def _gaussian(rows: Rows) -> tuple[LogProb, int]:
    x = rows.train(0)
    dim = x.shape[1]
    return gaussian(x), dim + dim * (dim + 1) // 2


def _kernels(rows: Rows) -> tuple[LogProb, int]:
    return kernel_density(rows.train(0), rows.val), 1


def _planar(rows: Rows) -> tuple[LogProb, int]:
    flow = PlanarFlow(rows.val.shape[1], _LAYERS).start_at_identity()
    return _fitted(flow, flow.log_prob, rows, 1e-2)


def _coupling(rows: Rows) -> tuple[LogProb, int]:
    """Affine coupling layers (Dinh et al. 2017, "Density estimation using Real NVP")."""
    zuko: Any = import_module("zuko")
    flow = zuko.flows.RealNVP(rows.val.shape[1], transforms=6, hidden_features=(64, 64))
    return _fitted(flow, lambda x: flow().log_prob(x), rows, 2e-3)


def _spline(rows: Rows) -> tuple[LogProb, int]:
    """Rational-quadratic splines, autoregressive (Durkan et al. 2019, "Neural spline flows")."""
    zuko: Any = import_module("zuko")
    flow = zuko.flows.NSF(rows.val.shape[1], transforms=3, bins=8, hidden_features=(64, 64))
    return _fitted(flow, lambda x: flow().log_prob(x), rows, 2e-3)


_MAKE = {"gaussian": _gaussian, "kde": _kernels, "planar": _planar, "coupling": _coupling, "spline": _spline}


def _fitted(model: nn.Module, log_prob: LogProb, rows: Rows, lr: float) -> tuple[LogProb, int]:
    """Maximum likelihood by Adam with one cycle of the learning rate."""
    steps = max(len(rows.train(0)) // rows.batch_size, 1) * rows.epochs
    optimizer = torch.optim.Adam(model.parameters(), lr)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 8), pct_start=0.25)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for epoch in range(rows.epochs):
        x = rows.train(epoch)
        for index in torch.randperm(len(x)).split(rows.batch_size)[: max(len(x) // rows.batch_size, 1)]:
            optimizer.zero_grad()
            (-log_prob(x[index]).mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            cycle.step()
        with torch.no_grad():
            now = -float(log_prob(rows.val).mean())
        if now < best:
            best, kept = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return log_prob, sum(p.numel() for p in model.parameters())
