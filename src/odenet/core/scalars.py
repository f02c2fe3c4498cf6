"""Decisions about lanes, written once for both ways a lane is held.

The loop keeps the one lane of a joint solve in Python numbers: its decisions then cost no tensor operation.
Per-sample solves keep lanes in (B,) tensors. Controllers and the step loop are written with these few functions and
serve both.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from . import torch_func

# float | Tensor and bool | Tensor: a union could not say that all lanes of one solve are of the same kind.
Number = Any
Flag = Any


def where(mask: Flag, yes: Number, no: Number) -> Number:
    if isinstance(mask, Tensor):
        return torch.where(mask, yes, no)
    return yes if mask else no


def select_all(mask: Flag, yes: tuple[Number, ...], no: tuple[Number, ...]) -> tuple[Number, ...]:
    """`where` for several lanes."""
    if isinstance(mask, Tensor):
        return tuple([torch.where(mask, a, b) for a, b in zip(yes, no, strict=True)])
    return yes if mask else no


def clip(x: Number, low: float, high: float) -> Number:
    return torch.clamp(x, low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def maximum(x: Number, y: Number) -> Number:
    if isinstance(x, Tensor):
        return torch.clamp(x, min=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, min=x)
    return max(x, y)


def minimum(x: Number, y: Number) -> Number:
    if isinstance(x, Tensor):
        return torch.clamp(x, max=y)
    if isinstance(y, Tensor):
        return torch.clamp(y, max=x)
    return min(x, y)


def isfinite(x: Number) -> Flag:
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def negate(x: Flag) -> Flag:
    return ~x if isinstance(x, Tensor) else not x


def held(x: Number, like: Number) -> Number:
    """The lane x, held as `like` is: by the host, or as a tensor, numbers in its dtype."""
    if isinstance(like, Tensor):
        return x.to(like.dtype) if x.is_floating_point() else x
    return x.item() if isinstance(x, Tensor) else x


def constant(x: Number) -> Number:
    return x.detach() if isinstance(x, Tensor) else x


def filled(like: Number, value: float) -> Number:
    """The value in each lane."""
    return torch.full_like(like, value) if isinstance(like, Tensor) else value


def some(flag: Flag) -> bool:
    """Whether it holds for any lane, in whatever is vmapped too."""
    return torch_func.some(flag) if isinstance(flag, Tensor) else flag


def coarse(x: Number) -> Number:
    """x rounded to float32.

    `pow` and sums differ in the last bit between vectorised and scalar code, so with how many samples are beside. What
    decides a step size is rounded here: far finer than step control needs, and then the same in any batch.
    """
    if isinstance(x, Tensor):
        return x.float().to(x.dtype)
    return ctypes.c_float(x).value
