"""Attach computed tensors to the graph of their inputs, with a custom VJP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.autocast import current_autocast
from ..core.pytorch_error_notes import add_note
from ..core.vjp import local_vjp

BackwardFunction = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
RecomputeFunction = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def custom_vjp(
    backward: BackwardFunction,
    recompute: RecomputeFunction | None,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    captured: Sequence[Tensor],
    reachable: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Return detached `outputs` as differentiable functions of `inputs`, `captured` and `reachable`.

    backward: maps cotangents of the outputs to those of (*inputs, *captured, *reachable).
    recompute: computes the outputs again from views of the inputs, by operations that autograd records. A backward pass
        with create_graph=True goes through them, to any order of derivative and with the memory of `backprop`. None:
        such a pass calls `backward` too, and differentiating its result raises RuntimeError.
    reachable: leaves that f can reach and may not use; unused ones may be changed in place.

    The outputs are aliases: `backward` may hold the given tensors, and through the graph of the results it would hold
    itself, a cycle that Python's garbage collector does not see.
    """
    counts = len(captured), len(reachable)
    return _CustomVjp.apply(backward, recompute, counts, [x.detach() for x in outputs], *inputs, *captured, *reachable)


_NO_BATCHING = (
    "A continuous backward solve takes one cotangent: remove is_grads_batched=True and vectorize=True, or use "
    "gradient='discrete', 'reversible' or 'backprop'."
)


class _CustomVjp(torch.autograd.Function):
    takes_none = True

    @staticmethod
    def forward(
        ctx: Any,
        backward: BackwardFunction,
        recompute: RecomputeFunction | None,
        counts: tuple[int, int],
        outputs: list[Tensor],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        saved = len(inputs) - counts[1]
        ctx.vjp, ctx.recompute, ctx.captured = backward, recompute, counts[0]
        ctx.autocast = current_autocast(outputs[0].device.type)
        ctx.save_for_backward(*inputs[:saved])  # autograd then detects in-place changes before the backward pass
        ctx.reachable = [(x, x._version) for x in inputs[saved:]]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        inputs, reachable = ctx.saved_tensors, [x for x, _ in ctx.reachable]
        num_inputs = len(inputs) - ctx.captured
        with ctx.autocast(), add_note("Batching rule not implemented", _NO_BATCHING):
            if ctx.recompute is not None and torch.is_grad_enabled():
                input_bars = _differentiable_vjp(
                    ctx.recompute, inputs[:num_inputs], (*inputs[num_inputs:], *reachable), cotangents
                )
            else:
                with torch.no_grad():
                    input_bars = ctx.vjp(cotangents)
                input_bars = once_differentiable(input_bars, (*inputs, *reachable, *cotangents), _NO_SECOND_DERIVATIVE)
        for (x, version), bar in zip(ctx.reachable, input_bars[len(inputs) :], strict=True):
            if bar is not None and x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that f uses has been modified by an inplace operation since "
                    "the solve: run the backward pass before changing it"
                )
        return (None, None, None, None, *input_bars)


_NO_SECOND_DERIVATIVE = (
    "a second derivative through odeint_adjoint is refused, as in torchdiffeq: use odeint, or "
    "odenet.solve(gradient='adjoint'), which give it"
)


def once_differentiable(
    cotangents: Sequence[Tensor | None], dependencies: Sequence[Tensor | None], refusal: str
) -> list[Tensor | None]:
    """Attach first derivatives to `dependencies`; differentiating them raises RuntimeError with the text `refusal`."""
    differentiable = [x for x in dependencies if x is not None and x.requires_grad]
    present = [x for x in cotangents if x is not None]
    if not differentiable or not present or not torch.is_grad_enabled():
        return list(cotangents)
    results = iter(_OnceDifferentiable.apply(refusal, [x.detach() for x in present], *differentiable))
    return [None if x is None else next(results) for x in cotangents]


class _OnceDifferentiable(torch.autograd.Function):
    """Copies of tensors whose backward pass raises."""

    @staticmethod
    def forward(ctx: Any, refusal: str, outputs: list[Tensor], *dependencies: Tensor) -> tuple[Tensor, ...]:
        ctx.refusal = refusal
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *input_bars: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(ctx.refusal)


def _differentiable_vjp(
    recompute: RecomputeFunction,
    inputs: Sequence[Tensor],
    captured: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The VJP as differentiable operations.

    Inputs are aliased, so no gradient flows from one input to another that it was computed from.
    """
    aliases = [x.view_as(x) if x.requires_grad else x for x in inputs]
    pairs = [(y, c) for y, c in zip(recompute(aliases), cotangents, strict=True) if c is not None and y.requires_grad]
    if not pairs:
        return [None] * (len(inputs) + len(captured))
    outs, output_bars = zip(*pairs, strict=True)
    return local_vjp(outs, (*aliases, *captured), output_bars, create_graph=True)
