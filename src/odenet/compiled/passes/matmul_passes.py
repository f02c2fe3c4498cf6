"""Matrix products in the graph of an iteration, rewritten for speed.

A product of a small matrix with weights becomes a broadcast and a sum, so that Inductor fuses it with what surrounds
it; a library call would cost more than the arithmetic. The gradients of one weight from the stages of a step, a sum of
products, become one product of stacked matrices. These passes run on graphs that this package recorded itself, before
the loop is assembled, as `hoist_invariants` moves nodes from one graph to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..torch_private import recording
from . import column_layout, onednn
from .graph_editor import GraphEditor

aten = torch.ops.aten

SMALL = 2**15  # multiplications of a product that becomes a broadcast
UNROLLED = 8  # terms of a sum that are written one by one
STACKED = 2**18  # elements of stacked matrices: larger ones cost more to stack than one product saves


def rewrite_matmuls(module: GraphModule, carried: int, mode: Any, column_major: bool) -> GraphModule:
    """The graph of one iteration with its products rewritten. Inputs after the `carried` are invariant.

    column_major: narrow states are column-major (column_layout.py), and so are narrow products then.
    """
    eliminate_common = recording().fx_graph_cse
    _cancel_permutations(module.graph)
    _drop_units(module.graph)
    module = GraphModule(module, eliminate_common(module.graph))
    graph, edit = module.graph, GraphEditor(module.graph, mode)
    invariant_inputs = [n for n in graph.nodes if n.op == "placeholder"][carried:]
    for node in reversed(list(graph.nodes)):
        if _is_plain_sum(node) and not _is_inner_sum(node):
            _stack_products(node, edit, column_major)
    if column_major:
        for node in list(graph.nodes):
            if node.target is aten.cat.default:
                column_layout.cat_columns(node, edit)
        for place in invariant_inputs:
            column_layout.transpose_input(place, edit)
    invariant = _invariant_nodes(graph, invariant_inputs)
    for node in list(graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or _value(node).device.type != "cpu" or node.kwargs:
            continue
        if not _broadcast(node, invariant, edit, column_major):
            _use_onednn(node, edit)
    _cancel_permutations(graph)
    graph.eliminate_dead_code()
    return GraphModule(module, eliminate_common(graph))  # each stage has prepared the same weights


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _cancel_permutations(graph: Graph) -> None:
    """Remove permutations of axes that cancel."""
    for node in graph.nodes:
        if node.target is not aten.permute.default:
            continue
        inner, axes = node.args
        if inner.target is aten.permute.default and [inner.args[1][i] for i in axes] == sorted(axes):
            node.replace_all_uses_with(inner.args[0])
    graph.eliminate_dead_code()


def _drop_units(graph: Graph) -> None:
    """Replace x * 1.0 and x / 1.0, which decompositions leave, by x."""
    for node in list(graph.nodes):
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and node.args[1] in (1, 1.0) and not node.kwargs:
            x = node.args[0]
            if _value(x).dtype == _value(node).dtype and not isinstance(node.args[1], bool):
                node.replace_all_uses_with(x)


def _is_plain_sum(node: Any) -> bool:
    """Whether the node adds two tensors of its own shape."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    return all(isinstance(x, Node) and _value(x).shape == _value(node).shape for x in node.args)


def _is_inner_sum(node: Node) -> bool:
    """Whether a sum is only a term of another sum."""
    return len(node.users) == 1 and _is_plain_sum(next(iter(node.users)))


def _terms(node: Node) -> list[Node]:
    found: list[Node] = []
    for x in node.args:
        assert isinstance(x, Node)
        found += _terms(x) if _is_plain_sum(x) and len(x.users) == 1 else [x]
    return found


def _stack_products(root: Node, edit: GraphEditor, column_major: bool) -> None:
    """Replace a sum of products of transposed matrices, and of sums over rows, by one of each of stacked matrices."""
    terms = _terms(root)
    products = [t for t in terms if _is_transposed_product(t)]
    sums = [t for t in terms if _is_row_sum(t)]
    rest = [t for t in terms if t not in products and t not in sums]
    with edit.graph.inserting_before(root):
        made: list[Node] = []
        if _worth_stacking(products):
            if column_major:
                left = edit(aten.cat.default, [p.args[0] for p in products], 1)
                right = edit(aten.cat.default, [edit.transpose(p.args[1]) for p in products], 1)
                made.append(_product_of_columns(left, right, edit))
            else:
                left = edit.transpose(edit(aten.cat.default, [p.args[0].args[0] for p in products]))  # pyright: ignore
                right = edit(aten.cat.default, [p.args[1] for p in products])
                made.append(edit(aten.mm.default, left, right))
        else:
            rest += products
        if _worth_stacking(sums):
            stacked = edit(aten.cat.default, [s.args[0] for s in sums])
            made.append(edit(aten.sum.dim_IntList, stacked, *sums[0].args[1:]))
        else:
            rest += sums
        if not made:
            return
        total = made[0]
        for term in [*rest, *made[1:]]:
            total = edit(aten.add.Tensor, term, total)
    root.replace_all_uses_with(total)


def _product_of_columns(left: Node, right: Node, edit: GraphEditor) -> Node:
    """Dot products of all columns; a library would wake its threads for this little."""
    (m, rows), n = _value(left).shape, _value(right).shape[0]
    if m * n * rows > column_layout.LARGE_PRODUCT or not _value(left).dtype.is_floating_point:
        return edit(aten.mm.default, left, edit.transpose(right))
    left, right = (edit.with_strides(x, [rows, 1]) for x in (left, right))
    return _contract(edit, (left, 1), (right, 0), 2)


def _is_row_sum(node: Node) -> bool:
    """Whether the node is a sum over rows, with keepdim or without."""
    return node.target is aten.sum.dim_IntList and node.args[1:] in (([0],), ([0], True)) and len(node.users) == 1


def _is_transposed_product(node: Any) -> bool:
    return node.target is aten.mm.default and len(node.users) == 1 and node.args[0].target is aten.permute.default


def _worth_stacking(alike: Sequence[Node]) -> bool:
    size = sum(_value(x).numel() for node in alike for x in node.args if isinstance(x, Node))
    return len(alike) > 1 and size <= STACKED


def _invariant_nodes(graph: Graph, constant: Sequence[Node]) -> set[Node]:
    """Nodes with the same value in every iteration."""
    fixed = set(constant)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and all(x in fixed for x in inputs):
            fixed.add(node)
    return fixed


def _use_onednn(node: Any, edit: GraphEditor) -> None:
    """Replace the product by one of oneDNN if that is faster on this machine."""
    *bias, left, right = node.args
    a, b = _value(left), _value(right)
    if a.dtype is not torch.float32 or (bias and _value(bias[0]).ndim != 1):
        return
    if not onednn.is_faster((tuple(a.shape), a.stride()), (tuple(b.shape), b.stride()), torch.get_num_threads()):
        return
    with edit.graph.inserting_before(node):
        product = edit(onednn.linear(), left, edit.transpose(right), bias[0] if bias else None)
    node.replace_all_uses_with(product)


def _broadcast(node: Any, invariant: set[Node], edit: GraphEditor, column_major: bool) -> bool:
    """Write a small product with an invariant matrix as a sum of products; return whether it was small."""
    *bias, left, right = node.args
    (rows, inner), width = _value(left).shape, _value(right).shape[1]
    most = column_layout.LARGE_PRODUCT if column_major else SMALL
    if right not in invariant or not 0 < rows * inner * width <= most or not _value(left).dtype.is_floating_point:
        return False
    product = _column_product if column_major and rows >= column_layout.VECTOR else _row_product
    with edit.graph.inserting_before(node):
        node.replace_all_uses_with(product(left, right, bias, edit))
    return True


def _as_contiguous(x: Node, edit: GraphEditor) -> Node:
    return x if _value(x).is_contiguous() else edit.contiguous(x)


def _contract(edit: GraphEditor, left: tuple[Node, int], right: tuple[Node, int], axis: int) -> Node:
    """The sum over `axis` of the product of two matrices, each unsqueezed at the axis given with it."""
    spread = (edit(aten.unsqueeze.default, x, along) for x, along in (left, right))
    return edit(aten.sum.dim_IntList, edit(aten.mul.Tensor, *spread), [axis])


def _sum_of_slices(edit: GraphEditor, left: tuple[Node, int], right: tuple[Node, int], count: int) -> Node:
    """The sum of `count` products of slices, each matrix sliced along the axis given with it."""

    def term(k: int) -> Node:
        slices = (edit(aten.slice.Tensor, x, along, k, k + 1) for x, along in (left, right))
        return edit(aten.mul.Tensor, *slices)

    return reduce(lambda total, k: edit(aten.add.Tensor, total, term(k)), range(1, count), term(0))


def _row_product(left: Node, right: Node, bias: Sequence[Any], edit: GraphEditor) -> Node:
    """The product as a sum of rows of `right`, times the columns of `left`."""
    (rows, inner), width = _value(left).shape, _value(right).shape[1]
    left = edit.with_strides(left, list(_value(left).stride()))  # else Inductor would compute it for every column
    if inner <= UNROLLED:
        total = _sum_of_slices(edit, (left, 1), (_as_contiguous(right, edit), 0), inner)
    else:
        total = _contract(edit, (left, 1), (_as_contiguous(edit.transpose(right), edit), 0), 2)
    if bias:
        # spread over all rows once and for all, so that what follows is one loop over all elements
        whole = edit.contiguous(edit(aten.expand.default, bias[0], [rows, width]))
        total = edit(aten.add.Tensor, total, whole)
    return total


def _column_product(left: Node, right: Node, bias: Sequence[Any], edit: GraphEditor) -> Node:
    """The product as a sum of column-major columns, each times a number."""
    inner = _value(left).shape[1]
    transposed = edit.with_strides(edit.transpose(left), [_value(left).shape[0], 1])
    weights = edit.transpose(right)
    if inner <= UNROLLED:
        total = _sum_of_slices(edit, (transposed, 0), (weights, 1), inner)
    else:
        total = _contract(edit, (_as_contiguous(weights, edit), 2), (transposed, 0), 1)
    if bias:
        by_column = bias[0] if _value(bias[0]).ndim > 1 else edit(aten.unsqueeze.default, bias[0], 0)
        total = edit(aten.add.Tensor, total, edit.transpose(by_column))
    return edit.transpose(total)


def hoist_invariants(begin: GraphModule, body: GraphModule, carried: int) -> None:
    """Move what every iteration would compute anew from `body` into `begin`, which takes all inputs.

    After its `carried` outputs `begin` returns the invariant inputs that `body` takes from then on, in their order.
    """
    graph, places, end = body.graph, body.graph.find_nodes(op="placeholder"), begin.graph.output_node()
    known = dict(zip(places[carried:], begin.graph.find_nodes(op="placeholder"), strict=True))
    invariant = _invariant_nodes(graph, places[carried:])
    computed = [n for n in graph.nodes if n in invariant and n.op == "call_function"]
    with begin.graph.inserting_before(end):
        for node in computed:
            known[node] = begin.graph.node_copy(node, lambda n: known[n])
    wanted = [n for n in (*places[carried:], *computed) if any(user not in invariant for user in n.users)]
    with graph.inserting_after(places[-1]):
        for i, node in reversed(list(enumerate(wanted))):
            place = graph.placeholder(f"fixed{i}")
            place.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(place, delete_user_cb=lambda user: user not in invariant)
    for node in (*reversed(computed), *places[carried:]):
        graph.erase_node(node)
    end.args = ((*cast("tuple[Node, ...]", end.args[0]), *(known[n] for n in wanted)),)
    for module in (begin, body):
        module.graph.eliminate_dead_code()
        module.recompile()
