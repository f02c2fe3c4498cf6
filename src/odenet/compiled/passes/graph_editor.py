"""Puts operations into a graph that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

aten = torch.ops.aten


class Editor:
    """Puts operations into a graph, with their fake results."""

    def __init__(self, graph: Graph, mode: Any) -> None:
        self.graph, self.mode = graph, mode

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(operation, args, kwargs)
        with torch.no_grad(), self.mode:
            node.meta["val"] = operation(*map_arg(args, lambda n: n.meta["val"]), **kwargs)
        return node

    def turned(self, matrix: Any) -> Node:
        return self(aten.permute.default, matrix, [1, 0])

    def by_rows(self, x: Any) -> Node:
        """A copy without gaps."""
        return self(aten.clone.default, x, memory_format=torch.contiguous_format)
