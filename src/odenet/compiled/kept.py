"""What the forward pass keeps for the backward pass, so that it need not be computed again: products of matrices.

Everything else of a step is cheap beside them, and is computed again from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from .products import SMALL

aten = torch.ops.aten


def costly(module: GraphModule, free: int) -> list[Node]:
    """The large products in a graph, in their order, that depend on no input before `free` but the first."""
    places = [n for n in module.graph.nodes if n.op == "placeholder"]
    bound = set(places[1:free])
    found = []
    for node in module.graph.nodes:
        if any(x in bound for x in node.all_input_nodes):
            bound.add(node)
        elif _is_costly(node):
            found.append(node)
    return found


def _is_costly(node: Node) -> bool:
    if node.target is aten.convolution.default:
        return True
    if node.target not in (aten.mm.default, aten.addmm.default, aten.bmm.default):
        return False
    left, right = (x.meta["val"] for x in node.args[-2:])  # pyright: ignore
    return math.prod(left.shape) * right.shape[-1] > SMALL


def shown(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Make these values outputs of the graph, after its others."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], *nodes),)  # pyright: ignore
    module.graph.eliminate_dead_code()
    module.recompile()


def taken(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Read these values off a tape, the graph's last inputs, at the row that its first input says."""
    graph = module.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    for node, tape in zip(nodes, places[len(places) - len(nodes) :], strict=True):
        value = node.meta["val"]
        with graph.inserting_before(node):
            row = graph.call_function(aten.unsqueeze.default, (places[0], 0))
            row.meta["val"] = places[0].meta["val"].unsqueeze(0)
            rows = graph.call_function(aten.index.Tensor, (tape, [row]))
            rows.meta["val"] = value.unsqueeze(0)
            one = graph.call_function(aten.squeeze.dim, (rows, 0))
            one.meta["val"] = value
        node.replace_all_uses_with(one)
    graph.eliminate_dead_code()
    module.recompile()
