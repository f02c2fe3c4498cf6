"""Make computed tensors differentiable, by a function that maps cotangents back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.autocast import current_autocast
from ..core.error_notes import add_note
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
    """`outputs` (already computed, detached) as differentiable functions of `inputs`, `captured` and `reachable`.

    pull: cotangents of the outputs -> those of (*inputs, *captured, *spare). again: computes the outputs once more from
    views of the inputs, by operations that autograd records: a backward pass with create_graph=True goes through them,
    to any order of derivative and with the memory of `backprop`. spare: leaves that may turn out not to have been used,
    and may be changed in place where they were not. again=None: such a pass goes
    through `backward` as well, and a second derivative is refused when it is taken.

    They come back as aliases: `backward` may hold what was given, and would hold itself through the graph of the results, a
    circle that no garbage collector sees.
    """
    counts = len(captured), len(reachable)
    return _CustomVjp.apply(backward, recompute, counts, [x.detach() for x in outputs], *inputs, *captured, *reachable)


_NO_BATCHING = (
    "A continuous backward solve takes one cotangent: leave is_grads_batched=True and vectorize=True out, or take "
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
        ctx.backward, ctx.recompute, ctx.captured = backward, recompute, counts[0]
        ctx.autocast = current_autocast(outputs[0].device.type)
        ctx.save_for_backward(*inputs[:saved])  # so that autograd notices inputs changed before the backward pass
        ctx.reachable = [(x, x._version) for x in inputs[saved:]]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        inputs, reachable = ctx.saved_tensors, [x for x, _ in ctx.reachable]
        num_inputs = len(inputs) - ctx.captured
        with ctx.autocast(), add_note("Batching rule not implemented", _NO_BATCHING):
            if ctx.recompute is not None and torch.is_grad_enabled():
                bars = _differentiable_vjp(
                    ctx.recompute, inputs[:num_inputs], (*inputs[num_inputs:], *reachable), cotangents
                )
            else:
                with torch.no_grad():
                    bars = ctx.backward(cotangents)
                bars = once_differentiable(bars, (*inputs, *reachable, *cotangents), _NO_SECOND_DERIVATIVE)
        for (x, version), bar in zip(ctx.reachable, bars[len(inputs) :], strict=True):
            if bar is not None and x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that f uses has been modified by an inplace operation since "
                    "the solve: run the backward pass before it is changed"
                )
        return (None, None, None, None, *bars)


_NO_SECOND_DERIVATIVE = (
    "a second derivative through odeint_adjoint is refused, as in torchdiffeq: use odeint, or "
    "odenet.solve(gradient='adjoint'), which give it"
)


def once_differentiable(
    cotangents: Sequence[Tensor | None], dependencies: Sequence[Tensor | None], refusal: str
) -> list[Tensor | None]:
    """First derivatives that are functions of `dependencies`, and raise `refusal` where one asks for the derivative of that."""
    differentiable = [x for x in dependencies if x is not None and x.requires_grad]
    present = [x for x in cotangents if x is not None]
    if not differentiable or not present or not torch.is_grad_enabled():
        return list(cotangents)
    results = iter(_OnceDifferentiable.apply(refusal, [x.detach() for x in present], *differentiable))
    return [None if x is None else next(results) for x in cotangents]


class _OnceDifferentiable(torch.autograd.Function):
    """Tensors that depend on others in a way that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, refusal: str, outputs: list[Tensor], *dependencies: Tensor) -> tuple[Tensor, ...]:
        ctx.refusal = refusal
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(ctx.refusal)


def _differentiable_vjp(
    recompute: RecomputeFunction,
    inputs: Sequence[Tensor],
    captured: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The pullback as operations that can be differentiated again.

    Each input is an input in its own right: where one was computed from another, nothing flows on from it here.
    """
    aliases = [x.view_as(x) if x.requires_grad else x for x in inputs]
    pairs = [(y, c) for y, c in zip(recompute(aliases), cotangents, strict=True) if c is not None and y.requires_grad]
    if not pairs:
        return [None] * (len(inputs) + len(captured))
    ys, bars = zip(*pairs, strict=True)
    return local_vjp(ys, (*aliases, *captured), bars, create_graph=True)
