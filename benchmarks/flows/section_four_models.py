"""The two families of the Neural ODE paper's section 4: planar flows of depth K, continuous flows of width M."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import odenet
from odenet.train.flows.planar import PlanarFlow


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
        flow = PlanarFlow(2, size)
        return flow.start_at_identity() if size > 8 else flow  # each what served it better in trials
    return odenet.nn.CNF(GatedField(2, size), rtol=tolerance, atol=tolerance, compile=compiled)


def sample_and_log_prob(flow: Any, n: int) -> tuple[Tensor, Tensor]:
    """n samples (n, 2), and their log-density (n,), differentiable."""
    return flow.sample_and_log_prob(n if isinstance(flow, PlanarFlow) else (n,))
