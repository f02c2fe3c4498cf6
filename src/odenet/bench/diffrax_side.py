"""The cost benchmark's problem in diffrax, from the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .passes import Pass, Start

CHECKPOINTED, BACKSOLVE = "diffrax checkpointed", "diffrax backsolve"


def starts(weights: nn.Sequential, y0: Tensor, steps: int, step: float) -> dict[str, Start]:
    """By label: diffrax's default gradient, with fewer checkpoints, and its continuous adjoint. All compiled (jit)."""

    def start(adjoint: str, **options: Any) -> Start:
        return lambda: _start(adjoint, options, weights, y0, steps, step)

    return {
        f"{CHECKPOINTED}, default": start("RecursiveCheckpointAdjoint"),
        f"{CHECKPOINTED}, checkpoints=N/10": start("RecursiveCheckpointAdjoint", checkpoints=max(1, steps // 10)),
        BACKSOLVE: start("BacksolveAdjoint"),
    }


def _start(name: str, options: dict[str, Any], net: nn.Sequential, y0: Tensor, steps: int, step: float) -> Any:
    import diffrax  # pyright: ignore[reportMissingImports]  (the extra `bench`)
    import jax  # pyright: ignore[reportMissingImports]

    device = jax.devices("gpu" if y0.is_cuda else "cpu")[0]
    put = [jax.device_put(x.detach().cpu().numpy(), device) for x in (y0, *net.parameters())]
    start, weights = put[0], put[1:]

    def field(t: Any, y: Any, args: Any) -> Any:
        w1, b1, w2, b2 = args
        return jax.numpy.tanh(jax.nn.softplus(y @ w1.T + b1) @ w2.T + b2)

    def loss(y: Any, args: Any) -> Any:
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            steps * step,
            step,
            y,
            args,
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=getattr(diffrax, name)(**options),
        )
        assert sol.ys is not None
        return (sol.ys[-1] ** 2).mean(), sol.stats["num_steps"]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    def one() -> Pass:
        (y_bar, weights_bar), taken = jax.block_until_ready(compiled(start, weights))
        return Pass(lambda: [torch.from_numpy(np.array(x)) for x in (y_bar, *weights_bar)], {"accepted": int(taken)})

    return one
