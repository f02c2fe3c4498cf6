"""Inserts operations into a recorded graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

aten = torch.ops.aten


class GraphEditor:
    """Inserts operations into a graph, with their fake results."""

    def __init__(self, graph: Graph, mode: Any) -> None:
        self.graph, self.mode = graph, mode

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(operation, args, kwargs)
        with torch.no_grad(), self.mode:
            node.meta["val"] = operation(*map_arg(args, lambda n: n.meta["val"]), **kwargs)
        return node

    def transpose(self, matrix: Any) -> Node:
        return self(aten.permute.default, matrix, [1, 0])

    def contiguous(self, x: Any) -> Node:
        """A row-major copy."""
        return self(aten.clone.default, x, memory_format=torch.contiguous_format)

    def with_strides(self, x: Node, strides: list[int]) -> Node:
        """x in memory with these strides. Inductor computes x once, and not anew for each of its uses."""
        return self(torch.ops.prims.inductor_force_stride_order.default, x, strides)
