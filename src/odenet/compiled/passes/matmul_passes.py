"""Matrix products in the graph of a step, rewritten for speed.

A product of a small matrix with weights is written as a broadcast and a sum: Inductor then makes one loop of it and
what surrounds it, where a call of a library would cost more than the arithmetic. The gradients of one weight from the
stages of a step, a sum of products, become one product of stacked matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..capture import quietly
from . import column_layout, onednn
from .graph_editor import Editor

aten = torch.ops.aten

SMALL = 2**15  # multiplications of a product that is written as a broadcast
UNROLLED = 8  # terms of a sum that are written one by one
STACKED = 2**18  # elements of stacked matrices: larger ones cost more to stack than one product saves


def rewritten(module: GraphModule, carried: int, mode: Any, by_columns: bool) -> GraphModule:
    """The graph of one turn of a loop with its products rewritten. Inputs after the `carried` stay the same.

    by_columns: states are held that way (columns.py); products go from column to column then.
    """
    quietly("torch._inductor.test_operators")
    from torch._functorch.compile_utils import fx_graph_cse

    _join_permutations(module.graph)
    _drop_units(module.graph)
    module = GraphModule(module, fx_graph_cse(module.graph))
    graph, edit = module.graph, Editor(module.graph, mode)
    places = [n for n in graph.nodes if n.op == "placeholder"][carried:]
    for node in reversed(list(graph.nodes)):
        if _plain_sum(node) and not _is_sum_inside(node):
            _stack(node, edit, by_columns)
    if by_columns:
        for node in list(graph.nodes):
            if node.target is aten.cat.default:
                column_layout.concatenated(node, edit)
        for place in places:
            column_layout.transposed(place, edit)
    fixed = _unchanging(graph, places)
    for node in list(graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or _value(node).device.type != "cpu" or node.kwargs:
            continue
        if not _broadcast(node, fixed, edit, by_columns):
            _by_onednn(node, edit)
    _join_permutations(graph)
    graph.eliminate_dead_code()
    return GraphModule(module, fx_graph_cse(graph))  # each stage has prepared the same weights


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _join_permutations(graph: Graph) -> None:
    """A permutation of a permutation of axes that gives the axes back is neither."""
    for node in graph.nodes:
        if node.target is not aten.permute.default:
            continue
        inner, axes = node.args
        if inner.target is aten.permute.default and [inner.args[1][i] for i in axes] == sorted(axes):
            node.replace_all_uses_with(inner.args[0])
    graph.eliminate_dead_code()


def _drop_units(graph: Graph) -> None:
    """x * 1.0 and x / 1.0, as decompositions leave them, are x."""
    for node in list(graph.nodes):
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and node.args[1] in (1, 1.0) and not node.kwargs:
            x = node.args[0]
            if _value(x).dtype == _value(node).dtype and not isinstance(node.args[1], bool):
                node.replace_all_uses_with(x)


def _plain_sum(node: Any) -> bool:
    """Whether it adds two values of its own shape."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    return all(isinstance(x, Node) and _value(x).shape == _value(node).shape for x in node.args)


def _is_sum_inside(node: Node) -> bool:
    """Whether a sum is only a term of another one."""
    return len(node.users) == 1 and _plain_sum(next(iter(node.users)))


def _terms(node: Node) -> list[Node]:
    found: list[Node] = []
    for x in node.args:
        assert isinstance(x, Node)
        found += _terms(x) if _plain_sum(x) and len(x.users) == 1 else [x]
    return found


def _stack(root: Node, edit: Editor, by_columns: bool) -> None:
    """Sum of products of transposed matrices, or of sums over rows -> one of each, of stacked matrices."""
    terms = _terms(root)
    products = [t for t in terms if _of_transposed(t)]
    sums = [t for t in terms if _over_rows(t)]
    rest = [t for t in terms if t not in products and t not in sums]
    with edit.graph.inserting_before(root):
        made: list[Node] = []
        if _worth_stacking(products):
            if by_columns:
                left = edit(aten.cat.default, [p.args[0] for p in products], 1)
                right = edit(aten.cat.default, [edit.turned(p.args[1]) for p in products], 1)
                made.append(_of_columns(left, right, edit))
            else:
                left = edit.turned(edit(aten.cat.default, [p.args[0].args[0] for p in products]))  # pyright: ignore
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


def _of_columns(left: Node, right: Node, edit: Editor) -> Node:
    """Each column with each: a library would wake its threads for the little that this is."""
    (m, rows), n = _value(left).shape, _value(right).shape[0]
    if m * n * rows > column_layout.LARGE or not _value(left).dtype.is_floating_point:
        return edit(aten.mm.default, left, edit.turned(right))
    left, right = (edit(torch.ops.prims.inductor_force_stride_order.default, x, [rows, 1]) for x in (left, right))
    return _contracted(edit, (left, 1), (right, 0), 2)


def _over_rows(node: Node) -> bool:
    """Whether it is a sum over rows, which keeps a row or does not."""
    return node.target is aten.sum.dim_IntList and node.args[1:] in (([0],), ([0], True)) and len(node.users) == 1


def _of_transposed(node: Any) -> bool:
    return node.target is aten.mm.default and len(node.users) == 1 and node.args[0].target is aten.permute.default


def _worth_stacking(alike: Sequence[Node]) -> bool:
    size = sum(_value(x).numel() for node in alike for x in node.args if isinstance(x, Node))
    return len(alike) > 1 and size <= STACKED


def _unchanging(graph: Graph, constant: Sequence[Node]) -> set[Node]:
    """Nodes that are the same at every turn."""
    fixed = set(constant)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and all(x in fixed for x in inputs):
            fixed.add(node)
    return fixed


def _by_onednn(node: Any, edit: Editor) -> None:
    """The product by oneDNN instead of PyTorch's BLAS, where that is faster on this machine."""
    *bias, left, right = node.args
    a, b = _value(left), _value(right)
    if a.dtype is not torch.float32 or (bias and _value(bias[0]).ndim != 1):
        return
    if not onednn.is_faster((tuple(a.shape), a.stride()), (tuple(b.shape), b.stride()), torch.get_num_threads()):
        return
    with edit.graph.inserting_before(node):
        product = edit(onednn.linear(), left, edit.turned(right), bias[0] if bias else None)
    node.replace_all_uses_with(product)


def _broadcast(node: Any, fixed: set[Node], edit: Editor, by_columns: bool) -> bool:
    """Write a small product with what stays the same as a sum of products; whether it was one."""
    *bias, left, right = node.args
    (rows, inner), width = _value(left).shape, _value(right).shape[1]
    most = column_layout.LARGE if by_columns else SMALL
    if right not in fixed or not 0 < rows * inner * width <= most or not _value(left).dtype.is_floating_point:
        return False
    product = _from_columns if by_columns and rows >= column_layout.FEW else _from_rows
    with edit.graph.inserting_before(node):
        node.replace_all_uses_with(product(left, right, bias, edit))
    return True


def _without_gaps(x: Node, edit: Editor) -> Node:
    return x if _value(x).is_contiguous() else edit.by_rows(x)


def _contracted(edit: Editor, left: tuple[Node, int], right: tuple[Node, int], axis: int) -> Node:
    """The sum over an axis of the product of two matrices, each spread along the axis that is given with it."""
    spread = (edit(aten.unsqueeze.default, x, along) for x, along in (left, right))
    return edit(aten.sum.dim_IntList, edit(aten.mul.Tensor, *spread), [axis])


def _pairwise(edit: Editor, left: tuple[Node, int], right: tuple[Node, int], count: int) -> Node:
    """The sum of products of slices, each of both along the axis that is given with it."""

    def term(k: int) -> Node:
        slices = (edit(aten.slice.Tensor, x, along, k, k + 1) for x, along in (left, right))
        return edit(aten.mul.Tensor, *slices)

    return reduce(lambda total, k: edit(aten.add.Tensor, total, term(k)), range(1, count), term(0))


def _from_rows(left: Node, right: Node, bias: Sequence[Any], edit: Editor) -> Node:
    """The product as a sum of rows, each times a number of every row."""
    left = edit(torch.ops._inductor_test.realize.default, left)  # else it would be computed for every column anew
    (rows, inner), width = _value(left).shape, _value(right).shape[1]
    if inner <= UNROLLED:
        total = _pairwise(edit, (left, 1), (_without_gaps(right, edit), 0), inner)
    else:
        total = _contracted(edit, (left, 1), (_without_gaps(edit.turned(right), edit), 0), 2)
    if bias:
        # spread over all rows once and for all, so that what follows is one loop over all elements
        whole = edit.by_rows(edit(aten.expand.default, bias[0], [rows, width]))
        total = edit(aten.add.Tensor, total, whole)
    return total


def _from_columns(left: Node, right: Node, bias: Sequence[Any], edit: Editor) -> Node:
    """The product as a sum of columns, each times a number."""
    inner = _value(left).shape[1]
    order = torch.ops.prims.inductor_force_stride_order.default
    turned = edit(order, edit.turned(left), [_value(left).shape[0], 1])
    weights = edit.turned(right)
    if inner <= UNROLLED:
        total = _pairwise(edit, (turned, 0), (weights, 1), inner)
    else:
        total = _contracted(edit, (_without_gaps(weights, edit), 2), (turned, 0), 1)
    if bias:
        by_column = bias[0] if _value(bias[0]).ndim > 1 else edit(aten.unsqueeze.default, bias[0], 0)
        total = edit(aten.add.Tensor, total, edit.turned(by_column))
    return edit.turned(total)


def lifted(begin: GraphModule, turn: GraphModule, carried: int) -> None:
    """Move what every turn would compute anew into `begin`.

    That takes all inputs, and gives after the `carried` what a turn still wants beside them, in its order.
    """
    graph, places, end = turn.graph, turn.graph.find_nodes(op="placeholder"), begin.graph.output_node()
    known = dict(zip(places[carried:], begin.graph.find_nodes(op="placeholder"), strict=True))
    fixed = _unchanging(graph, places[carried:])
    computed = [n for n in graph.nodes if n in fixed and n.op == "call_function"]
    with begin.graph.inserting_before(end):
        for node in computed:
            known[node] = begin.graph.node_copy(node, lambda n: known[n])
    wanted = [n for n in (*places[carried:], *computed) if any(user not in fixed for user in n.users)]
    with graph.inserting_after(places[-1]):
        for i, node in reversed(list(enumerate(wanted))):
            place = graph.placeholder(f"fixed{i}")
            place.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(place, delete_user_cb=lambda user: user not in fixed)
    for node in (*reversed(computed), *places[carried:]):
        graph.erase_node(node)
    end.args = ((*end.args[0], *(known[n] for n in wanted)),)  # pyright: ignore
    for module in (begin, turn):
        module.graph.eliminate_dead_code()
        module.recompile()
