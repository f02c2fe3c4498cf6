"""Slopes of cubic splines through what is observed, at every row; all along dimension -2 of (..., T, C)."""

from __future__ import annotations

import torch
from torch import Tensor

from .filling import linear_fill, observed_neighbours
from .tridiagonal import solve_tridiagonal


def backward_difference_slopes(gaps: Tensor, x: Tensor) -> Tensor:
    """The slope of the line up to each row; at the first row that of the line from it. gaps: in time, (..., T - 1).

    Morrill et al. 2021, "Neural controlled differential equations for online prediction tasks".
    """
    slopes = x.diff(dim=-2) / gaps[..., None]
    return torch.cat([slopes[..., :1, :], slopes], -2)


def natural_spline(t: Tensor, x: Tensor, mask: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Values and slopes at every row of the natural cubic spline through the observed values.

    t: (..., T), T at least 2. mask: True where a value is observed, (..., T, C). inside: True for rows, False for
    padding behind them, (..., T). Each channel has a spline of its own. It is constant before its first value and
    behind its last one; the rows there are knots. A channel without any value is 0. In padding all is left open.
    """
    rows = x.shape[-2]
    if not bool((mask | ~inside[..., None]).all()):
        (before, after), filled = observed_neighbours(mask), linear_fill(t, x, mask)
        outside = ((before < 0) | (after == rows)) & inside[..., None] & mask.any(-2, keepdim=True)
        mask = mask | outside
        x = torch.where(mask, filled, 0.0)
    time, x, mask = t[..., None].expand(x.shape).mT, x.mT, mask.mT  # (..., C, T)
    order = (~mask).to(torch.int8).argsort(dim=-1, stable=True)  # the observed rows, then the others
    count = mask.sum(-1, keepdim=True)
    knot, value = time.gather(-1, order), x.gather(-1, order)
    between = torch.arange(rows - 1, device=x.device) < count - 1  # intervals between observed rows
    length = torch.where(between, knot.diff(dim=-1), 1.0)
    slope = _natural_slopes(length, value.diff(dim=-1), between)
    last = (mask.cumsum(-1) - 1).clamp(min=0).minimum((count - 2).clamp(min=0))  # the interval of each row
    h, left, right = length.gather(-1, last), value.gather(-1, last), value.gather(-1, last + 1)
    s_left, s_right = slope.gather(-1, last), slope.gather(-1, last + 1)
    several = count > 1
    u = torch.where(several, (time - knot.gather(-1, last)) / h, 0.0)
    right = torch.where(several, right, left)
    line = (right - left) / h
    filled = left + u * h * (s_left + u * (3 * line - 2 * s_left - s_right + u * (s_left + s_right - 2 * line)))
    slopes = s_left + u * (2 * (3 * line - 2 * s_left - s_right) + 3 * u * (s_left + s_right - 2 * line))
    some = count > 0
    return torch.where(some, torch.where(mask, x, filled), 0.0).mT, torch.where(some, slopes, 0.0).mT


def _natural_slopes(length: Tensor, rise: Tensor, between: Tensor) -> Tensor:
    """Slopes at the knots, (..., C, T), from lengths and rises of the intervals, (..., C, T - 1).

    between: whether the interval is one of two knots.

    The second derivative is continuous, and 0 at the ends: a tridiagonal system.
    """
    inverse = torch.where(between, 1.0 / length, 0.0)
    pull = 3.0 * rise * inverse.square()
    pad = torch.nn.functional.pad
    diagonal = 2.0 * (pad(inverse, (0, 1)) + pad(inverse, (1, 0)))
    diagonal = torch.where(diagonal == 0, 1.0, diagonal)  # rows that are no knots
    return solve_tridiagonal(
        pad(inverse, (1, 0)), diagonal, pad(inverse, (0, 1)), pad(pull, (0, 1)) + pad(pull, (1, 0))
    )
