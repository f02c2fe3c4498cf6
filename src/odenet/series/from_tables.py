"""Series from lists and from tables: long ones, a row for each value, and wide ones, a column for each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape
from .assembly import Duplicates, assemble
from .series import Series

_TIME = torch.float64  # until rows are sorted and merged


def from_lists(
    ts: Sequence[Any],
    xs: Sequence[Any],
    static: Any = None,
    channels: Sequence[str] | None = None,
    ids: Sequence[Any] | None = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from one list of times, (T_i,), and one of values, (T_i, C), for each sample; in any order of times.

    Where channels have times of their own, both are lists of C: times (T_ic,) and values (T_ic,) of each channel. NaN
    is a missing value. static: (B, S). duplicates: what several values of one channel at one time mean: "error",
    "mean", "first" or "last". dtype: by default PyTorch's default.

    Raises ValueError where numbers of times and values differ, for times that are not finite, and for duplicates.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if len(ts) != len(xs):
        raise ValueError(f"ts and xs must have one entry for each sample; they have {len(ts)} and {len(xs)}")
    width: int | None = None
    parts: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for i, (t, x) in enumerate(zip(ts, xs, strict=True)):
        if _is_nested(t):
            times, values = [_vector(f"ts[{i}]", c, _TIME) for c in t], [_vector(f"xs[{i}]", c, dtype) for c in x]
            if [len(c) for c in times] != [len(c) for c in values]:
                raise ValueError(
                    f"the channels of sample {i} have {[len(c) for c in times]} times and "
                    f"{[len(c) for c in values]} values"
                )
            count = len(times)
            channel = torch.cat([torch.full((len(c),), k) for k, c in enumerate(times)])
            time, value = torch.cat(times), torch.cat(values)
        else:
            time = _vector(f"ts[{i}]", t, _TIME)
            value = _tensor(f"xs[{i}]", x, dtype)
            value = value[:, None] if value.ndim == 1 else value
            if not len(time) and not value.numel():  # an empty sample says nothing about the channels
                continue
            if value.ndim != 2 or len(value) != len(time):
                raise ValueError(
                    f"xs[{i}] must be ({len(time)}, channels), a row for each time of ts[{i}]; got "
                    f"{describe_shape(value)}"
                )
            count = value.shape[1]
            channel = torch.arange(count).repeat(len(time))
            time, value = time.repeat_interleave(count), value.reshape(-1)
        if width not in (None, count):
            raise ValueError(
                f"all samples must have the same channels: xs[{i}] has {count}, and those before it {width}"
            )
        width = count
        parts.append((i, time, channel, value))
    if not parts:
        none = torch.zeros(0)
        parts = [(0, none.double(), none.long(), none.to(dtype))]
    sample = torch.cat([torch.full((len(time),), i) for i, time, _, _ in parts])
    time, channel, value = (
        torch.cat([p[1] for p in parts]),
        torch.cat([p[2] for p in parts]),
        torch.cat([p[3] for p in parts]),
    )
    width = len(channels) if width is None and channels is not None else width or 0
    return assemble(
        sample,
        time,
        channel,
        value,
        len(ts),
        width,
        duplicates,
        static=_static(static, dtype),
        channels=channels,
        ids=ids,
    )


def from_long(
    table: Any,
    id: str = "id",
    time: str = "time",
    channel: str = "channel",
    value: str = "value",
    channels: Sequence[str] | None = None,
    static: Any = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from a table with a row for each value.

    table: a dict of columns, or a DataFrame of pandas or polars, or a table of pyarrow. id, time, channel, value: names
    of its columns. channels: those to take, in this order; by default all, in the order of the alphabet. static: a
    table with one row for each sample and the same column `id`, whose other columns are numbers. Samples stand in the
    order in which the table first names them. duplicates, dtype: as `from_lists`.

    Raises KeyError for a column that is not there, TypeError for dates and texts where numbers are asked for.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    columns = [_column(table, name) for name in (id, time, channel, value)]
    lengths = {name: len(c) for name, c in zip((id, time, channel, value), columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of table must have the same length; they have {lengths}")
    sample, ids = _numbered(columns[0])
    found, names = _numbered(columns[2])
    wanted = sorted(names, key=str) if channels is None else list(channels)
    if absent := [name for name in wanted if name not in names]:
        raise ValueError(f"table has no channel {absent[0]!r}; it has {describe(sorted(names, key=str))}")
    number = torch.tensor([wanted.index(name) if name in wanted else -1 for name in names])
    times, values = _numbers(time, columns[1], _TIME), _numbers(value, columns[3], dtype)
    kept = number[found] >= 0 if len(names) else torch.zeros(0, dtype=torch.bool)
    return assemble(
        sample[kept], times[kept], number[found[kept]], values[kept], len(ids), len(wanted), duplicates,
        static=_static_table(static, id, ids, dtype), channels=[str(name) for name in wanted], ids=ids,
    )  # fmt: skip


def from_wide(
    table: Any,
    id: str = "id",
    time: str = "time",
    values: Sequence[str] | None = None,
    static: Any = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from a table with a row for each time of a sample and a column for each channel; NaN is a missing value.

    values: columns of the channels, by default all but `id` and `time`. The rest as `from_long`. Rows may stand in any
    order; those of one sample at one time are merged.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    names = [name for name in _column_names(table) if name not in (id, time)] if values is None else list(values)
    sample, ids = _numbered(_column(table, id))
    times = _numbers(time, _column(table, time), _TIME)
    value = torch.stack([_numbers(name, _column(table, name), dtype) for name in names], 1)
    rows, width = value.shape
    return assemble(
        sample.repeat_interleave(width), times.repeat_interleave(width), torch.arange(width).repeat(rows),
        value.reshape(-1),
        len(ids), width, duplicates, static=_static_table(static, id, ids, dtype), channels=names, ids=ids,
    )  # fmt: skip


def _is_nested(t: Any) -> bool:
    """Whether a sample's times are lists of times of its channels."""
    if isinstance(t, Tensor) or not isinstance(t, (list, tuple)) or not t:
        return False
    return all(isinstance(c, (list, tuple)) or getattr(c, "ndim", 0) == 1 for c in t)


def _tensor(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    try:
        return value.detach().to(dtype) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers: {error}; got {describe(value)}") from None


def _vector(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    out = _tensor(name, value, dtype)
    if out.ndim != 1:
        raise ValueError(f"{name} must be a list of times, one-dimensional; it has shape {tuple(out.shape)}")
    return out


def _static(value: Any, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else _tensor("static", value, dtype)


def _column_names(table: Any) -> list[str]:
    names = getattr(table, "column_names", None)  # pyarrow
    return list(names if names is not None else getattr(table, "columns", table))


def _column(table: Any, name: str) -> list[Any] | Tensor:
    """A column as a tensor, or as a list of Python objects."""
    if not hasattr(table, "__getitem__"):
        raise TypeError(f"table must be a dict of columns or a DataFrame; got {describe(table)}")
    if name not in _column_names(table):
        raise KeyError(f"table has no column {name!r}; it has {', '.join(map(str, _column_names(table)))}")
    column = table[name]
    if isinstance(column, Tensor):
        return column
    for convert in ("to_pylist", "to_list", "tolist"):  # pyarrow, pandas and polars, NumPy
        if hasattr(column, convert):
            return list(getattr(column, convert)())
    return list(column)


def _numbered(column: Iterable[Any]) -> tuple[Tensor, list[Any]]:
    """A number for each entry, and the entries by number: in the order in which they first come."""
    known: dict[Any, int] = {}
    entries = column.tolist() if isinstance(column, Tensor) else column
    numbers = [known.setdefault(entry, len(known)) for entry in entries]
    return torch.tensor(numbers, dtype=torch.int64), list(known)


def _numbers(name: str, column: list[Any] | Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(column, Tensor):
        return column.detach().to(dtype)
    try:
        return torch.tensor([torch.nan if entry is None else float(entry) for entry in column], dtype=dtype)
    except (TypeError, ValueError):
        bad = next(entry for entry in column if not _is_number(entry))
        hint = ": for dates give numbers, as hours since the first" if hasattr(bad, "year") else ""
        raise TypeError(f"column {name!r} must have numbers; it has {describe(bad)}{hint}") from None


def _is_number(entry: Any) -> bool:
    try:
        float(entry)
    except (TypeError, ValueError):
        return entry is None
    return True


def _static_table(table: Any, id: str, ids: list[Any], dtype: torch.dtype) -> Tensor | None:
    """Static features in the order of the samples."""
    if table is None or isinstance(table, Tensor):
        return table
    number, known = _numbered(_column(table, id))
    if len(known) != len(number):
        raise ValueError(f"static must have one row for each {id!r}; it has {len(number)} rows for {len(known)}")
    if absent := [name for name in ids if name not in set(known)]:
        raise ValueError(f"static has no row for {id} {absent[0]!r}, one of {len(absent)}")
    names = [name for name in _column_names(table) if name != id]
    features = torch.stack([_numbers(name, _column(table, name), dtype) for name in names], 1)
    place = {name: i for i, name in enumerate(known)}
    return features[torch.tensor([place[name] for name in ids], dtype=torch.int64)]
