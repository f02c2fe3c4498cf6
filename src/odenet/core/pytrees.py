"""The only module that uses PyTorch's pytrees: the caller's structure to leaves, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as _pytree
from torch import Tensor

from .leaves import Leaves, cast

Spec = _pytree.TreeSpec
"""The structure of a pytree."""

_SINGLE = _pytree.tree_flatten(0)[1]  # the structure of a bare tensor

tree_map = _pytree.tree_map


def unflatten(leaves: Sequence[Any], spec: Spec) -> Any:
    """The pytree with these leaves and this structure."""
    return leaves[0] if spec is _SINGLE else _pytree.tree_unflatten(leaves, spec)


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves of a pytree, and its structure."""
    return ([tree], _SINGLE) if isinstance(tree, Tensor) else _pytree.tree_flatten(tree)


def flatten_like(tree: Any, like: Spec) -> tuple[list[Any], Spec]:
    """`flatten`, with the leaves in the order of `like` if only the order of dict keys differs."""
    leaves, spec = flatten(tree)
    if spec == like or spec.num_leaves != like.num_leaves:
        return leaves, spec
    try:
        ordered = like.flatten_up_to(tree)
    except ValueError:
        return leaves, spec
    same = all(_pytree.tree_is_leaf(x) for x in ordered)
    return (ordered, like) if same else (leaves, spec)


def flatten_with_names(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its path in the pytree, such as "['x'][0]" ("" for a bare tensor)."""
    if isinstance(tree, Tensor):
        return [("", tree)]
    pairs, _ = _pytree.tree_flatten_with_path(tree)
    return [(_pytree.keystr(path), leaf) for path, leaf in pairs]


def outline(spec: Spec) -> str:
    """The structure of a pytree as text for messages: {'x': tensor, 'v': (tensor, tensor)}."""
    if spec.is_leaf():
        return "tensor"
    inner = [outline(child) for child in spec.children()]
    if spec.type is dict:
        return "{" + ", ".join(f"{key!r}: {x}" for key, x in zip(spec.context, inner, strict=True)) + "}"
    if spec.type is list:
        return f"[{', '.join(inner)}]"
    if spec.type is tuple:
        return f"({', '.join(inner)}{',' * (len(inner) == 1)})"
    return f"{getattr(spec.type, '__name__', spec.type)}({', '.join(inner)})"


def pack_leaves(leaves: Leaves, dtypes: tuple[torch.dtype, ...], spec: Spec) -> Any:
    """The pytree with these leaves, cast to these dtypes."""
    if spec is _SINGLE:
        (x,), (dtype,) = leaves, dtypes
        return x if x.dtype is dtype else x.to(dtype)
    return unflatten([cast(x, d) for x, d in zip(leaves, dtypes, strict=True)], spec)


@dataclass(frozen=True)
class Structure:
    """A function: leaves -> the state in the caller's structure and dtypes."""

    spec: Spec
    dtypes: tuple[torch.dtype, ...]

    def __call__(self, leaves: Leaves) -> Any:
        return pack_leaves(leaves, self.dtypes, self.spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the structure as a pytree of numbers: PyTorch warns when a TreeSpec is pickled."""
        return Structure.like, (unflatten(range(len(self.dtypes)), self.spec), self.dtypes)

    @staticmethod
    def like(state: Any, dtypes: tuple[torch.dtype, ...]) -> Structure:
        return Structure(flatten(state)[1], dtypes)
