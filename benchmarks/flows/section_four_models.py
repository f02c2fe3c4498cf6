"""The two families of the Neural ODE paper's section 4: planar flows of depth K, continuous flows of width M."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenet


class StackedPlanar(nn.Module):
    """`odenet.train.flows.planar.PlanarFlow` with the parameters of all layers in three tensors: some times as fast.

    Its peer is continuous and compiled, so it gets the faster form.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(dim)
        self.w = nn.Parameter(torch.empty(layers, dim).uniform_(-bound, bound))
        self.u = nn.Parameter(torch.empty(layers, dim).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(layers))

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
        z, log_det = self(x)
        return _normal(z) + log_det

    def sample_and_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, self.w.shape[1])
        x, log_det = self(z)
        return x, _normal(z) - log_det


class GatedField(nn.Module):
    """dz/dt = sum over M units of gate_n(t) u_n tanh(w_n . z + b_n).

    Chen et al. 2018, section 4: a unit is what a layer of a planar flow adds, and the gates, in (0, 1), say when.
    """

    def __init__(self, dim: int, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.w = nn.Parameter(torch.randn(width, dim))
        self.u = nn.Parameter(torch.randn(width, dim) / width)
        self.b = nn.Parameter(torch.randn(width))
        self.gate = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.with_trace(t, z)[0]

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt, and the trace of its Jacobian, (B,)."""
        gate = self.gate(t.to(z.dtype).view(1))
        value = torch.tanh(z @ self.w.t() + self.b)
        return (value * gate) @ self.u, (1.0 - value * value) @ (gate * (self.w * self.u).sum(1))


def make(family: str, size: int, tolerance: float, compiled: bool) -> Any:
    """A planar flow of `size` layers ("NF"), or a continuous flow of `size` units ("CNF")."""
    if family == "NF":
        return StackedPlanar(2, size)
    return odenet.nn.CNF(GatedField(2, size), rtol=tolerance, atol=tolerance, compile=compiled)


def sample_and_log_prob(flow: Any, n: int) -> tuple[Tensor, Tensor]:
    """n samples (n, 2), and their log-density (n,), differentiable."""
    return flow.sample_and_log_prob(n if isinstance(flow, StackedPlanar) else (n,))


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
