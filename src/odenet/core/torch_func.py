"""`torch.func`: whether a transform is active, and the tensors inside its wrappers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

functorch: Any = _functorch


def inside_transform() -> bool:
    """True inside a transform, also while `torch.compile` records it."""
    return functorch.get_dynamic_layer_stack_depth() > 0


# as torch.compiler.assume_constant_result marks it: before PyTorch 2.13 TorchDynamo could not trace the function
inside_transform._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def transforming() -> bool:
    """True inside a transform that runs: its tensors allow neither autograd.Function nor results in place."""
    return inside_transform() and not torch.compiler.is_compiling()


def vmapping() -> bool:
    """True inside `torch.func.vmap`, at any level of nested transforms."""
    if not inside_transform() or torch.compiler.is_compiling():
        return False
    levels = functorch.get_interpreter_stack() or ()
    return any(level.key() == functorch.TransformType.Vmap for level in levels)


def unwrapped(x: Tensor) -> Tensor:
    """The tensor inside all wrappers, with the axes that `vmap` hides."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def without_vmap(x: Any) -> Any:
    """x as a value that outlives `torch.func.vmap`: a tensor with the vmapped axis."""
    return unwrapped(x) if isinstance(x, Tensor) and vmapping() else x


def outside_transforms() -> AbstractContextManager[object]:
    """A context outside all transforms, in which values of unwrapped tensors can be read."""
    if not transforming():
        return nullcontext()
    # imported here, as it costs time: a running transform has loaded it already
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def all_true(flags: Tensor) -> bool:
    """True when every entry is true, in all vmapped samples; assumed true while `torch.compile` records."""
    if torch.compiler.is_compiling():
        return True
    with outside_transforms():
        return bool(unwrapped(flags).all())


def any_true(flags: Tensor) -> bool:
    """True when any entry is true, in any vmapped sample."""
    with outside_transforms():
        return bool(unwrapped(flags).any())


def largest(x: Tensor) -> float:
    """The largest entry, over all vmapped samples."""
    with outside_transforms():
        return float(unwrapped(x).max())


def tracked(x: Tensor) -> bool:
    """True when a transform may differentiate with respect to x, at any level."""
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad
