"""Planar flows: the determinant against that of the Jacobian, and the two directions."""

from __future__ import annotations

import torch

from odenet.train.flows.planar import PlanarFlow


def test_determinant_and_density() -> None:
    torch.manual_seed(0)
    flow = PlanarFlow(2, 5).double()
    with torch.no_grad():
        for layer in flow.layers:
            layer.u.mul_(-4.0)  # where w . u < -1 the layer must still be invertible
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
