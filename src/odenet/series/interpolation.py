"""From series to control paths: linear, rectilinear, cubic Hermite by backward differences, natural cubic.

The channels of a path are the time, the C channels of the series and, with counts=True, how many values of each channel
have been observed so far. Behind the last row of a sample its path is constant, so that padding changes nothing. Every
path is made of O(T) work, in O(1) operations on tensors (natural: O(log T)), and differentiable in values and times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .control_path import ControlPath
from .cubic import backward_difference_slopes, natural_spline
from .filling import forward_fill, linear_fill
from .series import Series, checked_series


def linear(series: Series, counts: bool = False, online: bool = False) -> ControlPath:
    """Straight lines between rows. Its derivative jumps at the knots, which are numbered by the rows.

    online: a missing value is the last one before it, in place of one between it and the next; 0 before the first.
    """
    series = _prepared(series)
    x = _channels(series, _filled(series, online), counts)
    return _path(series, _numbers(x, x.shape[1]), [x[:, :-1], x.diff(dim=1)], smooth=False)


def rectilinear(series: Series, counts: bool = False) -> ControlPath:
    """First the time runs to the next row, then the values do: X(s) depends on nothing later than its own time.

    Row k is at the knot s = 2 k. A missing value is the last one before it, 0 before the first.
    """
    series = _prepared(series)
    x = _channels(series, _filled(series, online=True), counts)
    corner = torch.cat([x[:, 1:, :1], x[:, :-1, 1:]], -1)
    x = torch.cat([torch.stack([x[:, :-1], corner], 2).flatten(1, 2), x[:, -1:]], 1)
    return _path(series, _numbers(x, x.shape[1]), [x[:, :-1], x.diff(dim=1)], smooth=False)


def hermite(series: Series, counts: bool = False, online: bool = False) -> ControlPath:
    """Cubic functions of time whose slope at a row is that of the line up to it: up to a row without a look ahead.

    Only the first slope is that of the line behind it. online: as `linear`. Morrill et al. 2021, "Neural controlled
    differential equations for online prediction tasks".
    """
    series = _prepared(series)
    x = _channels(series, _filled(series, online), counts)
    return _cubic(series, x, backward_difference_slopes(_gaps(series), x))


def natural(series: Series, counts: bool = False) -> ControlPath:
    """The natural cubic spline in time through what is observed: twice differentiable in time.

    Every piece depends on all rows. Rows before a channel's first value are knots too, with this value, and rows after
    its last one with that; a channel without any is 0.
    """
    series = _prepared(series)
    inside = series.rows[..., None]
    observed = series.mask if not counts else torch.cat([series.mask, inside.expand(series.mask.shape)], -1)
    own = _channels(series, series.x, counts)
    values, slopes = natural_spline(series.t, own, torch.cat([inside, observed], -1), series.rows)
    values = torch.where(series.length[:, None, None] > 0, values, own)  # without rows it has a time too
    return _cubic(series, values, slopes)


def _prepared(series: Series) -> Series:
    """A series with two columns at least, as a path needs an interval: that of a single row is constant."""
    return checked_series(series).padded(2)


def _filled(series: Series, online: bool) -> Tensor:
    if online:
        return forward_fill(series.x, series.mask)
    return linear_fill(series.t, series.x, series.mask)


def _channels(series: Series, x: Tensor, counts: bool) -> Tensor:
    """The values of all channels of the path at the rows, (B, T, .)."""
    counted = [series.mask.cumsum(1).to(x)] if counts else []
    return torch.cat([series.t[..., None], x, *counted], -1)


def _gaps(series: Series) -> Tensor:
    """Times from row to row, (B, T - 1); 1 in padding."""
    return torch.where(series.rows[:, 1:], series.t.diff(dim=1), 1.0)


def _cubic(series: Series, x: Tensor, slopes: Tensor) -> ControlPath:
    """The path with these values and slopes in time at the rows.

    Between rows time is linear in s, so dX/ds jumps with the length of the gaps, though dX/dt does not.
    """
    gaps = _gaps(series)
    rise, left, right = x.diff(dim=1), slopes[:, :-1] * gaps[..., None], slopes[:, 1:] * gaps[..., None]
    coefficients = [x[:, :-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise]
    return _path(series, _numbers(x, x.shape[1]), coefficients, smooth=_are_equal(gaps.detach(), series.rows[:, 1:]))


def _are_equal(gaps: Tensor, inside: Tensor) -> bool:
    """Whether the gaps of each sample are one number, to rounding."""
    shortest = torch.where(inside, gaps, torch.inf).amin(1)
    longest = torch.where(inside, gaps, 0.0).amax(1)
    return bool((longest <= (1 + 1e3 * torch.finfo(gaps.dtype).eps) * shortest).all())


def _path(series: Series, knots: Tensor, coefficients: list[Tensor], smooth: bool) -> ControlPath:
    """coefficients: of each power, (B, K - 1, C). Those of padding are set to a constant path."""
    rows = series.t.shape[1]
    step = (len(knots) - 1) // (rows - 1)  # knots from row to row
    number = torch.arange(len(knots), device=knots.device)
    last = step * (series.length - 1).clamp(min=0)
    ended = (number[:-1] >= last[:, None])[..., None]
    value = coefficients[0]
    end = last.minimum(number[-2])[:, None, None].expand(-1, 1, value.shape[-1])
    pieces = torch.stack(
        [
            torch.where(ended, value.gather(1, end), value),
            *(torch.where(ended, 0.0, coefficient) for coefficient in coefficients[1:]),
        ]
    )
    times = series.t.gather(1, ((number + step - 1) // step).expand(len(series), -1))
    return ControlPath(knots, pieces.permute(2, 0, 1, 3).contiguous(), smooth, times, knots[::step], knots[last])


def _numbers(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def extension(width: int, t0: Tensor, gap: Tensor, count: int) -> ControlPath:
    """Straight paths of one piece from times t0, (N,), on which time rises by gap (N,) as s does by 1, up to `count`.

    width: number of channels, of which nothing else changes.
    """
    rise = torch.cat([gap[:, None], gap.new_zeros(len(gap), width - 1)], -1)
    start = torch.cat([t0[:, None], torch.zeros_like(rise[:, 1:])], -1)
    ends = torch.tensor([0, count], dtype=t0.dtype, device=t0.device)
    return ControlPath(ends, torch.stack([start, rise])[None], False, torch.stack([t0, t0 + count * gap], 1), ends)
