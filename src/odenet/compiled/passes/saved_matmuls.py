"""Matrix products, and their activations, that the forward pass saves for the backward pass.

The rest of a step is cheap beside them, and the backward pass computes it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..plan import Plan
from ..tape_pool import RowSpec
from .graph_editor import GraphEditor
from .matmul_passes import SMALL

aten = torch.ops.aten
# their derivatives follow from their values
_ACTIVATIONS = (aten.tanh.default, aten.sigmoid.default)


def expensive_matmuls(module: GraphModule, free: int) -> list[Node]:
    """The large products of a graph, in its order, that depend on no input before `free` except the first.

    The activation of a product stands in its place where nothing else reads the product.
    """
    bound = set(module.graph.find_nodes(op="placeholder")[1:free])
    found: list[Node] = []
    for node in module.graph.nodes:
        if any(x in bound for x in node.all_input_nodes):
            bound.add(node)
        elif _is_expensive(node):
            found.append(_activation(node) or node)
    return found


def _activation(product: Node) -> Node | None:
    user = next(iter(product.users), None)
    return user if user is not None and len(product.users) == 1 and user.target in _ACTIVATIONS else None


def _is_expensive(node: Node) -> bool:
    if node.target is aten.convolution.default:
        return True
    if node.target not in (aten.mm.default, aten.addmm.default, aten.bmm.default):
        return False
    left, right = (cast(Node, x).meta["val"] for x in node.args[-2:])
    return math.prod(left.shape) * right.shape[-1] > SMALL


def saved_tape(plan: Plan, nodes: Sequence[Node], mode: Any) -> list[Tensor]:
    """Fake tensors (rows, *shape) of a tape for the values of these nodes."""
    values = [n.meta["val"] for n in nodes]
    with mode:
        return [x.new_empty((plan.rows, *x.shape)) for x in values]


def row_specs(nodes: Sequence[Node]) -> tuple[RowSpec, ...]:
    values = [(n.meta["val"], str(n.target)) for n in nodes]
    return tuple(RowSpec(tuple(x.shape), x.dtype, operation) for x, operation in values)


def return_values(module: GraphModule, nodes: Sequence[Node]) -> None:
    """Append the values of these nodes to the outputs of the graph."""
    output = module.graph.output_node()
    output.args = ((*cast("tuple[Node, ...]", output.args[0]), *nodes),)
    module.graph.eliminate_dead_code()
    module.recompile()


def read_saved(module: GraphModule, nodes: Sequence[Node], mode: Any) -> None:
    """Replace these nodes by rows of the graph's last inputs, at the row before the number in its first input."""
    graph, edit = module.graph, GraphEditor(module.graph, mode)
    places = graph.find_nodes(op="placeholder")
    for node, tape in zip(nodes, places[len(places) - len(nodes) :], strict=True):
        with graph.inserting_before(node):
            row = edit(aten.unsqueeze.default, edit(aten.sub.Tensor, places[0], 1), 0)
            value = edit(aten.squeeze.dim, edit(aten.index.Tensor, tape, [row]), 0)
        node.replace_all_uses_with(value)
    graph.eliminate_dead_code()
    module.recompile()
