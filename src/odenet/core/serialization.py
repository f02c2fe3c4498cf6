"""Pickles and deep copies hold values without autograd graphs.

PyTorch refuses to deep-copy a tensor with a history, and pickles it as if it were a leaf.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import Tensor

from .pytrees import tree_map


def detach_leaf(x: Any) -> Any:
    """A detached tensor, copied if it is a view of a larger one; any other x unchanged."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach()
    return x.clone() if x.untyped_storage().nbytes() > x.numel() * x.element_size() else x


def detach_tree(tree: Any) -> Any:
    """`detach_leaf` for each leaf of a pytree."""
    return tree_map(detach_leaf, tree)


class PortableSettings:
    """Base of objects with plain attributes: a pickle or a deep copy detaches tensors that have a history.

    `copy.copy` shares the attributes.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {
            k: detach_leaf(v) if isinstance(v, Tensor) and v.grad_fn is not None else v for k, v in vars(self).items()
        }

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(vars(self))
        return other


def settings_repr(x: Any) -> str:
    """The constructor call of x without defaults, for classes whose parameters are attributes of the same name."""
    arguments: list[str] = []
    parameters = inspect.signature(type(x)).parameters
    positional = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for name, parameter in parameters.items():
        value, default = getattr(x, name, parameter.default), parameter.default
        if default is not parameter.empty and (value is default or _equal(value, default)):
            continue
        arguments.append(short_repr(value) if positional == [name] else f"{name}={short_repr(value)}")
    return f"{type(x).__name__}({', '.join(arguments)})"


def _equal(value: Any, default: Any) -> bool:
    plain = (bool, int, float, str)
    return isinstance(value, plain) and isinstance(default, plain) and value == default


def short_repr(value: Any) -> str:
    """`repr` in at most 80 characters; a function by its name, a tensor of many numbers by its shape."""
    if isinstance(value, Tensor) and value.numel() > 6:
        return f"<tensor {tuple(value.shape)}>"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    text = repr(value)
    return text if len(text) < 80 else text[:76] + " ..."
