"""Make computed tensors differentiable, by a function that maps cotangents back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.autocast import autocast_as_now

Pullback = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
Again = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def attach(
    pull: Pullback, again: Again, outputs: Sequence[Tensor], inputs: Sequence[Tensor], captured: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`outputs` (already computed, detached) as differentiable functions of `inputs` and `captured`.

    pull: cotangents of the outputs -> those of (*inputs, *captured). again: computes the outputs once more from aliases
    of the inputs, by operations that autograd records: a backward pass with create_graph=True goes through them, to any
    order of derivative and with the memory of `backprop`.

    They come back as aliases: `pull` may hold what was given, and would hold itself through the graph of the results, a
    circle that no garbage collector sees.
    """
    return _Attach.apply(pull, again, len(captured), [x.detach() for x in outputs], *inputs, *captured)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pull: Pullback, again: Again, captured: int, outputs: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.pull, ctx.again, ctx.captured = pull, again, captured
        ctx.precision = autocast_as_now(outputs[0].device.type)
        ctx.save_for_backward(*inputs)  # so that autograd notices inputs changed in place before the backward pass
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        split = len(inputs) - ctx.captured
        with ctx.precision():
            if torch.is_grad_enabled():
                bars = _differentiably(ctx.again, inputs[:split], inputs[split:], cotangents)
            else:
                bars = ctx.pull(cotangents)
        return (None, None, None, None, *bars)


def _differentiably(
    again: Again, inputs: Sequence[Tensor], captured: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The pullback as operations that can be differentiated again."""
    _refuse_chains(captured)
    dam = _Dam()
    aliases = [_Alias.apply(x, dam) if x.requires_grad else x for x in inputs]
    pairs = [(y, c) for y, c in zip(again(aliases), cotangents, strict=True) if c is not None and y.requires_grad]
    asked = [x for x in (*aliases, *captured) if x.requires_grad]
    if not pairs or not asked:
        return [None] * (len(inputs) + len(captured))
    ys, bars = zip(*pairs, strict=True)
    dam.closed = True
    found = iter(torch.autograd.grad(ys, asked, bars, create_graph=True, allow_unused=True))
    dam.closed = False
    return [next(found) if x.requires_grad else None for x in (*inputs, *captured)]


@dataclass
class _Dam:
    """While it is closed nothing flows from an alias to what it stands for."""

    closed: bool = False


class _Alias(torch.autograd.Function):
    """An input in its own right: where one input was computed from another, autograd would count that way twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dam: _Dam) -> Tensor:
        ctx.dam = dam
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (None if ctx.dam.closed else bar), None


def _refuse_chains(captured: Sequence[Tensor]) -> None:
    """f uses captured tensors directly, so no alias can stand for them: one must not lead on to another."""
    ends = {id(x) for x in captured}
    edges = {(x.grad_fn, x.output_nr) for x in captured if x.grad_fn is not None}
    stack = [x.grad_fn for x in captured if x.grad_fn is not None]
    seen = set(stack)
    while stack:
        for edge in stack.pop().next_functions:
            node = edge[0]
            if id(getattr(node, "variable", None)) in ends or (edge in edges):
                raise RuntimeError(
                    "f closes over a tensor that was computed from another one that it closes over too: a backward "
                    "pass with create_graph=True can then be given by gradient='backprop' only, or hand the tensors "
                    "to f through `args`."
                )
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
