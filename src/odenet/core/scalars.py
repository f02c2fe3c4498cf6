"""Decisions about lanes, written once for both ways a lane is held.

The loop keeps the one lane of a joint solve in Python numbers: its decisions then cost no tensor operation.
Per-sample solves keep lanes in (B,) tensors. Controllers and the step loop are written with these few functions and
serve both.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from . import torch_func

ScalarLike = float | Tensor
"""A number of each sequence of steps: of the host in a joint solve, a (B,) tensor per sample."""

MaskLike = bool | Tensor
"""The same for a truth value."""


def where(mask: MaskLike, yes: ScalarLike, no: ScalarLike) -> ScalarLike:
    if isinstance(mask, Tensor):
        return torch.where(mask, yes, no)
    return yes if mask else no


def select_all(mask: MaskLike, yes: tuple[ScalarLike, ...], no: tuple[ScalarLike, ...]) -> tuple[ScalarLike, ...]:
    """`where` for several lanes."""
    if isinstance(mask, Tensor):
        return tuple([torch.where(mask, a, b) for a, b in zip(yes, no, strict=True)])
    return yes if mask else no


def clip(x: ScalarLike, low: float, high: float) -> ScalarLike:
    return torch.clamp(x, low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def maximum(x: ScalarLike, y: ScalarLike) -> ScalarLike:
    if isinstance(x, Tensor):
        return torch.clamp(x, min=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, min=x)
    return max(x, y)


def minimum(x: ScalarLike, y: ScalarLike) -> ScalarLike:
    if isinstance(x, Tensor):
        return torch.clamp(x, max=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, max=x)
    return min(x, y)


def isfinite(x: ScalarLike) -> MaskLike:
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def logical_not(x: MaskLike) -> MaskLike:
    return ~x if isinstance(x, Tensor) else not x


def convert_like(x: ScalarLike, like: ScalarLike) -> ScalarLike:
    """The lane x, held as `like` is: by the host, or as a tensor, numbers in its dtype."""
    if isinstance(like, Tensor):
        return x.to(like.dtype) if x.is_floating_point() else x
    return x.item() if isinstance(x, Tensor) else x


def detach(x: ScalarLike) -> ScalarLike:
    return x.detach() if isinstance(x, Tensor) else x


def full_like(like: ScalarLike, value: float) -> ScalarLike:
    """The value in each lane."""
    return torch.full_like(like, value) if isinstance(like, Tensor) else value


def any_true(flag: MaskLike) -> bool:
    """Whether it holds for any lane, in whatever is vmapped too."""
    return torch_func.any_true(flag) if isinstance(flag, Tensor) else flag


def round_to_float32(x: ScalarLike) -> ScalarLike:
    """x rounded to float32.

    `pow` and sums differ in the last bit between vectorised and scalar code, so with how many samples are beside. What
    decides a step size is rounded here: far finer than step control needs, and then the same in any batch.
    """
    if isinstance(x, Tensor):
        return x.float().to(x.dtype)
    return ctypes.c_float(x).value
