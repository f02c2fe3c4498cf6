"""States of few columns are held column-major: vector instructions then work on many rows at a time.

Row by row, two numbers of a row would be a vector of sixteen places, and a product would add across a vector. Where f
has large products, which a library computes, rows stay rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...core.leaves import Leaves
from .graph_editor import Editor

aten = torch.ops.aten

FEW = 16  # a vector of float32
LARGE = 2**17  # multiplications of a product that a library computes faster
_PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "bilinear")


def few(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[1] < FEW <= shape[0]


def largest_product(f: GraphModule) -> float:
    """Multiplications of the largest matrix product in f's graph; infinite where there is a convolution."""
    return max(map(_product, f.graph.nodes), default=0)


def _product(node: Node) -> float:
    """Multiplications of a node of f's graph."""
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    if "conv" in name:
        return math.inf
    shape, first = getattr(node.meta.get("example_value"), "shape", None), next(iter(node.all_input_nodes), None)
    if name not in _PRODUCTS or shape is None or first is None:
        return 0
    return math.prod(shape) * first.meta["example_value"].shape[-1]


def arranged(x: Tensor, columns: bool) -> Tensor:
    """x as a loop holds it: an array without gaps, of columns or of rows."""
    return x.mT.contiguous().mT if columns and few(x.shape) else x.contiguous()


def all_arranged(xs: Sequence[Tensor], columns: bool) -> Leaves:
    return tuple(arranged(x, columns) for x in xs)


def all_by_rows(xs: Sequence[Tensor]) -> Leaves:
    """As f was captured with, which may take views; no copy is left of this where it is compiled."""
    return tuple(x.contiguous() for x in xs)


def tape_of(x: Tensor, rows: int, columns: bool) -> Tensor:
    """Rows for tensors like x, each as x is arranged."""
    if columns and few(x.shape):
        return torch.empty((rows, x.shape[1], x.shape[0]), dtype=x.dtype, device=x.device).mT
    return torch.empty((rows, *x.shape), dtype=x.dtype, device=x.device)


def concatenated(node: Node, edit: Editor) -> None:
    """Columns put side by side, as an array of columns: Inductor would make one of rows."""
    value, parts = node.meta["val"], node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    if not few(value.shape) or axis % 2 == 0:
        return
    with edit.graph.inserting_before(node):
        made = edit(aten.cat.default, [edit.turned(part) for part in parts])  # pyright: ignore
        node.replace_all_uses_with(edit.turned(made))


def transposed(place: Node, edit: Editor) -> None:
    """An input that stays the same at every turn, as an array of columns: it is copied once."""
    if not few(place.meta["val"].shape) or not place.users:
        return
    users = list(place.users)
    with edit.graph.inserting_before(next(n for n in edit.graph.nodes if n.op != "placeholder")):
        whole = edit.turned(edit.by_rows(edit.turned(place)))
    for user in users:
        user.replace_input_with(place, whole)
