"""What is said of a series without a model: its last value, or its mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...series import Series
from ...series.filling import forward_fill

Baseline = Callable[[Series, Tensor, Tensor], Tensor]


def last_value(series: Series, ts: Tensor, default: Tensor) -> Tensor:
    """The last value of each channel up to ts (B, Q), (B, Q, C); before the first one `default` (C,)."""
    series = series.padded(1)
    filled = forward_fill(series.x, series.mask, default)
    times = torch.where(series.rows, series.t, torch.inf).contiguous()
    row = torch.searchsorted(times, ts.contiguous(), right=True) - 1
    index = row.clamp(min=0)[..., None].expand(*row.shape, filled.shape[-1])
    return torch.where(row[..., None] < 0, default, filled.gather(1, index))


def mean_value(series: Series, ts: Tensor, default: Tensor) -> Tensor:
    """The mean of each channel's values, at all ts; `default` (C,) where there are none."""
    count = series.mask.sum(1)
    mean = torch.where(count > 0, series.x.sum(1) / count.clamp(min=1), default)
    return mean[:, None].expand(-1, ts.shape[1], -1)


BASELINES: dict[str, Baseline] = {"last-value": last_value, "mean": mean_value}
