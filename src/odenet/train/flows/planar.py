"""Planar flows, the baseline of the Neural ODE paper.

Rezende & Mohamed 2015, "Variational inference with normalizing flows".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Planar(nn.Module):
    """A layer f(z) = z + u tanh(w . z + b), (B, D) -> (B, D), with log |det df/dz|, (B,).

    u is kept where w . u > -1, so that f is invertible (appendix A.1); the inverse has no closed form.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(dim)
        self.w = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        self.u = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        product = self.w @ self.u
        u = self.u + (F.softplus(product) - 1.0 - product) * self.w / self.w.square().sum().clamp(min=1e-12)
        value = torch.tanh(z @ self.w + self.b)
        slope = (1.0 - value * value) * (self.w @ u)
        return z + value.unsqueeze(1) * u, torch.log1p(slope)


class PlanarFlow(nn.Module):
    """A stack of K planar layers between a standard normal and another density, in the direction that is used.

    log_prob(x): of data, with the stack from x to the normal: for maximum likelihood. sample_and_log_prob(n): samples
    of the normal moved by the stack, and their log-density: to fit a target that is known up to a factor. One flow is
    for one of the two, as a planar layer has no inverse in closed form.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(Planar(dim) for _ in range(layers))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The stack applied to z (B, D), and log |det|, (B,)."""
        log_det = z.new_zeros(len(z))
        for layer in self.layers:
            z, change = layer(z)
            log_det = log_det + change
        return z, log_det

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, D) -> (B,)."""
        z, log_det = self(x)
        return _normal(z) + log_det

    def sample_and_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples, (n, D), and their log-density, (n,); both differentiable."""
        like = next(self.parameters())
        z = torch.randn(n, self.dim, dtype=like.dtype, device=like.device)
        x, log_det = self(z)
        return x, _normal(z) - log_det


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
