"""The Jacobian df/dy: by the caller's function, or by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.leaf_function import bypasses_autograd
from ..core.leaves import forward_mode
from .matrix_layout import MatrixLayout
from .method import Field

_MAX_ROWWISE = 12  # Jacobians of up to so many rows are computed row by row, larger ones as one batched VJP


def jacobian(f: Field, layout: MatrixLayout, t: Tensor, y: Tensor, constant: bool = False) -> Tensor:
    """df/dy, (B, n, n), at (t, y) with y (B, n); by the caller's `jacobian=` where there is one.

    Differentiable in grad mode, as a Rosenbrock method needs it, unless `constant`.
    """
    user_jacobian = getattr(f, "jacobian", None)
    if user_jacobian is not None:
        df_dy = user_jacobian(t, layout.to_leaves(y))
        df_dy = df_dy if df_dy.layout == torch.strided else df_dy.to_dense()
        return df_dy.reshape(layout.num_samples, layout.width, layout.width).to(y)
    differentiable = not constant and (torch.is_grad_enabled() or forward_mode())
    with torch.inference_mode(False), torch.enable_grad():
        keep_y = differentiable and y.requires_grad
        state = y if keep_y else (y if differentiable else y.detach().clone()).requires_grad_()
        try:
            slope = layout.to_matrix(f(t.clone(), layout.to_leaves(state)))
        except RuntimeError as error:
            if bypasses_autograd(error):
                error.add_note(
                    "An implicit method needs df/dy, which autograd cannot compute for this f: pass jacobian="
                )
            raise
        (df_dy,) = stage_jacobians([state], [slope], differentiable)
    return y.new_zeros(layout.num_samples, layout.width, layout.width) if df_dy is None else df_dy.transpose(0, 1)


def stage_jacobians(
    states: Sequence[Tensor], slopes: Sequence[Tensor], create_graph: bool = False
) -> Sequence[Tensor | None]:
    """The Jacobian of each stage, (n, B, n), from states and slopes (B, n); None where a slope has no graph.

    One VJP for each of the n rows, of all stages and samples at once.
    """
    with_graph = [k for k in slopes if k.requires_grad]
    if not with_graph:
        return [None] * len(states)
    identity = torch.eye(states[0].shape[1], dtype=states[0].dtype, device=states[0].device)
    bars = [identity[:, None, :].expand(-1, *k.shape).contiguous() for k in with_graph]
    if len(identity) > _MAX_ROWWISE:
        try:
            return torch.autograd.grad(
                with_graph, states, bars, retain_graph=True, allow_unused=True, create_graph=create_graph,
                is_grads_batched=True,
            )  # fmt: skip
        except RuntimeError:  # vmap does not support an operation of f; any other error is raised again below
            pass
    rowwise: list[Sequence[Tensor | None]] = [
        torch.autograd.grad(
            with_graph, states, [b[i] for b in bars], retain_graph=True, allow_unused=True, create_graph=create_graph
        )
        for i in range(len(identity))
    ]
    # a row is None where f does not depend on the state: then all rows of that stage are
    return [
        None if rows[0] is None else torch.stack([row for row in rows if row is not None])
        for rows in zip(*rowwise, strict=True)
    ]
