"""Finds out whether f differentiates with respect to what it captures.

The y that f gets depends, by the earlier evaluations, on all that f captures. `torch.autograd.grad` inside f goes back
that way too, so its result is not the derivative at this y, and it takes ever longer. What f computes itself has no
such past: a view of the captured tensor will do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import CaptureError
from .capture import graph_marker
from .leaves import Leaves, as_graph_inputs
from .pytrees import flatten
from .random_state import Generators
from .reachable import find_reachable
from .torch_func import functorch
from .vjp import Node, gradient_edge

_graph_task_id: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


class _Numbered(torch.autograd.Function):
    """Tells `told` the number of its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, told: list[int]) -> Tensor:
        ctx.told = told
        return x.clone()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.told[:] = [_graph_task_id()]
        return bar, None


_of_thread = threading.local()


def next_pass_number() -> int:
    """A number that rises by 1 with each call, and with each backward pass in between, of any thread."""
    if not hasattr(_of_thread, "graph"):  # the smallest one, for all calls
        with torch.enable_grad():
            x, told = torch.zeros((), requires_grad=True), list[int]()
            _of_thread.graph = x, _Numbered.apply(x, told), torch.ones(()), told
    x, y, bar, told = _of_thread.graph
    torch.autograd.grad(y, x, bar, retain_graph=True)
    return told[0]


def watched_evaluation(
    f: Any, evaluate: Callable[[Leaves], Leaves], y: Leaves, args: Leaves, generators: Generators
) -> tuple[Leaves, Tensor | None, int]:
    """f at y, in grad mode; what it differentiates with respect to, and how often it was evaluated.

    The second is a captured tensor or arg with respect to which f differentiates something that depends on y, or None.
    generators: f draws from them.
    """
    states, number = generators.get_states(), next_pass_number()
    out = evaluate(y)
    if next_pass_number() == number + 1:
        return out, None, 1
    y = y if all(x.requires_grad for x in y) else as_graph_inputs(y)
    older = (*args, *(x for _, x in find_reachable(f).leaves.values()))
    with generators.with_states(states), _InnerDerivatives(y, graph_marker(), older) as watch:
        evaluate(y)
    return out, watch.found, 2


def refuse_past(y: Leaves, captured: Tensor | None) -> None:
    """Raise CaptureError where y depends on earlier evaluations. captured: see `watched_evaluation`."""
    if captured is not None and torch.is_grad_enabled() and any(_has_past(x) for x in y):
        raise CaptureError(
            f"f calls torch.autograd.grad with respect to a tensor w of shape {tuple(captured.shape)} that it did not "
            "make. y depends on w by earlier evaluations, so that is not the derivative at a given y. Differentiate "
            "with respect to v = w.view_as(w), made in f under torch.enable_grad(), or by torch.func.grad; or use "
            "gradient='adjoint'."
        )


def _tensors(tree: Any) -> list[Tensor]:
    """Those of a tree, without those of `torch.func`, whose transforms have graphs of their own."""
    leaves = flatten(tree)[0]
    return [x for x in leaves if isinstance(x, Tensor) and not functorch.is_functorch_wrapped_tensor(x)]


def _has_past(x: Tensor) -> bool:
    """Whether x is neither a leaf nor a view of one."""
    node: Node = x.grad_fn
    return node is not None and any(parent is not None and parent.next_functions for parent, _ in node.next_functions)


@final
class _InnerDerivatives(TorchFunctionMode):
    """Watches f differentiate, in one evaluation.

    marker: `graph_marker` before it. older: leaves that f could reach before it, and args. found: one of them, or a
    tensor computed before, with respect to which f differentiates something that depends on y.
    """

    def __init__(self, y: Leaves, marker: int, older: Leaves) -> None:
        super().__init__()
        self.y_edges = {gradient_edge(x) for x in y if x.requires_grad}
        self.marker, self.older = marker, {id(x) for x in older}
        self.found: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.grad and self.found is None:
            outputs, inputs = (args[i] if len(args) > i else kwargs[k] for i, k in enumerate(("outputs", "inputs")))
            older = [x for x in _tensors(inputs) if self._is_older(x)]
            if older and self._reaches_y(outputs):
                self.found = older[0]
        return func(*args, **kwargs)

    def _is_older(self, x: Tensor) -> bool:
        if not x.requires_grad or gradient_edge(x) in self.y_edges:
            return False
        node: Node = x.grad_fn
        return id(x) in self.older if node is None else node._sequence_nr() <= self.marker

    def _reaches_y(self, outputs: Any) -> bool:
        stack = [gradient_edge(x) for x in _tensors(outputs) if x.requires_grad]
        seen: set[Node] = set()
        while stack:
            edge = stack.pop()
            if edge in self.y_edges:
                return True
            node: Node = edge[0]
            if node not in seen:
                seen.add(node)
                stack += [e for e in node.next_functions if e[0] is not None]
        return False
