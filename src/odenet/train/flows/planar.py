"""Planar flows, the baseline of the Neural ODE paper.

Rezende & Mohamed 2015, "Variational inference with normalizing flows".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlanarFlow(nn.Module):
    """A stack of K planar layers between a standard normal and another density, in the direction that is used.

    A layer is f(z) = z + u tanh(w . z + b) with log |det df/dz| = log |1 + (1 - tanh^2) w . u|; u is kept where
    w . u > -1, so that f is invertible (appendix A.1). The inverse has no closed form, so one flow is for one of the
    two: log_prob(x) of data, with the stack from x to the normal, for maximum likelihood; sample_and_log_prob(n),
    samples of the normal moved by the stack, and their log-density, to fit a target that is known up to a factor.

    dim: of a sample. layers: K. Parameters: w and u (K, dim), b (K,).
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(dim)
        self.w = nn.Parameter(torch.empty(layers, dim).uniform_(-bound, bound))
        self.u = nn.Parameter(torch.empty(layers, dim).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(layers))

    @torch.no_grad()
    def start_at_identity(self) -> PlanarFlow:
        """Make each layer the identity: many random layers map far away."""
        self.u.copy_(math.log(math.e - 1.0) * self.w / self.w.square().sum(1, keepdim=True))
        return self

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The stack applied to z (B, D), and log |det|, (B,)."""
        product = (self.w * self.u).sum(1)
        scale = (F.softplus(product) - 1.0 - product) / self.w.square().sum(1).clamp(min=1e-12)
        u = self.u + scale[:, None] * self.w
        values: list[Tensor] = []
        for w_k, u_k, b_k in zip(self.w.unbind(), u.unbind(), self.b.unbind(), strict=True):
            value = torch.tanh(torch.addmv(b_k, z, w_k))
            z = torch.addr(z, value, u_k)
            values.append(value)
        slopes = (1.0 - torch.stack(values, 1).square()) * (self.w * u).sum(1)
        return z, torch.log1p(slopes).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, D) -> (B,)."""
        z, log_det = self(x)
        return _normal(z) + log_det

    def sample_and_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples, (n, D), and their log-density, (n,); both differentiable."""
        z = torch.randn(n, self.w.shape[1], dtype=self.w.dtype, device=self.w.device)
        x, log_det = self(z)
        return x, _normal(z) - log_det


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
