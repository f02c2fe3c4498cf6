"""What of an object goes to another process, into a file, or into a deep copy: its values, and no graph.

PyTorch refuses to copy a tensor that autograd follows to where it came from, and pickles one as if it were a leaf.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import Tensor

from .pytrees import tree_map


def detach_leaf(x: Any) -> Any:
    """A tensor as a constant in memory of its own size, where it was a part of a larger one; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach()
    return x.clone() if x.untyped_storage().nbytes() > x.numel() * x.element_size() else x


def detach_tree(tree: Any) -> Any:
    """A pytree with its tensors as constants."""
    return tree_map(detach_leaf, tree)


class PortableSettings:
    """An object of plain attributes. A pickle, or a deep copy, has those that autograd follows as constants.

    `copy.copy` has the attributes themselves, as an assignment has.
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
    """The call that makes an object, without what is as by default; each parameter is an attribute of that name."""
    shown, parameters = [], inspect.signature(type(x)).parameters
    bare = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for name, parameter in parameters.items():
        value, default = getattr(x, name, parameter.default), parameter.default
        if default is not parameter.empty and (value is default or _equal(value, default)):
            continue
        shown.append(_short(value) if bare == [name] else f"{name}={_short(value)}")
    return f"{type(x).__name__}({', '.join(shown)})"


def _equal(value: Any, default: Any) -> bool:
    plain = (bool, int, float, str)
    return isinstance(value, plain) and isinstance(default, plain) and value == default


def _short(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, Tensor) and value.numel() > 6:
        return f"<tensor {tuple(value.shape)}>"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    text = repr(value)
    return text if len(text) < 80 else text[:76] + " ..."
