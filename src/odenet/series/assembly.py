"""Series from single observations: each is a sample's number, a time, a channel's number and a value."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .series import Series
from .series_checks import check_narrowed

Duplicates = Literal["error", "mean", "first", "last"]
DUPLICATES: tuple[Duplicates, ...] = ("error", "mean", "first", "last")


def assemble(
    sample: Tensor,
    time: Tensor,
    channel: Tensor,
    value: Tensor,
    size: int,
    width: int,
    duplicates: Duplicates,
    **rest: Any,
) -> Series:
    """Series of observations in any order, (N,) each, times in float64; those of one sample at one time make one row.

    A value of NaN makes a row without this value. duplicates: what two values of one channel of a sample at one time
    mean: an error, their mean, or that which comes first or last. rest: further fields of `Series`.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates must be one of {', '.join(map(repr, DUPLICATES))}; got {duplicates!r}")
    bad = ~torch.isfinite(time)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(f"times must be finite: sample {_name(rest, int(sample[i]))} has {float(time[i])}")
    infinite = torch.isinf(value)
    if bool(infinite.any()):
        i = int(infinite.nonzero()[0])
        raise ValueError(
            f"values must be finite, or NaN where missing: sample {_name(rest, int(sample[i]))} has {float(value[i])} "
            f"in channel {_channel(rest, int(channel[i]))} at the time {float(time[i])}"
        )
    order = time.argsort(stable=True)
    order = order[sample[order].argsort(stable=True)]  # by sample, then by time, then as given
    sample, time, channel, value = sample[order], time[order], channel[order], value[order]
    new_row = torch.ones_like(sample, dtype=torch.bool)
    new_row[1:] = (sample[1:] != sample[:-1]) | (time[1:] != time[:-1])
    row = new_row.cumsum(0) - 1  # of each observation, through all samples
    length = torch.bincount(sample[new_row], minlength=size)
    position = row - (length.cumsum(0) - length)[sample]
    rows = int(length.max()) if size else 0
    wide = time.new_full((size, rows), torch.nan)
    wide[sample, position] = time
    t = wide.to(value.dtype)
    check_narrowed(wide, t)
    real = ~torch.isnan(value)
    cell = (sample * rows + position)[real] * width + channel[real]
    flat = value.new_full((size * rows * width,), torch.nan)
    flat[cell] = _merged(
        cell, value[real], flat.numel(), duplicates, lambda i: _where(i, sample, time, channel, real, rest)
    )
    return Series(t, flat.view(size, rows, width), None, length, **rest)


def _merged(cell: Tensor, value: Tensor, cells: int, duplicates: Duplicates, where: Any) -> Tensor:
    """The value that each observation leaves in its cell."""
    count = torch.bincount(cell, minlength=cells)[cell]
    if bool((count == 1).all()):
        return value
    if duplicates == "error":
        raise ValueError(f'{where(int((count > 1).nonzero()[0]))}: give duplicates="mean", "first" or "last"')
    if duplicates == "mean":
        return (value.new_zeros(cells).index_add_(0, cell, value))[cell] / count
    number = torch.arange(len(cell), device=cell.device)
    start = torch.full((cells,), len(cell) if duplicates == "first" else -1, device=cell.device)
    chosen = start.scatter_reduce(0, cell, number, "amin" if duplicates == "first" else "amax")
    return value[chosen[cell]]


def _where(i: int, sample: Tensor, time: Tensor, channel: Tensor, real: Tensor, rest: dict[str, Any]) -> str:
    s, t, c = int(sample[real][i]), float(time[real][i]), int(channel[real][i])
    return f"sample {_name(rest, s)} has several values of channel {_channel(rest, c)} at the time {t}"


def _channel(rest: dict[str, Any], channel: int) -> Any:
    names = rest.get("channels")
    return repr(names[channel]) if names else channel


def _name(rest: dict[str, Any], sample: int) -> Any:
    ids = rest.get("ids")
    return repr(ids[sample]) if ids is not None else sample
