"""Series from tables: long ones, a row for each value, and wide ones, a column for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .assembly import Duplicates, assemble
from .sample_lists import checked_dtype, numbers
from .series import Series
from .table_columns import column_names, columns, is_table, number_column, numbered, time_column, unique_names


def from_long(
    table: Any,
    id: str = "id",
    time: str = "time",
    channel: str = "channel",
    value: str = "value",
    channels: Sequence[Any] | None = None,
    static: Any = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from a table with a row for each value.

    table: a dict of columns, or a DataFrame of pandas or polars, or a table of pyarrow. id, time, channel, value: names
    of its columns. A value that is missing, as NaN or None, makes a row of the sample without it. channels: those to
    take, in this order; by default all, sorted. static: a table with one row for each sample and the same column `id`,
    whose other columns are numbers; or (B, S) in the order of the samples. Samples stand in the order in which the
    table first names them, and are named in `ids`. duplicates, dtype: as `from_lists`.

    Raises KeyError for a column that is not there, TypeError for dates and texts where numbers are asked for,
    ValueError for names that are missing and as `from_lists`.
    """
    dtype = checked_dtype(dtype)
    of_id, of_time, of_channel, of_value = columns(table, (id, time, channel, value))
    sample, ids = numbered(id, of_id)
    found, names = numbered(channel, of_channel)
    wanted = _sorted(names) if channels is None else unique_names("channels", channels)
    if absent := [name for name in wanted if name not in names]:
        raise ValueError(f"table has no channel {absent[0]!r}; it has {', '.join(map(str, _sorted(names)))}")
    place = {name: i for i, name in enumerate(wanted)}
    number = torch.tensor([place.get(name, -1) for name in names], dtype=torch.int64)[found]
    kept = number >= 0
    times, values = time_column(time, of_time), number_column(value, of_value, dtype)
    return assemble(
        sample[kept], times[kept], number[kept], values[kept], len(ids), len(wanted), duplicates,
        static=_static(static, id, ids, dtype), channels=[str(name) for name in wanted], ids=ids,
    )  # fmt: skip


def from_wide(
    table: Any,
    id: str = "id",
    time: str = "time",
    values: Sequence[Any] | None = None,
    static: Any = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from a table with a row for each time of a sample and a column for each channel; NaN is a missing value.

    values: columns of the channels, by default all but `id` and `time`. The rest as `from_long`. Rows may stand in any
    order; those of one sample at one time are merged.
    """
    dtype = checked_dtype(dtype)
    if values is None and is_table(table):
        values = [name for name in column_names(table) if name not in (id, time)]
    names = unique_names("values", values or [])
    of_id, of_time, *rest = columns(table, (id, time, *names))
    sample, ids = numbered(id, of_id)
    value = torch.stack([number_column(name, c, dtype) for name, c in zip(names, rest, strict=True)], 1)
    rows, width = value.shape
    return assemble(
        sample.repeat_interleave(width), time_column(time, of_time).repeat_interleave(width),
        torch.arange(width).repeat(rows), value.reshape(-1), len(ids), width, duplicates,
        static=_static(static, id, ids, dtype), channels=[str(name) for name in names], ids=ids,
    )  # fmt: skip


def _sorted(names: list[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:  # texts and numbers
        return sorted(names, key=str)


def _static(table: Any, id: str, ids: list[Any], dtype: torch.dtype) -> Tensor | None:
    """Static features in the order of the samples."""
    if table is None:
        return None
    if isinstance(table, Tensor) or not is_table(table):
        return numbers("static", table, dtype)
    names = [name for name in column_names(table) if name != id]
    of_id, *features = columns(table, (id, *unique_names("static", names)))
    number, known = numbered(id, of_id)
    if len(known) != len(number):
        raise ValueError(f"static must have one row for each {id!r}; it has {len(number)} rows for {len(known)}")
    place = {name: i for i, name in enumerate(known)}
    if absent := [name for name in ids if name not in place]:
        kinds = (
            ""
            if not known or any(type(name) is type(absent[0]) for name in known)
            else (f"; there {id} is {type(known[0]).__name__}, and in table {type(absent[0]).__name__}")
        )
        raise ValueError(f"static has no row for {id} {absent[0]!r}, one of {len(absent)} without{kinds}")
    stacked = torch.stack([number_column(name, c, dtype) for name, c in zip(names, features, strict=True)], 1)
    return stacked[torch.tensor([place[name] for name in ids], dtype=torch.int64)]
