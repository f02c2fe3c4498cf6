"""Values for what is missing, in O(T) operations on tensors without loops; all along dimension -2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """Numbers of the nearest observed rows of each row, (..., T, C).

    before: of the last one up to it, -1 where there is none. after: of the first one from it on, T where there is none.
    """

    before: Tensor
    after: Tensor


def observed_neighbours(mask: Tensor) -> Neighbours:
    """mask: (..., T, C), True where a value is observed."""
    rows = mask.shape[-2]
    number = torch.arange(rows, device=mask.device)[:, None]
    before = torch.where(mask, number, -1).cummax(-2).values
    after = torch.where(mask, number, rows).flip(-2).cummin(-2).values.flip(-2)
    return Neighbours(before, after)


def forward_fill(x: Tensor, mask: Tensor, default: Tensor | float = 0.0) -> Tensor:
    """The last observed value, (..., T, C); `default` before the first one."""
    before = observed_neighbours(mask).before
    return torch.where(before >= 0, x.gather(-2, before.clamp(min=0)), default)


def linear_fill(t: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Straight lines between observed values, (..., T, C); constant before the first and behind the last one.

    t: (..., T). A channel without any value is 0.
    """
    rows = x.shape[-2]
    if not rows:
        return x
    before, after = observed_neighbours(mask)
    left, right = before.clamp(min=0), after.clamp(max=rows - 1)
    left, right = torch.where(before < 0, right, left), torch.where(after == rows, left, right)
    time = t[..., None].expand(x.shape)
    x_left, x_right, t_left, t_right = (
        x.gather(-2, left),
        x.gather(-2, right),
        time.gather(-2, left),
        time.gather(-2, right),
    )
    between = t_right > t_left
    ratio = torch.where(between, time - t_left, 0.0) / torch.where(between, t_right - t_left, 1.0)
    filled = x_left + ratio * (x_right - x_left)
    return torch.where(mask, x, torch.where((before >= 0) | (after < rows), filled, 0.0))
