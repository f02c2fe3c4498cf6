"""Planar flows: the determinant against that of the Jacobian, and the two directions."""

from __future__ import annotations

import torch

from odenet.train.flows.planar import PlanarFlow


def test_determinant_and_density() -> None:
    torch.manual_seed(0)
    flow = PlanarFlow(2, 5).double()
    with torch.no_grad():
        flow.u.mul_(-4.0)  # where w . u < -1 a layer must still be invertible
    z = torch.randn(20, 2, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow(v[None])[0][0]))(z)
    torch.testing.assert_close(flow(z)[1], jacobian.det().log())
    grid = torch.linspace(-20, 20, 801, dtype=torch.float64)
    total = flow.log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * 0.05**2
    assert abs(total.item() - 1.0) < 1e-3
    x, log_prob = flow.sample_and_log_prob(20_000)
    # E_q[N / q] = 1 for a normal where q has samples
    normal = torch.distributions.Independent(torch.distributions.Normal(x.mean(0), 0.5 * x.std(0)), 1)
    assert abs((normal.log_prob(x) - log_prob).exp().mean().item() - 1.0) < 0.1


def test_start_at_identity() -> None:
    flow, z = PlanarFlow(3, 32).double().start_at_identity(), torch.randn(5, 3, dtype=torch.float64)
    x, log_det = flow(z)
    torch.testing.assert_close(x, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    flow.log_prob(z).sum().backward()
    assert flow.u.grad is not None and flow.u.grad.abs().max() > 0.1
