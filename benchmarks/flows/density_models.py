"""Models of a density, all trained the same way: log_prob(z), (B, D) -> (B,), and a loss of a batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import odenet
from odenet.train.flows.baselines import LogProb, gaussian, kernel_density
from odenet.train.flows.planar import PlanarFlow

from ..shared.errors import NotApplicableError

LEARNING_RATE, LOOKS, TOLERANCE, TEST_TOLERANCE = 1e-3, 10, 1e-4, 1e-5


class Learned:
    """A model that is trained: its module, the loss of a batch, and the log-density for a tolerance."""

    def __init__(self, module: nn.Module, loss: LogProb, log_prob: Callable[[Tensor, float], Tensor]) -> None:
        self.module, self.loss, self.log_prob = module, loss, log_prob


def planar(dim: int, hidden: int, compiled: bool) -> Learned:
    flow = PlanarFlow(dim, 32).start_at_identity()
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


FITTED: dict[str, Callable[[Tensor, Tensor], LogProb]] = {
    "Gaussian": lambda train, _: gaussian(train),
    "kernel density": kernel_density,
}
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
