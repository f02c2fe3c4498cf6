"""From series to control paths: linear, rectilinear, cubic Hermite by backward differences, natural cubic.

The channels of a path are the time, the C channels of the series and, with counts=True, how many values of each channel
have been observed so far. Every path is made of O(T) tensor operations' worth of work and is differentiable in the
values and times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .control_path import ControlPath
from .cubic import backward_difference_slopes, natural_spline
from .filling import forward_fill, linear_fill
from .series import Series


def linear(series: Series, counts: bool = False, online: bool = False) -> ControlPath:
    """Straight lines between rows. Its derivative jumps at the knots, which are numbered by the rows.

    online: a missing value is the last one before it, in place of one between it and the next.
    """
    x, time = _channels(series, counts, online)
    knots = _numbers(x, len(x[0]))
    return _path(knots, torch.stack([x[:, :-1], x.diff(dim=1)], 1), False, time, knots)


def rectilinear(series: Series, counts: bool = False) -> ControlPath:
    """First the time runs to the next row, then the values do: X(s) depends on nothing later than its own time.

    Row k is at the knot s = 2 k. A missing value is the last one before it.
    """
    x, time = _channels(series, counts, online=True)
    corner = torch.cat([x[:, 1:, :1], x[:, :-1, 1:]], -1)
    x = torch.cat([torch.stack([x[:, :-1], corner], 2).flatten(1, 2), x[:, -1:]], 1)
    times = torch.cat([time[:, :1], time[:, 1:].repeat_interleave(2, 1)], 1)
    pieces = torch.stack([x[:, :-1], x.diff(dim=1)], 1)
    knots = _numbers(x, x.shape[1])
    return _path(knots, pieces, False, times, knots[::2])


def hermite(series: Series, counts: bool = False, online: bool = False) -> ControlPath:
    """Cubic pieces whose slope at a row is that of the line up to it: smooth, and at the rows without a look ahead.

    online: as `linear`. Morrill et al. 2021 recommend it where a whole series is there.
    """
    x, time = _channels(series, counts, online)
    knots = _numbers(x, x.shape[1])
    return _cubic(knots, x, backward_difference_slopes(knots, x), time)


def natural(series: Series, counts: bool = False) -> ControlPath:
    """The natural cubic spline: twice differentiable. Every piece depends on all rows."""
    series = series.padded(2)  # a path needs an interval: that of a single row has no length in time and values
    time = series.t
    own = torch.cat([time[..., None], series.x], -1)
    mask = torch.cat([series.rows[..., None], series.mask & series.rows[..., None]], -1)
    if counts:
        own = torch.cat([own, _counts(series).to(own)], -1)
        mask = torch.cat([mask, series.rows[..., None].expand(series.mask.shape)], -1)
    knots = _numbers(own, own.shape[1])
    values, slopes = natural_spline(knots.expand(len(own), -1), own, mask)
    return _cubic(knots, values, slopes, time)


def _cubic(knots: Tensor, x: Tensor, slopes: Tensor, time: Tensor) -> ControlPath:
    """knots one apart."""
    rise, left, right = x.diff(dim=1), slopes[:, :-1], slopes[:, 1:]
    pieces = torch.stack([x[:, :-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], 1)
    return _path(knots, pieces, True, time, knots)


def _path(knots: Tensor, pieces: Tensor, smooth: bool, times: Tensor, rows: Tensor) -> ControlPath:
    """pieces: (B, P + 1, K - 1, C)."""
    return ControlPath(knots, pieces.permute(2, 1, 0, 3).contiguous(), smooth, times, rows)


def _channels(series: Series, counts: bool, online: bool) -> tuple[Tensor, Tensor]:
    """The values of all channels of the path at the rows, (B, T, .), and times (B, T); constant behind the last row."""
    series = series.padded(2)
    time = series.t
    filled = forward_fill(series.x, series.mask) if online else linear_fill(time, series.x, series.mask)
    parts = [time[..., None], filled, *([_counts(series).to(filled)] if counts else [])]
    return torch.cat(parts, -1), time


def _counts(series: Series) -> Tensor:
    return series.mask.cumsum(1)


def _numbers(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def extension(width: int, t0: Tensor, t1: Tensor, slope: Tensor | None = None) -> ControlPath:
    """Paths of one piece, on which the time goes from t0 (N,) to t1 (N,) and nothing else changes.

    width: number of channels. slope: dX/ds with which they begin, (N, width), as that of `hermite` at a row; they end
    with the slope of the line.
    """
    rise = torch.cat([(t1 - t0)[:, None], t0.new_zeros(len(t0), width - 1)], -1)
    start = torch.cat([t0[:, None], torch.zeros_like(rise[:, 1:])], -1)
    parts = [start, rise] if slope is None else [start, slope, 2 * rise - 2 * slope, slope - rise]
    ends = torch.arange(2, dtype=t0.dtype, device=t0.device)
    return ControlPath(ends, torch.stack(parts)[None], slope is not None, torch.stack([t0, t1], 1), ends)
