"""Columns of tables: dicts of columns, DataFrames of pandas and polars, tables of pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.validate import describe
from .sample_lists import check_exact

Column = list[Any] | Tensor


def column_names(table: Any) -> list[Any]:
    names = getattr(table, "column_names", None)  # pyarrow
    return list(names if names is not None else getattr(table, "columns", table))


def is_table(table: Any) -> bool:
    return isinstance(table, dict) or hasattr(table, "columns") or hasattr(table, "column_names")


def columns(table: Any, names: Sequence[Any]) -> list[Column]:
    """Columns of a table, of the same length."""
    if not is_table(table) or not hasattr(table, "__getitem__"):
        raise TypeError(f"table must be a dict of columns, or a DataFrame of pandas or polars; got {describe(table)}")
    known = column_names(table)
    if absent := [name for name in names if name not in known]:
        raise KeyError(f"table has no column {absent[0]!r}; it has {', '.join(map(str, known))}")
    found = [_column(name, table[name]) for name in names]
    lengths = {name: len(column) for name, column in zip(names, found, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of table must have the same length; they have {describe(lengths)}")
    return found


def _column(name: Any, column: Any) -> Column:
    """A tensor of a column of numbers, a list of Python objects of any other."""
    if not isinstance(column, Tensor):
        array = column.to_numpy() if hasattr(column, "to_numpy") else column
        kind = getattr(getattr(array, "dtype", None), "kind", "")
        if kind in ("M", "m"):  # dates; NumPy would give those in nanoseconds as numbers
            return [None if entry == "NaT" else entry for entry in array.astype(str).tolist()]
        if kind not in ("i", "f"):
            for convert in ("to_pylist", "to_list", "tolist"):  # pyarrow, pandas and polars, NumPy
                if hasattr(column, convert):
                    return list(getattr(column, convert)())
            return list(column)
        column = torch.tensor(array.astype("int64" if kind == "i" else "float64"))
    if column.ndim != 1:
        raise ValueError(f"column {name!r} must be one-dimensional; it has shape {tuple(column.shape)}")
    return column.detach().cpu()


def numbered(name: Any, column: Column) -> tuple[Tensor, list[Any]]:
    """A number for each entry, and the entries by number: in the order in which they first come."""
    known: dict[Any, int] = {}
    entries = column.tolist() if isinstance(column, Tensor) else column
    if any(map(_is_missing, entries)):
        row = next(i for i, entry in enumerate(entries) if _is_missing(entry))
        raise ValueError(f"column {name!r} must have a name in each row; it has {describe(entries[row])} in row {row}")
    try:
        found = [known.setdefault(entry, len(known)) for entry in entries]
    except TypeError as error:
        raise TypeError(f"column {name!r} must have names, as texts or whole numbers: {error}") from None
    return torch.tensor(found, dtype=torch.int64), list(known)


def number_column(name: Any, column: Column, dtype: torch.dtype) -> Tensor:
    """The numbers of a column, NaN where one is missing."""
    if isinstance(column, Tensor):
        if column.is_complex():
            raise TypeError(f"column {name!r} must have real numbers; it has complex ones")
        return column.to(dtype)
    try:
        return torch.tensor([torch.nan if _is_missing(entry) else _number(entry) for entry in column], dtype=dtype)
    except (TypeError, ValueError, OverflowError):
        bad = next(entry for entry in column if not _is_missing(entry) and not _is_number(entry))
        raise TypeError(
            f"column {name!r} must have numbers; it has {describe(bad)}: for dates give hours since the first, for "
            "texts a number each"
        ) from None


def time_column(name: Any, column: Column) -> Tensor:
    """Times in float64, which are all there."""
    check_exact(f"column {name!r}", column if isinstance(column, Tensor) else [v for v in column if type(v) is int])
    found = number_column(name, column, torch.float64)
    finite = torch.isfinite(found)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"column {name!r} must have a finite time in each row; it has {float(found[row])} in row {row}"
        )
    return found


def _number(entry: Any) -> float:
    if isinstance(entry, str | bytes):  # float("1") is a number, but a column of texts is a mistake
        raise TypeError
    return float(entry)


def _is_number(entry: Any) -> bool:
    try:
        _number(entry)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_missing(entry: Any) -> bool:
    """None, NaN, or pandas' NA, which is neither equal to itself nor unequal."""
    return (
        entry is None or type(entry).__name__ in ("NAType", "NaTType") or (isinstance(entry, float) and entry != entry)
    )


def unique_names(argument: str, names: Iterable[Any]) -> list[Any]:
    """A list of different names."""
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a list of names; got {describe(names)}: give [{names!r}]")
    found = list(names)
    if not found:
        raise ValueError(f"{argument} must be a list of at least one name; got {describe(found)}")
    if twice := [name for name in found if found.count(name) > 1]:
        raise ValueError(f"{argument} must be different names; {twice[0]!r} stands there twice")
    return found
