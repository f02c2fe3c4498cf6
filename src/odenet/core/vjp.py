"""Vector-Jacobian products that end at given tensors, even if one of these was computed from another.

`torch.autograd.grad` continues from an input to another input that it was computed from. That contribution would be
counted twice, once here and once in the backward pass of the caller's graph, and the caller's graph would be freed. If
inputs are computed from one another, this module calls the nodes between outputs and inputs itself, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from .reachable import Edge

Node = Any
"""A node of an autograd graph."""

_graph_task_id: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def gradient_edge(x: Tensor) -> Edge:
    """The node and output number at which autograd delivers the gradient of x; x requires a gradient."""
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


@contextmanager
def without_hooks(tensors: Sequence[Any]) -> Generator[None]:
    """Do not call hooks of these tensors: a hook expects the total gradient, not one of its summands."""
    hooks_of_tensors: Iterator[Any] = (h for x in tensors for h in (x._backward_hooks, x._post_accumulate_grad_hooks))
    saved = [(hooks, dict(hooks)) for hooks in hooks_of_tensors if hooks]
    for hooks, _ in saved:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, content in saved:
            hooks.update(content)


def accumulated_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], extra_leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """`torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)` by `backward`; inputs are leaves.

    A reentrant `torch.utils.checkpoint` allows `backward` alone. extra_leaves: further leaves whose `grad` that call
    changes; `grad` of every leaf is restored.
    """
    leaves = [x for x in (*inputs, *extra_leaves) if x.requires_grad]
    before = [x.grad for x in leaves]
    try:
        for x in leaves:
            x.grad = None
        with without_hooks(leaves):
            torch.autograd.backward(outputs, cotangents)
        return [x.grad if x.requires_grad else None for x in inputs]
    finally:
        for x, grad in zip(leaves, before, strict=True):
            x.grad = grad


def local_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """Cotangents of `inputs`, each regarded as an independent variable; None for unused inputs.

    `torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, retain_graph=True)`, except that no gradient
    flows from an input to its own history, and that hooks of intermediate tensors are not called.
    """
    input_index = {gradient_edge(x): i for i, x in enumerate(inputs) if x.requires_grad}
    input_cotangents: list[Tensor | None] = [None] * len(inputs)
    pending: dict[Node, list[Tensor | None]] = {}
    order, leads_to_input = _sorted_nodes(outputs, input_index)

    def accumulate(edge: Edge, bar: Tensor) -> None:
        node, number = edge
        i = input_index.get((node, number))
        if i is not None:
            input_cotangents[i] = _sum(input_cotangents[i], _reduced(bar, inputs[i].shape, inputs[i].dtype))
        elif node in leads_to_input:
            like = node._input_metadata
            node_cotangents = pending.setdefault(node, [None] * len(like))
            node_cotangents[number] = _sum(
                node_cotangents[number], _reduced(bar, like[number].shape, like[number].dtype)
            )

    def run() -> None:
        with torch.set_grad_enabled(create_graph):
            for x, bar in zip(outputs, cotangents, strict=True):
                if x.requires_grad:
                    accumulate(gradient_edge(x), bar)
            for node in reversed(order):
                node_cotangents = pending.pop(node, None)
                if node_cotangents is not None:
                    for edge, bar in _node_vjp(node, node_cotangents):
                        accumulate(edge, bar)

    if _graph_task_id() == -1:
        run()
    else:
        # inside a backward pass a node computes only the gradients that this pass needs: start one that needs all
        start = torch.zeros((), requires_grad=True)
        with torch.enable_grad():
            torch.autograd.backward(_RunInBackward.apply(start, run))
    return input_cotangents


class _RunInBackward(torch.autograd.Function):
    """Calls a function in its backward pass."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, run: Callable[[], None]) -> Tensor:
        ctx.run = run
        return start.clone()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.run()
        return None, None


def _sorted_nodes(outputs: Sequence[Tensor], input_index: dict[Edge, int]) -> tuple[list[Node], set[Node]]:
    """The nodes between outputs and inputs in topological order, inputs first; and those that lead to an input."""
    order: list[Node] = []
    leads_to_input: set[Node] = set()
    seen: set[Node] = set()
    for x in outputs:
        if not x.requires_grad or gradient_edge(x) in input_index or x.grad_fn in seen:
            continue
        root: Node = x.grad_fn
        seen.add(root)
        stack: list[tuple[Node, list[Edge]]] = [(root, list(root.next_functions))]
        while stack:
            node, unvisited = stack[-1]
            if not unvisited:
                stack.pop()
                order.append(node)
                if any(edge in input_index or edge[0] in leads_to_input for edge in node.next_functions):
                    leads_to_input.add(node)
                continue
            edge = unvisited.pop()
            if edge[0] is not None and edge not in input_index and edge[0] not in seen:
                seen.add(edge[0])
                stack.append((edge[0], list(edge[0].next_functions)))
    return order, leads_to_input


def _node_vjp(node: Node, cotangents: list[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    """The cotangents that a node returns, each with the edge it belongs to."""
    if not isinstance(node, BackwardCFunction):
        results = node(*cotangents)
        results = results if isinstance(results, tuple) else (results,)
        pairs = zip(node.next_functions, results, strict=False)
        return [(edge, bar) for edge, bar in pairs if edge[0] is not None and bar is not None]
    # an autograd.Function: its backward returns values for arguments that are no tensors, too
    custom: Any = node
    # whether it accepts None for a zero cotangent cannot be read: zeros are always right, but cost this library time
    if not getattr(custom._forward_cls, "takes_none", False):
        like = custom._input_metadata
        cotangents = [
            torch.zeros(m.shape, dtype=m.dtype, device=m.device) if b is None else b
            for b, m in zip(cotangents, like, strict=True)
        ]
    results = custom.apply(*cotangents)
    results = results if isinstance(results, tuple) else (results,)
    input_cotangents = [bar for bar, needed in zip(results, custom.needs_input_grad, strict=False) if needed]
    edges = [edge for edge in custom.next_functions if edge[0] is not None]
    return [(edge, bar) for edge, bar in zip(edges, input_cotangents, strict=True) if bar is not None]


def _reduced(bar: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The cotangent of a tensor that was broadcast or cast, reduced to the tensor's own shape and dtype."""
    if bar.shape != shape:
        bar = bar.sum_to_size(shape)
    if bar.dtype != dtype:
        bar = (bar.real if bar.is_complex() and not dtype.is_complex else bar).to(dtype)
    return bar


def _sum(total: Tensor | None, bar: Tensor) -> Tensor:
    return bar if total is None else total + bar
