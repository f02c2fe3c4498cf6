"""Make computed tensors differentiable, by a function that maps cotangents back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.autocast import current_autocast
from ..core.error_notes import add_note
from ..core.vjp import local_vjp

Pullback = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
Again = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def attach(
    pull: Pullback,
    again: Again | None,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    captured: Sequence[Tensor],
    spare: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """`outputs` (already computed, detached) as differentiable functions of `inputs`, `captured` and `spare`.

    pull: cotangents of the outputs -> those of (*inputs, *captured, *spare). again: computes the outputs once more from
    views of the inputs, by operations that autograd records: a backward pass with create_graph=True goes through them,
    to any order of derivative and with the memory of `backprop`. spare: leaves that may turn out not to have been used,
    and may be changed in place where they were not. again=None: such a pass goes
    through `pull` as well, and a second derivative is refused when it is taken.

    They come back as aliases: `pull` may hold what was given, and would hold itself through the graph of the results, a
    circle that no garbage collector sees.
    """
    counts = len(captured), len(spare)
    return _Attach.apply(pull, again, counts, [x.detach() for x in outputs], *inputs, *captured, *spare)


_ONE_BY_ONE = (
    "A continuous backward solve takes one cotangent: leave is_grads_batched=True and vectorize=True out, or take "
    "gradient='discrete', 'reversible' or 'backprop'."
)


class _Attach(torch.autograd.Function):
    takes_none = True

    @staticmethod
    def forward(
        ctx: Any, pull: Pullback, again: Again | None, counts: tuple[int, int], outputs: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        fixed = len(inputs) - counts[1]
        ctx.pull, ctx.again, ctx.captured = pull, again, counts[0]
        ctx.precision = current_autocast(outputs[0].device.type)
        ctx.save_for_backward(*inputs[:fixed])  # so that autograd notices inputs changed before the backward pass
        ctx.spare = [(x, x._version) for x in inputs[fixed:]]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        inputs, spare = ctx.saved_tensors, [x for x, _ in ctx.spare]
        split = len(inputs) - ctx.captured
        with ctx.precision(), add_note("Batching rule not implemented", _ONE_BY_ONE):
            if ctx.again is not None and torch.is_grad_enabled():
                bars = _differentiably(ctx.again, inputs[:split], (*inputs[split:], *spare), cotangents)
            else:
                with torch.no_grad():
                    bars = ctx.pull(cotangents)
                bars = once(bars, (*inputs, *spare, *cotangents), _ONLY_FIRST)
        for (x, version), bar in zip(ctx.spare, bars[len(inputs) :], strict=True):
            if bar is not None and x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that f uses has been modified by an inplace operation since "
                    "the solve: run the backward pass before it is changed"
                )
        return (None, None, None, None, *bars)


_ONLY_FIRST = (
    "a second derivative through odeint_adjoint is refused, as in torchdiffeq: use odeint, or "
    "odenet.solve(gradient='adjoint'), which give it"
)


def once(bars: Sequence[Tensor | None], of: Sequence[Tensor | None], refusal: str) -> list[Tensor | None]:
    """First derivatives that are functions of `of`, and raise `refusal` where one asks for the derivative of that."""
    asking = [x for x in of if x is not None and x.requires_grad]
    given = [x for x in bars if x is not None]
    if not asking or not given or not torch.is_grad_enabled():
        return list(bars)
    held = iter(_Once.apply(refusal, [x.detach() for x in given], *asking))
    return [None if x is None else next(held) for x in bars]


class _Once(torch.autograd.Function):
    """Tensors that depend on others in a way that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, refusal: str, outputs: list[Tensor], *of: Tensor) -> tuple[Tensor, ...]:
        ctx.refusal = refusal
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(ctx.refusal)


def _differentiably(
    again: Again, inputs: Sequence[Tensor], captured: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The pullback as operations that can be differentiated again.

    Each input is an input in its own right: where one was computed from another, nothing flows on from it here.
    """
    aliases = [x.view_as(x) if x.requires_grad else x for x in inputs]
    pairs = [(y, c) for y, c in zip(again(aliases), cotangents, strict=True) if c is not None and y.requires_grad]
    if not pairs:
        return [None] * (len(inputs) + len(captured))
    ys, bars = zip(*pairs, strict=True)
    return local_vjp(ys, (*aliases, *captured), bars, create_graph=True)
