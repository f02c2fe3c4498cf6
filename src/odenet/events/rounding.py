"""How much the values of event functions change with rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.leaves import Leaves

UNITS = 4.0  # of the last place: how well the end of a step is known


@torch.no_grad()
def noise(
    values: Callable[[Tensor, Leaves], Tensor], time: Tensor, y: Leaves, time_scale: Tensor, scale: Leaves
) -> Tensor:
    """The change of values(time, y), and like these: float64, zero where it is not finite.

    time_scale: the size of time, in the dtype that the values are given it in. scale: the size of each entry of y.
    """
    here = values(time, y).double()
    span = UNITS * torch.finfo(time_scale.dtype).eps * time_scale.abs()
    shifts = [UNITS * torch.finfo(x.dtype).eps * a.abs() for x, a in zip(y, scale, strict=True)]
    most = torch.zeros_like(here)
    for sign in (1, -1):
        for turned in (shifts, [_every_second(x) for x in shifts]):  # or what cancels would go on doing so
            there = tuple(x + sign * d for x, d in zip(y, turned, strict=True))
            change = (values(time + sign * span.to(time.dtype), there).double() - here).abs()
            most = torch.maximum(most, change.nan_to_num(0.0, 0.0))
    return most


def _every_second(x: Tensor) -> Tensor:
    """x with every second entry negated."""
    return x * (1 - 2 * (torch.arange(x.numel(), device=x.device) % 2)).reshape(x.shape)
