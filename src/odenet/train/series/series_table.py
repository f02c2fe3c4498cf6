"""Series and labels from a user's table: long (id, time, channel, value) or wide (id, time, a column each channel)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...series import Series, from_long, from_wide
from ..user_error import UserError, first_line
from .column_files import Columns, numbers, read_columns


@dataclass(frozen=True)
class Layout:
    """Names of columns. channels, static: several, with commas between; an empty name: there is none.

    A table with both columns `channel` and `value` is long. channels: by default all other columns of a wide table, all
    channels of a long one. labels: a file with columns `id` and `label`, else `label` is a column of the table.
    duplicates: as of `odenet.series.from_lists`.
    """

    id: str = "id"
    time: str = "time"
    channel: str = "channel"
    value: str = "value"
    channels: str = ""
    static: str = ""
    label: str = ""
    labels: str = ""
    duplicates: str = "error"


class Labelled(NamedTuple):
    """Series, of which each has a label: a text of a class, a number, or None where it is not known."""

    series: Series
    labels: list[Any]


def read_series(path: Path, layout: Layout, dtype: torch.dtype = torch.float32, trained: bool = False) -> Labelled:
    """Series of a table, in the order in which their ids first come. Raises UserError with the cure.

    trained: the layout is that of a run, not of options that may be changed.
    """
    table = read_columns(path)
    own = bool(layout.label and not layout.labels)
    static, label = _names(layout.static), [layout.label] if own else []
    long = layout.channel in table and layout.value in table
    needed = [layout.id, layout.time, *static, *label, *([] if long else _names(layout.channels))]
    if trained and (absent := [name for name in needed if name not in table]):
        raise UserError(
            f"{path} has no column {absent[0]!r}; it has {', '.join(table)}: the run was trained on a table with "
            f"{', '.join(needed)}, or {layout.channel} and {layout.value} in place of channels"
        )
    for name in (layout.id, layout.time, *label):
        _column(path, table, name)
    taken = {layout.id, layout.time, *static, *label}
    channels = _names(layout.channels) or ([] if long else [name for name in table if name not in taken])
    if not long and not channels:
        raise UserError(f"{path} has no column of values beside {', '.join(map(repr, sorted(taken)))}: add one")
    if any(entry is None for entry in table[layout.id]):
        raise UserError(f"{path}: row {table[layout.id].index(None) + 1} has no {layout.id!r}: give each row one")
    if not long and not layout.channels:
        _check_changing(path, table, layout.id, channels)
    features = _static(path, table, layout.id, static)
    numeric = [layout.time, *([layout.value] if long else channels)]
    columns = table | {name: numbers(path, name, _column(path, table, name)) for name in numeric}
    names: dict[str, Any] = {"id": layout.id, "time": layout.time, "static": features, "duplicates": layout.duplicates}
    try:
        if long:
            names |= {"channel": layout.channel, "value": layout.value}
            series = from_long(columns, **names, channels=channels or None, dtype=dtype)
        else:
            series = from_wide(columns, **names, values=channels, dtype=dtype)
    except (KeyError, TypeError, ValueError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        message = message.replace(
            'give duplicates="mean", "first" or "last"', "leave one out, or train with --duplicates mean, first or last"
        )
        raise UserError(f"{path}: {first_line(ValueError(message))}") from None
    _check_names(path, series.channels or ())
    return Labelled(series, _labels(path, table, layout, series.ids or ()))


def layout_of(settings: Any) -> Layout:
    """The options that name columns."""
    return Layout(**{name: getattr(settings, name) for name in asdict(Layout())})


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _column(path: Path, table: Columns, name: str) -> list[Any]:
    if name not in table:
        option = {"id": "--id", "time": "--time"}.get(name, "the option that names it")
        raise UserError(f"{path} has no column {name!r}; it has {', '.join(table)}: change {option}")
    return table[name]


def _check_changing(path: Path, table: Columns, id: str, names: list[str]) -> None:
    """Refuse columns that were not asked for as channels and say something of a series, as a label or a weight does."""
    ids = table[id]
    same = [name for name in names if not _changes(ids, table[name])] if len(set(ids)) < len(ids) else []
    if same:
        verb = "changes" if len(same) == 1 else "change"
        others = ",".join(name for name in names if name not in same) or "NAMES"
        raise UserError(
            f"{path}: {', '.join(same)} never {verb} within a series, so they may be labels or static features rather "
            f"than channels: name the channels, as --channels {others}, and what else is known of a series by --static"
        )


def _changes(ids: list[Any], column: list[Any]) -> bool:
    """Whether a series has two entries; numbers count as numbers."""
    first: dict[Any, Any] = {}
    return any(
        entry is not None and entry != first.setdefault(key, entry) and not _equal(entry, first[key])
        for key, entry in zip(ids, column, strict=True)
    )


def _equal(one: Any, other: Any) -> bool:
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):  # texts or dates
        return False


def _check_names(path: Path, channels: Sequence[Any]) -> None:
    """Refuse names that the settings of a run, in which commas stand between them, could not say again."""
    for name in map(str, channels):
        if "," in name or not name.strip():
            raise UserError(
                f"{path}: channel {name!r} must have a name without commas: rename it, or choose others by --channels"
            )


def _by_id(path: Path, table: Columns, id: str, name: str) -> dict[Any, Any]:
    """The one entry of each id in a column; None where all are missing."""
    known: dict[Any, Any] = {}
    for key, entry in zip(table[id], _column(path, table, name), strict=True):
        before = known.setdefault(key, entry)
        if before is None:
            known[key] = entry
        elif entry is not None and entry != before:
            raise UserError(
                f"{path}: {id} {key!r} has two entries of {name!r}, {before!r} and {entry!r}, "
                "and may have one: what changes within a series is a channel"
            )
    return known


def _static(path: Path, table: Columns, id: str, names: list[str]) -> Columns | None:
    """A table with a row for each id."""
    if not names:
        return None
    by_name = {name: _by_id(path, table, id, name) for name in names}
    ids = list(dict.fromkeys(table[id]))
    columns = {name: numbers(path, name, [known[key] for key in ids]) for name, known in by_name.items()}
    for name, column in columns.items():
        for key, value in zip(ids, column, strict=True):
            if not math.isfinite(value):
                raise UserError(f"{path}: {id} {key!r} has no {name!r}: a static feature needs a number for each")
    return {id: ids, **columns}


def _labels(path: Path, table: Columns, layout: Layout, ids: tuple[Any, ...]) -> list[Any]:
    if not layout.labels:
        known = _by_id(path, table, layout.id, layout.label) if layout.label else {}
        return [known.get(key) for key in ids]
    file, name = Path(layout.labels), layout.label or "label"
    others = read_columns(file)
    if layout.id not in others:
        raise UserError(
            f"{file} has no column {layout.id!r}, as the table; it has {', '.join(others)}: rename that of ids"
        )
    known = {str(key): label for key, label in _by_id(file, others, layout.id, name).items()}
    return [known.get(str(key)) for key in ids]


def layout_from(layout: Mapping[str, Any], channels: Sequence[str]) -> Layout:
    """The layout of the file that a run was trained on, for others with the same channels, which need no labels."""
    return Layout(**{**layout, "channels": ",".join(channels), "label": "", "labels": ""})
