"""How much event values change with the rounding of time and state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.leaves import Leaves

UNITS = 4.0  # in the last place: the accuracy of the end of a step


@torch.no_grad()
def rounding_noise(
    values: Callable[[Tensor, Leaves], Tensor], time: Tensor, y: Leaves, time_scale: Tensor, scale: Leaves
) -> Tensor:
    """The largest change of values(time, y), in its shape and float64; zero where it is not finite.

    time_scale: the size of time, in the dtype in which `values` gets it. scale: the size of each entry of y.
    """
    exact = values(time, y).double()
    span = UNITS * torch.finfo(time_scale.dtype).eps * time_scale.abs()
    shifts = [UNITS * torch.finfo(x.dtype).eps * a.abs() for x, a in zip(y, scale, strict=True)]
    most = torch.zeros_like(exact)
    for sign in (1, -1):
        # with alternating signs too, as equal shifts may cancel in a difference of entries
        for signed in (shifts, [_alternating(x) for x in shifts]):
            shifted = tuple(x + sign * d for x, d in zip(y, signed, strict=True))
            change = (values(time + sign * span.to(time.dtype), shifted).double() - exact).abs()
            most = torch.maximum(most, change.nan_to_num(0.0, 0.0))
    return most


def _alternating(x: Tensor) -> Tensor:
    """x with every second entry negated."""
    return x * (1 - 2 * (torch.arange(x.numel(), device=x.device) % 2)).reshape(x.shape)
