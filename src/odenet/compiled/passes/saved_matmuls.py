"""What the forward pass keeps for the backward pass, so that it need not be computed again: products of matrices.

Everything else of a step is cheap beside them, and is computed again from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..plan import Plan
from ..tape_pool import Looks
from .graph_editor import Editor
from .matmul_passes import SMALL

aten = torch.ops.aten


def costly(module: GraphModule, free: int) -> list[Node]:
    """The large products in a graph, in their order, that depend on no input before `free` but the first."""
    bound = set(module.graph.find_nodes(op="placeholder")[1:free])
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


def shelf_for(plan: Plan, nodes: Sequence[Node], mode: Any) -> list[Tensor]:
    """A tape for these values."""
    values = [n.meta["val"] for n in nodes]
    with mode:
        return [x.new_empty((plan.slots, *x.shape)) for x in values]


def looks_of(shelf: Sequence[Tensor]) -> Looks:
    return tuple((tuple(x.shape[1:]), x.dtype) for x in shelf)


def shown(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Make these values outputs of the graph, after its others."""
    output = module.graph.output_node()
    output.args = ((*output.args[0], *nodes),)  # pyright: ignore
    module.graph.eliminate_dead_code()
    module.recompile()


def taken(module: GraphModule, nodes: Sequence[Node], mode: Any) -> None:
    """Read these values off a tape, the graph's last inputs, at the row before that of its first input."""
    graph, edit = module.graph, Editor(module.graph, mode)
    places = graph.find_nodes(op="placeholder")
    for node, tape in zip(nodes, places[len(places) - len(nodes) :], strict=True):
        with graph.inserting_before(node):
            row = edit(aten.unsqueeze.default, edit(aten.sub.Tensor, places[0], 1), 0)
            value = edit(aten.squeeze.dim, edit(aten.index.Tensor, tape, [row]), 0)
        node.replace_all_uses_with(value)
    graph.eliminate_dead_code()
    module.recompile()
