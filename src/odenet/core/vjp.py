"""Vector-Jacobian products that end at given tensors, whatever these were computed from.

`torch.autograd.grad` goes on from an input to another one that it was computed from: it would count that way here and
once more where the caller's own graph is walked, and free the caller's graph. So where inputs are computed from one
another, the nodes between the outputs and the inputs are called from here, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from .reachable import Edge

Node = Any


def gradient_edge(x: Tensor) -> Edge:
    """Where autograd hands the gradient of x over; x asks for one."""
    found = get_gradient_edge(x)
    return found.node, found.output_nr


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Hooks of these tensors are not called: they are for a whole gradient, not for the parts that it is made of."""
    given: Iterator[Any] = (h for x in tensors for h in (x._backward_hooks, x._post_accumulate_grad_hooks))
    dicts = [h for h in given if h]
    held = [(hooks, dict(hooks)) for hooks in dicts]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in held:
            hooks.update(kept)


def accumulated_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor], others: Sequence[Tensor]
) -> list[Tensor | None]:
    """As `torch.autograd.grad(outputs, inputs, bars, allow_unused=True)`, of inputs that are leaves.

    By what is accumulated in them, as a reentrant `torch.utils.checkpoint` allows nothing else. others: leaves in which
    it is accumulated too.
    """
    leaves = [x for x in (*inputs, *others) if x.requires_grad]
    before = [x.grad for x in leaves]
    try:
        for x in leaves:
            x.grad = None
        with without_hooks(leaves):
            torch.autograd.backward(outputs, bars)
        return [x.grad if x.requires_grad else None for x in inputs]
    finally:
        for x, grad in zip(leaves, before, strict=True):
            x.grad = grad


def local_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """The cotangents of `inputs`, each taken as an input in its own right; None where `outputs` do not use it.

    As `torch.autograd.grad(outputs, inputs, bars, allow_unused=True, retain_graph=True)`, but that no gradient flows on
    from an input. Hooks of tensors between are not called.
    """
    places = {gradient_edge(x): i for i, x in enumerate(inputs) if x.requires_grad}
    found: list[Tensor | None] = [None] * len(inputs)
    waiting: dict[Node, list[Tensor | None]] = {}
    order, leads = _nodes(outputs, places)

    def hand(edge: Edge, bar: Tensor) -> None:
        node, number = edge
        place = places.get((node, number))
        if place is not None:
            found[place] = _sum(found[place], _fitted(bar, inputs[place].shape, inputs[place].dtype))
        elif node in leads:
            like = node._input_metadata
            bars = waiting.setdefault(node, [None] * len(like))
            bars[number] = _sum(bars[number], _fitted(bar, like[number].shape, like[number].dtype))

    def run() -> None:
        with torch.set_grad_enabled(create_graph):
            for x, bar in zip(outputs, bars, strict=True):
                if x.requires_grad:
                    hand(gradient_edge(x), bar)
            for node in reversed(order):
                given = waiting.pop(node, None)
                if given is not None:
                    for edge, bar in _pulled(node, given):
                        hand(edge, bar)

    if torch._C._current_graph_task_id() == -1:  # pyright: ignore[reportAttributeAccessIssue]
        run()
    else:
        # inside a backward pass a node gives only what that pass wants; inside one that wants everything, everything
        start = torch.zeros((), requires_grad=True)
        with torch.enable_grad():
            torch.autograd.backward(_Inside.apply(start, run))
    return found


class _Inside(torch.autograd.Function):
    """Calls a function when it is pulled back through."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, run: Callable[[], None]) -> Tensor:
        ctx.run = run
        return start.clone()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.run()
        return None, None


def _nodes(outputs: Sequence[Tensor], places: dict[Edge, int]) -> tuple[list[Node], set[Node]]:
    """The nodes behind outputs as far as the places, those first that others lead to; and which lead to a place."""
    order: list[Node] = []
    leads: set[Node] = set()
    seen: set[Node] = set()
    for x in outputs:
        if not x.requires_grad or gradient_edge(x) in places or x.grad_fn in seen:
            continue
        root: Node = x.grad_fn
        seen.add(root)
        stack: list[tuple[Node, list[Edge]]] = [(root, list(root.next_functions))]
        while stack:
            node, ahead = stack[-1]
            if not ahead:
                stack.pop()
                order.append(node)
                if any(edge in places or edge[0] in leads for edge in node.next_functions):
                    leads.add(node)
                continue
            edge = ahead.pop()
            if edge[0] is not None and edge not in places and edge[0] not in seen:
                seen.add(edge[0])
                stack.append((edge[0], list(edge[0].next_functions)))
    return order, leads


def _pulled(node: Node, bars: list[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    """What a node makes of its cotangents, for each of its edges that gets one."""
    if not isinstance(node, BackwardCFunction):
        made = node(*bars)
        made = made if isinstance(made, tuple) else (made,)
        pairs = zip(node.next_functions, made, strict=False)
        return [(edge, bar) for edge, bar in pairs if edge[0] is not None and bar is not None]
    custom: Any = (
        node  # an autograd.Function of the caller's: its backward answers for arguments that are no tensors too
    )
    # whether it wants None for zeros cannot be read; zeros are right for all, and dearer for this library's own
    if not getattr(custom._forward_cls, "takes_none", False):
        like = custom._input_metadata
        bars = [
            torch.zeros(m.shape, dtype=m.dtype, device=m.device) if b is None else b
            for b, m in zip(bars, like, strict=True)
        ]
    made = custom.apply(*bars)
    made = made if isinstance(made, tuple) else (made,)
    wanted = [bar for bar, need in zip(made, custom.needs_input_grad, strict=False) if need]
    edges = [edge for edge in custom.next_functions if edge[0] is not None]
    return [(edge, bar) for edge, bar in zip(edges, wanted, strict=True) if bar is not None]


def _fitted(bar: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The cotangent of a tensor that was broadcast or cast, in the tensor's own shape and dtype."""
    if bar.shape != shape:
        bar = bar.sum_to_size(shape)
    if bar.dtype != dtype:
        bar = (bar.real if bar.is_complex() and not dtype.is_complex else bar).to(dtype)
    return bar


def _sum(total: Tensor | None, bar: Tensor) -> Tensor:
    return bar if total is None else total + bar
