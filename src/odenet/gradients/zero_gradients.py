"""A solve that took no step, or none that counts: what f would have used has the gradient zero there, and not none.

A process whose samples need no step (no time to cross, a failure at the start) takes part in what all processes do with
the gradients; one that had none to give would leave the others waiting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.distributed_guard import in_processes
from ..core.leaves import Leaves
from ..core.reachable import find_reachable
from ..core.scalars import any_true
from ..engine.problem import Problem
from .failed_samples import succeeded
from .gradient import Trajectory, gradient_bypassed


def ensure_zero_grads(p: Problem, trajectory: Trajectory) -> Trajectory:
    """`found`, with zeros for what f uses and all leaves that it reaches, if no step was accepted or all failed."""
    accepted = trajectory.outcome.accepted
    if gradient_bypassed() or p.traced:
        return trajectory
    good = succeeded(p, trajectory.outcome.state.status)
    constant = good is not None and not bool(good.any())
    if not constant and any_true(accepted > 0):
        return trajectory
    asked = {id(x): x for x in ((*p.y0, p.ts) if constant else ())}
    asked |= {id(x): x for x in p.f.differentiable_args}
    asked |= {key: x for key, (_, x) in find_reachable(p.f.parts[0]).leaves.items()}
    if in_processes():  # FullyShardedDataParallel hands f views of what it shards: those are found by their use
        q = p.detached()
        with torch.no_grad():
            q.f(q.ts[..., 0], q.y0)
        asked |= {id(x): x for x in q.f.capture()[0]}
    if not asked:
        return trajectory

    def attached(y: Leaves) -> Leaves:
        y = tuple(x.detach() for x in y) if constant else y
        return tuple(Zeros.apply(len(asked), *asked.values(), *y))

    return trajectory.map_states(attached)


class Zeros(torch.autograd.Function):
    """Copies of what follows the first `count` tensors; the gradient of those is zero."""

    takes_none = True

    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.looks = [(x.shape, x.dtype, x.device) for x in given[:count]]
        ctx.set_materialize_grads(False)
        return tuple(x.clone() for x in given[count:])

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.looks, ctx.needs_input_grad[1:], strict=False)
        zeros = [torch.zeros(s, dtype=d, device=at) if wanted else None for (s, d, at), wanted in pairs]
        return (None, *zeros, *bars)
