"""If no step was accepted, the parameters of f get zero gradients instead of None.

Distributed training needs a gradient from every process: one whose samples take no step (times of zero length, failure
at the start) would leave all other processes waiting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.distributed_guard import is_distributed
from ..core.leaves import Leaves
from ..core.reachable import find_reachable
from ..core.scalars import any_true
from ..engine.problem import Problem
from .failed_samples import succeeded
from .gradient import Trajectory, gradient_bypassed


def ensure_zero_grads(p: Problem, trajectory: Trajectory) -> Trajectory:
    """The trajectory, with zero gradients for what f uses or reaches if no step was accepted or all samples failed."""
    accepted = trajectory.outcome.accepted
    if gradient_bypassed() or p.traced:
        return trajectory
    healthy = succeeded(p, trajectory.outcome.state.status)
    all_failed = healthy is not None and not bool(healthy.any())
    if not all_failed and any_true(accepted > 0):
        return trajectory
    tensors = {id(x): x for x in ((*p.y0, p.ts) if all_failed else ())}
    tensors |= {id(x): x for x in p.f.differentiable_args}
    tensors |= {key: x for key, (_, x) in find_reachable(p.f.user_call[0]).leaves.items()}
    if is_distributed():  # FullyShardedDataParallel passes views of its shards to f: an evaluation finds them
        q = p.detached()
        with torch.no_grad():
            q.f(q.ts[..., 0], q.y0)
        tensors |= {id(x): x for x in q.f.capture()[0]}
    if not tensors:
        return trajectory

    def with_zeros(y: Leaves) -> Leaves:
        y = tuple(x.detach() for x in y) if all_failed else y
        return tuple(Zeros.apply(len(tensors), *tensors.values(), *y))

    return trajectory.map_states(with_zeros)


class Zeros(torch.autograd.Function):
    """Copies the tensors after the first `count`; the gradient of the first `count` is zero."""

    takes_none = True

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.specs = [(x.shape, x.dtype, x.device) for x in tensors[:count]]
        ctx.set_materialize_grads(False)
        return tuple(x.clone() for x in tensors[count:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.specs, ctx.needs_input_grad[1:], strict=False)
        zeros = [torch.zeros(s, dtype=d, device=device) if needed else None for (s, d, device), needed in pairs]
        return (None, *zeros, *cotangents)
