"""diffrax, compiled (jax.jit)."""

from __future__ import annotations

from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]  (the extra `bench`)
import jax  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from torch import Tensor

from . import jax_fields
from .contender import Output, Solver
from .problems import Problem


def _torch(x: Any) -> Tensor:
    return torch.from_numpy(np.array(x))


def start(problem: Problem, method: str, adjoint: str, step: float | None = None, **options: Any) -> Solver:
    """Prepare a method and an adjoint by their names in diffrax. options: of the adjoint. step: a constant step."""
    jax.config.update("jax_default_matmul_precision", "highest")  # float32 as elsewhere; a GPU's default is TF32
    device = jax.devices("gpu" if problem.y0.is_cuda else "cpu")[0]

    def put(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), device)

    args = {f"args.{i}": x for i, x in enumerate(problem.args)}
    y0, weights = put(problem.y0), {name: put(x) for name, x in (problem.weights | args).items()}
    field, ts, term = problem.field, put(problem.ts), diffrax.ODETerm(jax_fields.make(problem))
    adaptive = diffrax.PIDController(field.tolerance, field.tolerance)

    def solve(y: Any, weights: Any) -> Any:
        sol = diffrax.diffeqsolve(
            term,
            getattr(diffrax, method)(),
            0.0,
            field.end,
            step,
            y,
            weights,
            saveat=diffrax.SaveAt(t1=True) if len(ts) == 2 else diffrax.SaveAt(ts=ts[1:]),
            stepsize_controller=diffrax.ConstantStepSize() if step else adaptive,
            adjoint=getattr(diffrax, adjoint)(**options),
        )
        return sol.ys, sol.stats

    if field.per_sample:
        in_axes = (0, {name: 0 if name in args else None for name in weights})
        solve = jax.vmap(solve, in_axes=in_axes, out_axes=(1, 0))

    def loss(y: Any, weights: Any) -> Any:
        ys, stats = solve(y, weights)
        return (ys**2).sum(), (ys, stats)

    compiled_solve = jax.jit(solve)
    compiled_gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def counts(stats: Any) -> dict[str, Any]:
        return {name: _torch(stats[f"num_{name}_steps"]) for name in ("accepted", "rejected")}

    def forward() -> Output:
        ys, stats = jax.block_until_ready(compiled_solve(y0, weights))
        return Output(counts(stats), lambda: _torch(ys))

    def train() -> Output:
        (to_y0, to_weights), (ys, stats) = jax.block_until_ready(compiled_gradient(y0, weights))
        gradients = [to_y0, *(to_weights[name] for name in weights)]
        return Output(counts(stats), lambda: _torch(ys), lambda: [_torch(x) for x in gradients])

    return Solver(forward, train, "vmap over the systems" if field.per_sample else "")
