"""One training step of a continuous flow, -mean log-density and its gradient, in each library.

The field is an MLP of (x, t) with two hidden layers of tanh, its trace exact. odenet and diffrax carry the tangents
through the layers in closed form; torchdiffeq has the trace as FFJORD's code has it ("brute force"): a derivative of
each component by autograd, inside the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import odenet

Step = Callable[[], Callable[[], list[Tensor]]]
"""Computes the loss and its gradient to all weights; what it returns gives the gradient."""


class BruteForce(nn.Module):
    """(dz/dt, -trace) with a derivative of each component of dz/dt, as FFJORD's divergence_bf."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0].requires_grad_(True)
            dz = self.field(t, z)
            rows = (torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1]))
            trace = torch.stack(list(rows), 1).sum(1, keepdim=True)
        return dz, -trace


def brute_force_log_prob(field: BruteForce, x: Tensor, tolerance: float) -> Tensor:
    """The log-density (B,) of x (B, D) by torchdiffeq's odeint_adjoint."""
    import torchdiffeq

    start = (x, x.new_zeros(len(x), 1))
    ts = torch.tensor([1.0, 0.0])
    z, change = torchdiffeq.odeint_adjoint(field, start, ts, rtol=tolerance, atol=tolerance, method="dopri5")
    normal = -0.5 * z[-1].square().sum(1) - 0.5 * x.shape[1] * math.log(2.0 * math.pi)
    return normal - change[-1].squeeze(1)


def _torch_step(loss: Callable[[], Tensor], weights: list[Tensor]) -> Step:
    def step() -> Callable[[], list[Tensor]]:
        gradient = torch.autograd.grad(loss(), weights)
        return lambda: list(gradient)

    return step


def odenet_step(field: Any, x: Tensor, tolerance: float, **options: Any) -> Step:
    flow = odenet.nn.CNF(field, rtol=tolerance, atol=tolerance, **options)
    return _torch_step(lambda: flow.loss(x), list(field.parameters()))


def torchdiffeq_step(field: Any, x: Tensor, tolerance: float) -> Step:
    func = BruteForce(field)
    return _torch_step(lambda: -brute_force_log_prob(func, x.clone(), tolerance).mean(), list(field.parameters()))


def diffrax_step(field: Any, x: Tensor, tolerance: float) -> Step:
    """The same, compiled by jax.jit, with its default gradient. The weights are read anew where they have changed."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "highest")
    given = list(field.parameters())

    def f(t: Any, state: Any, weights: Any) -> Any:
        (w1, b1, w2, b2, w3, b3), z = weights, state[0]
        a = jnp.tanh(jnp.concatenate([z, jnp.full((len(z), 1), t, z.dtype)], 1) @ w1.T + b1)
        b = jnp.tanh(a @ w2.T + b2)
        tangents = (1 - a * a)[:, None] * w1[:, : z.shape[1]].T
        tangents = (1 - b * b)[:, None] * (tangents @ w2.T)
        return b @ w3.T + b3, (tangents * w3).sum((1, 2))

    def loss(weights: Any, x: Any) -> Any:
        controller, term = diffrax.PIDController(rtol=tolerance, atol=tolerance), diffrax.ODETerm(f)
        start = (x, jnp.zeros(len(x), x.dtype))
        sol = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), 1.0, 0.0, None, start, weights, stepsize_controller=controller
        )
        z, log_det = sol.ys[0][-1], sol.ys[1][-1]
        return -(-0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi) + log_det).mean()

    compiled = jax.jit(jax.value_and_grad(loss))
    data, kept = jnp.asarray(x.numpy()), dict[str, Any]()

    def step() -> Callable[[], list[Tensor]]:
        versions = [p._version for p in given]
        if kept.get("versions") != versions:
            kept.update(versions=versions, weights=[jnp.array(p.detach().numpy()) for p in given])
        _, gradient = jax.block_until_ready(compiled(kept["weights"], data))
        return lambda: [torch.tensor(jax.device_get(g)) for g in gradient]

    return step


# in the order of the tables; the first is what the others are divided by
COMPILED, EAGER = "odenet, compiled", "odenet, eager"
CONTENDERS: dict[str, Callable[[Any, Tensor, float], Step]] = {
    COMPILED: lambda *args: odenet_step(*args, method="dopri5", compile=True),
    "odenet, compiled, tsit5": lambda *args: odenet_step(*args, method="tsit5", compile=True),
    EAGER: lambda *args: odenet_step(*args, method="dopri5"),
    "torchdiffeq odeint_adjoint, brute force": torchdiffeq_step,
    "diffrax, jit": diffrax_step,
}
