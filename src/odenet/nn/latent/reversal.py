"""Series that run backwards in time."""

from __future__ import annotations

import torch

from ...series.series import Series


def reversed_rows(series: Series) -> Series:
    """The rows with a value in the opposite order, at -t; a row without any value says nothing and is left out."""
    keep = series.mask.any(-1)
    if bool(keep.all()):  # nothing to sort
        t, x, mask = -series.t.flip(1), series.x.flip(1), series.mask.flip(1)
        return Series(t, x, mask, series.length, series.static, series.channels, series.ids)
    length, rows = keep.sum(1), keep.shape[1]
    number = torch.arange(rows, device=keep.device)
    order = torch.where(keep, rows - 1 - number, rows + number).argsort(1)  # kept rows, the last one first
    wide = order[..., None].expand(series.x.shape)
    x, mask = series.x.gather(1, wide), series.mask.gather(1, wide)
    return Series(-series.t.gather(1, order), x, mask, length, series.static, series.channels, series.ids)
