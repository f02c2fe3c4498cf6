"""diffrax, compiled (jax.jit)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fields import Problem
from ..passes import Pass
from . import jax_fields
from .runs import Contender, Runs

CHECKPOINTED, BACKSOLVE = "diffrax, checkpointed", "diffrax, backsolve"


def _start(name: str, problem: Problem) -> Runs:
    import diffrax  # pyright: ignore[reportMissingImports]  (the extra `bench`)
    import jax  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_default_matmul_precision", "highest")  # float32 as elsewhere; a GPU's default is TF32
    device = jax.devices("gpu" if problem.y0.is_cuda else "cpu")[0]

    def put(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), device)

    args = {f"args.{i}": x for i, x in enumerate(problem.args)}
    y0, weights = put(problem.y0), {name: put(x) for name, x in (problem.weights | args).items()}
    field, ts, term = problem.field, put(problem.ts), diffrax.ODETerm(jax_fields.field(problem))
    rows = field.per_sample

    def solve(y: Any, weights: Any) -> Any:
        sol = diffrax.diffeqsolve(
            term,
            diffrax.Dopri5(),
            0.0,
            field.end,
            None,
            y,
            weights,
            saveat=diffrax.SaveAt(t1=True) if len(ts) == 2 else diffrax.SaveAt(ts=ts[1:]),
            stepsize_controller=diffrax.PIDController(field.tolerance, field.tolerance),
            adjoint=getattr(diffrax, name)(),
        )
        return sol.ys, sol.stats

    mapped = (
        jax.vmap(solve, in_axes=(0, {name: 0 if name in args else None for name in weights}), out_axes=(1, 0))
        if rows
        else solve
    )

    def loss(y: Any, weights: Any) -> Any:
        ys, stats = mapped(y, weights)
        return (ys**2).sum(), (ys, stats)

    forward_call = jax.jit(mapped)
    train_call = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def back(x: Any) -> Tensor:
        return torch.from_numpy(np.array(x))

    def counts(stats: Any) -> dict[str, Any]:
        return {"accepted": back(stats["num_accepted_steps"]), "rejected": back(stats["num_rejected_steps"])}

    def forward() -> Pass:
        ys, stats = jax.block_until_ready(forward_call(y0, weights))
        return Pass(list, counts(stats), lambda: back(ys))

    def train() -> Pass:
        (y_bar, w_bar), (ys, stats) = jax.block_until_ready(train_call(y0, weights))
        return Pass(
            lambda: [back(x) for x in (y_bar, *(w_bar[name] for name in weights))], counts(stats), lambda: back(ys)
        )

    return Runs(forward, train, "vmap over the systems" if rows else "")


CONTENDERS = (
    Contender(CHECKPOINTED, partial(_start, "RecursiveCheckpointAdjoint"), compiled=True),
    Contender(BACKSOLVE, partial(_start, "BacksolveAdjoint"), compiled=True),
)
