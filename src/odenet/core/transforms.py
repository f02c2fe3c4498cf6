"""`torch.func`: whether a transform is under way, and what is inside the tensors that it wraps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

functorch: Any = _functorch


def nested() -> bool:
    """Inside a transform, or one that `torch.compile` is recording."""
    return functorch.get_dynamic_layer_stack_depth() > 0


# as torch.compiler.assume_constant_result has it: TorchDynamo calls it, where before PyTorch 2.13 it could not trace it
nested._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def transforming() -> bool:
    """Inside any of `torch.func`'s transforms: its tensors refuse what autograd.Function and in-place results need."""
    return nested() and not torch.compiler.is_compiling()


def vmapping() -> bool:
    """Inside `torch.func.vmap`, which may itself be inside other transforms, or around them."""
    if not nested() or torch.compiler.is_compiling():
        return False
    levels = functorch.get_interpreter_stack() or ()
    return any(level.key() == functorch.TransformType.Vmap for level in levels)


def unwrapped(x: Tensor) -> Tensor:
    """The tensor inside all wrappers; the axes that `vmap` hides are its first ones, or wherever they were."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def outlasting(x: Any) -> Any:
    """A value that can be kept beyond `torch.func.vmap`: there that of all lanes."""
    return unwrapped(x) if isinstance(x, Tensor) and vmapping() else x


def plain_view() -> AbstractContextManager[object]:
    """Where unwrapped tensors can be looked at: outside all transforms."""
    if not transforming():
        return nullcontext()
    # loaded already: whoever started a transform went through it
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def every(flags: Tensor) -> bool:
    """Whether all are true, in whatever is vmapped too."""
    if torch.compiler.is_compiling():  # a value of the future; it is taken to be as it should
        return True
    with plain_view():
        return bool(unwrapped(flags).all())


def some(flags: Tensor) -> bool:
    """Whether any is true, in whatever is vmapped too."""
    with plain_view():
        return bool(unwrapped(flags).any())


def largest(x: Tensor) -> float:
    """The largest entry, of whatever is vmapped too."""
    with plain_view():
        return float(unwrapped(x).max())


def tracked(x: Tensor) -> bool:
    """Whether a transform follows x at any level, as far as can be seen: True where it may."""
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad
