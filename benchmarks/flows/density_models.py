"""Models of a density, all trained the same way: log_prob(z), (B, D) -> (B,), and a loss of a batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import odenet

from ..shared.errors import NotApplicableError
from .section_four_models import StackedPlanar

LogProb = Callable[[Tensor], Tensor]
LEARNING_RATE, LOOKS, TOLERANCE, TEST_TOLERANCE = 1e-3, 10, 1e-4, 1e-5


def gaussian(train: Tensor, val: Tensor) -> LogProb:
    """The normal distribution of the rows, with the part of the identity in its covariance that serves val best."""
    mean, covariance = train.mean(0), train.T.cov()
    eye = torch.eye(train.shape[1])
    models = [MultivariateNormal(mean, (1 - a) * covariance + a * eye) for a in (1e-4, 1e-3, 1e-2, 0.1, 0.3)]
    return max(models, key=lambda m: float(m.log_prob(val).mean())).log_prob


def kernel_density(train: Tensor, val: Tensor) -> LogProb:
    """Normal kernels on the rows, of the width that serves val best."""

    def log_prob(width: float, z: Tensor) -> Tensor:
        constant = math.log(len(train)) + train.shape[1] * math.log(width * math.sqrt(2 * math.pi))
        parts = [torch.cdist(rows, train).square() for rows in z.split(256)]
        return torch.cat([(-d / (2 * width**2)).logsumexp(1) for d in parts]) - constant

    widths = [0.05 * 1.25**i for i in range(16)]
    best = max(widths, key=lambda w: float(log_prob(w, val).mean()))
    return lambda z: log_prob(best, z)


class Learned:
    """A model that is trained: its module, the loss of a batch, and the log-density for a tolerance."""

    def __init__(self, module: nn.Module, loss: LogProb, log_prob: Callable[[Tensor, float], Tensor]) -> None:
        self.module, self.loss, self.log_prob = module, loss, log_prob


def planar(dim: int, hidden: int, compiled: bool) -> Learned:
    flow = StackedPlanar(dim, 32)
    with torch.no_grad():
        flow.u.mul_(0.05)
    return Learned(flow, lambda z: -flow.log_prob(z).mean(), lambda z, _: flow.log_prob(z))


def cnf(dim: int, hidden: int, compiled: bool) -> Learned:
    """FFJORD's field with its exact trace in closed form."""
    field = odenet.nn.ConcatSquashField(dim, (hidden, hidden), "tanh")
    flow = odenet.nn.CNF(field, rtol=TOLERANCE, atol=TOLERANCE, compile=compiled)

    def log_prob(z: Tensor, tolerance: float) -> Tensor:
        return odenet.nn.CNF(field, rtol=tolerance, atol=tolerance).log_prob(z)

    return Learned(field, flow.loss, log_prob)


def _matching(coupling: Any) -> Callable[[int, int, bool], Learned]:
    def make(dim: int, hidden: int, compiled: bool) -> Learned:
        flow = odenet.nn.FlowMatching(odenet.nn.MLPField(dim, (2 * hidden,) * 3, "silu"), coupling=coupling)
        return Learned(flow, flow.loss, lambda z, tolerance: flow.log_prob(z, rtol=tolerance, atol=tolerance))

    return make


def _zuko(name: str, **options: Any) -> Callable[[int, int, bool], Learned]:
    def make(dim: int, hidden: int, compiled: bool) -> Learned:
        import zuko

        if not hasattr(zuko.flows, name):
            raise NotApplicableError(f"this zuko has no {name}")
        flow = getattr(zuko.flows, name)(dim, hidden_features=(hidden, hidden), **options)
        return Learned(flow, lambda z: -flow().log_prob(z).mean(), lambda z, _: flow().log_prob(z))

    return make


FITTED = {"Gaussian": gaussian, "kernel density": kernel_density}
LEARNED: dict[str, Callable[[int, int, bool], Learned]] = {
    "planar flow, K = 32": planar,
    "CNF": cnf,
    "FlowMatching": _matching("independent"),
    "FlowMatching, coupling ot": _matching("ot"),
    "zuko NSF": _zuko("NSF", transforms=3),
    "zuko RealNVP": _zuko("RealNVP", transforms=8),
}


def fit(model: Learned, batches: Iterator[Tensor], val: Tensor, seconds: float) -> tuple[float, int]:
    """Train for some seconds, and leave the weights of the best look at val. Return its nats, and the iterations.

    Looks are not in the time, and neither is the first step, which compiles.
    """
    optimizer = torch.optim.Adam(model.module.parameters(), lr=LEARNING_RATE)
    model.loss(next(batches)).backward()
    best, kept, passed, iterations = -math.inf, copy.deepcopy(model.module.state_dict()), 0.0, 0
    for look in range(1, LOOKS + 1):
        start = time.perf_counter()
        while (now := passed + time.perf_counter() - start) < seconds * look / LOOKS:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - now / seconds)
            optimizer.zero_grad()
            model.loss(next(batches)).backward()
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), 10.0)
            optimizer.step()
            iterations += 1
        passed = now
        with torch.no_grad():
            nats = float(model.log_prob(val, TOLERANCE).mean())
        if nats > best:
            best, kept = nats, copy.deepcopy(model.module.state_dict())
    model.module.load_state_dict(kept)
    return best, iterations
