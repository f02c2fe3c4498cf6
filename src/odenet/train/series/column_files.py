"""Files of columns, .csv and .parquet, as a dict of lists: texts stay texts, what is missing is None."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..flows.tables import MISSING, delimiter, optional, text_rows
from ..user_error import UserError, first_line

Columns = dict[str, list[Any]]


def read_columns(path: Path) -> Columns:
    """The columns of a file by their names; all fields of a .csv are texts.

    Raises UserError where it is not there, has another suffix, or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet"):
        raise UserError(f"{path} is of no known form: give a table .csv or .parquet")
    if not path.is_file():
        raise UserError(f"{path} is not there: give a table .csv or .parquet")
    columns = _parquet(path) if suffix == ".parquet" else _text(path)
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{path} has no rows: give a line of names, and one for each observation")
    return columns


def _text(path: Path) -> Columns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (stripped for line in file if (stripped := line.strip(" \r\n")))
            first = next(lines, "")
            names, *rows = text_rows(path, delimiter(first), first, lines) if first else [[]]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.object[error.start]:#x}): save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): save it as a text with commas") from None
    names = [name.strip() for name in names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice: rename one of them")
    return {name: [_field(row[i]) for row in rows] for i, name in enumerate(names)}


def _field(text: str) -> str | None:
    text = text.strip()
    return None if text.lower() in MISSING else text


def _parquet(path: Path) -> Columns:
    parquet, arrow = optional("pyarrow.parquet", f"{path}: Parquet"), optional("pyarrow", f"{path}: Parquet")
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): is it a Parquet file?") from None
    return {name: table.column(i).to_pylist() for i, name in enumerate(table.column_names)}


def numbers(path: Path, name: str, column: list[Any]) -> list[float]:
    """A column as floats, NaN where it is missing. Dates and texts are refused, with the cure."""
    out: list[float] = []
    for row, entry in enumerate(column, 1):
        try:
            out.append(float("nan") if entry is None else float(entry))
        except (TypeError, ValueError):
            dated = hasattr(entry, "year") or str(entry).count("-") == 2 or ":" in str(entry) or "/" in str(entry)
            cure = "dates are not taken: give numbers, such as hours since the first"
            if not dated:
                cure = "give numbers, or name the columns of values by --channels, or by --channel and --value"
            raise UserError(f"{path}: row {row} of column {name!r} is {str(entry)[:40]!r}: {cure}") from None
    return out
