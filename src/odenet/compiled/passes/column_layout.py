"""Narrow states (B, D), D < 16 <= B, in column-major order: a vector instruction then works on many samples.

In row-major order two numbers of a row fill 2 of 16 places of a vector, and a product sums across the vector. Where f
has large products, which a library computes, the order stays row-major.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...core.leaves import Leaves
from .graph_editor import GraphEditor

aten = torch.ops.aten

VECTOR = 16  # numbers of float32 in a vector
LARGE_PRODUCT = 2**17  # multiplications of a product that a library computes faster
_PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "bilinear")


def is_narrow(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[1] < VECTOR <= shape[0]


def largest_product(f: GraphModule) -> float:
    """Multiplications of the largest matrix product in f's graph; infinite if there is a convolution."""
    return max(map(_multiplications, f.graph.nodes), default=0)


def _multiplications(node: Node) -> float:
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    if "conv" in name:
        return math.inf
    shape, first = getattr(node.meta.get("example_value"), "shape", None), next(iter(node.all_input_nodes), None)
    if name not in _PRODUCTS or shape is None or first is None:
        return 0
    return math.prod(shape) * first.meta["example_value"].shape[-1]


def to_loop_layout(x: Tensor, column_major: bool) -> Tensor:
    """x without gaps, in column-major order if it is narrow and the loop wants that."""
    return x.mT.contiguous().mT if column_major and is_narrow(x.shape) else x.contiguous()


def all_to_loop_layout(xs: Sequence[Tensor], column_major: bool) -> Leaves:
    return tuple(to_loop_layout(x, column_major) for x in xs)


def all_contiguous(xs: Sequence[Tensor]) -> Leaves:
    """Row-major tensors, as f was captured with, since f may take views. Inductor fuses the copies away."""
    return tuple(x.contiguous() for x in xs)


def tape_tensor(x: Tensor, rows: int, column_major: bool) -> Tensor:
    """Memory (rows, *shape) for tensors like x, each row in the layout of the loop."""
    if column_major and is_narrow(x.shape):
        return torch.empty((rows, x.shape[1], x.shape[0]), dtype=x.dtype, device=x.device).mT
    return torch.empty((rows, *x.shape), dtype=x.dtype, device=x.device)


def cat_columns(node: Node, edit: GraphEditor) -> None:
    """Write a concatenation of columns so that its result is column-major; Inductor's is row-major."""
    value, parts = node.meta["val"], cast("Sequence[Node]", node.args[0])
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    if not is_narrow(value.shape) or axis % 2 == 0:
        return
    with edit.graph.inserting_before(node):
        result = edit(aten.cat.default, [edit.transpose(part) for part in parts])
        node.replace_all_uses_with(edit.transpose(result))


def transpose_input(place: Node, edit: GraphEditor) -> None:
    """Make a column-major copy of an input that no iteration changes, once."""
    if not is_narrow(place.meta["val"].shape) or not place.users:
        return
    users = list(place.users)
    with edit.graph.inserting_before(next(n for n in edit.graph.nodes if n.op != "placeholder")):
        whole = edit.transpose(edit.contiguous(edit.transpose(place)))
    for user in users:
        user.replace_input_with(place, whole)
