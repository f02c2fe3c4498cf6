"""Arithmetic of step control, written once for numbers on the host and for tensors.

A joint solve keeps its time, step size and error ratio in Python numbers: a decision then costs no tensor operation.
A per-sample solve, and a traced one, keeps them in tensors, (B,) or (). Controllers and the step loop call these
functions and serve both. The overloads say that floats give a float and that a tensor gives a tensor.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from . import torch_func

ScalarLike = float | Tensor
"""A number of one sequence of steps: a float on the host, or a tensor, (B,) per sample."""

MaskLike = bool | Tensor
"""A truth value of one sequence of steps: a bool on the host, or a boolean tensor, (B,) per sample."""

_S = TypeVar("_S")


@overload
def where(mask: Tensor, yes: ScalarLike, no: ScalarLike) -> Tensor: ...
@overload
def where(mask: bool, yes: _S, no: _S) -> _S: ...
def where(mask: Any, yes: Any, no: Any) -> Any:
    if isinstance(mask, Tensor):
        return torch.where(mask, yes, no)
    return yes if mask else no


@overload
def select_all(mask: Tensor, yes: tuple[ScalarLike, ...], no: tuple[ScalarLike, ...]) -> tuple[Tensor, ...]: ...
@overload
def select_all(mask: bool, yes: tuple[_S, ...], no: tuple[_S, ...]) -> tuple[_S, ...]: ...
def select_all(mask: Any, yes: tuple[Any, ...], no: tuple[Any, ...]) -> tuple[Any, ...]:
    """`where`, entry by entry of two tuples."""
    if isinstance(mask, Tensor):
        return tuple([torch.where(mask, a, b) for a, b in zip(yes, no, strict=True)])
    return yes if mask else no


@overload
def clip(x: Tensor, low: float, high: float) -> Tensor: ...
@overload
def clip(x: float, low: float, high: float) -> float: ...
def clip(x: ScalarLike, low: float, high: float) -> ScalarLike:
    return torch.clamp(x, low, high) if isinstance(x, Tensor) else min(max(x, low), high)


@overload
def maximum(x: Tensor, y: ScalarLike) -> Tensor: ...
@overload
def maximum(x: float, y: Tensor) -> Tensor: ...
@overload
def maximum(x: float, y: float) -> float: ...
def maximum(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor):
        return torch.clamp(x, min=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, min=x)
    return max(x, y)


@overload
def minimum(x: Tensor, y: ScalarLike) -> Tensor: ...
@overload
def minimum(x: float, y: Tensor) -> Tensor: ...
@overload
def minimum(x: float, y: float) -> float: ...
def minimum(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor):
        return torch.clamp(x, max=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, max=x)
    return min(x, y)


@overload
def isfinite(x: Tensor) -> Tensor: ...
@overload
def isfinite(x: float) -> bool: ...
def isfinite(x: ScalarLike) -> MaskLike:
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


@overload
def logical_not(x: Tensor) -> Tensor: ...
@overload
def logical_not(x: bool) -> bool: ...
def logical_not(x: MaskLike) -> MaskLike:
    return ~x if isinstance(x, Tensor) else not x


@overload
def convert_like(x: ScalarLike, like: Tensor) -> Tensor: ...
@overload
def convert_like(x: ScalarLike, like: float) -> float: ...
def convert_like(x: Any, like: Any) -> Any:
    """x on the host where `like` is a float, and in `like`'s dtype where it is a tensor: x is one then, too."""
    if isinstance(like, Tensor):
        return x.to(like.dtype) if x.is_floating_point() else x
    return x.item() if isinstance(x, Tensor) else x


@overload
def mask_like(x: MaskLike, like: Tensor) -> Tensor: ...
@overload
def mask_like(x: MaskLike, like: float) -> bool: ...
def mask_like(x: Any, like: Any) -> Any:
    """The truth value x, on the host where `like` is a float; where it is a tensor, x is one too."""
    return x.item() if isinstance(x, Tensor) and not isinstance(like, Tensor) else x


@overload
def detach(x: Tensor) -> Tensor: ...
@overload
def detach(x: float) -> float: ...
def detach(x: ScalarLike) -> ScalarLike:
    return x.detach() if isinstance(x, Tensor) else x


@overload
def full_like(like: Tensor, value: float) -> Tensor: ...
@overload
def full_like(like: float, value: float) -> float: ...
def full_like(like: ScalarLike, value: float) -> ScalarLike:
    """`value`, as a tensor of the shape and dtype of `like` where that is one."""
    return torch.full_like(like, value) if isinstance(like, Tensor) else value


def any_true(flag: MaskLike) -> bool:
    """True where any entry is true, inside `torch.func.vmap` in any of its samples. Waits for the device."""
    return torch_func.any_true(flag) if isinstance(flag, Tensor) else flag


@overload
def round_to_float32(x: Tensor) -> Tensor: ...
@overload
def round_to_float32(x: float) -> float: ...
def round_to_float32(x: ScalarLike) -> ScalarLike:
    """x rounded to float32, in its own dtype.

    `pow` and sums differ in the last bit between vectorised and scalar code, and so with the size of the batch. Values
    that decide a step size are rounded here: float32 is far finer than step control needs, and the steps of a sample
    are then the same in any batch.
    """
    if isinstance(x, Tensor):
        return x.float().to(x.dtype)
    return ctypes.c_float(x).value
