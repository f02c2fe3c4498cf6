"""Tables of real numbers from files: text (csv), .npy, .npz, .parquet.

Text is read by Python's csv module and arrays by NumPy, which comes with the extra `train`. Parquet takes pyarrow, of
the extra `tables`: it is one package without dependencies of its own, and who has Parquet files mostly has it already;
but it is 170 MB on the disk, so it is no part of `train`.
"""

from __future__ import annotations

import csv
import importlib
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..user_error import UserError, first_line

FEWEST_ROWS = 10
_TEXT = (".csv", ".tsv", ".txt", ".dat")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}  # in lower case
_DECIMAL_COMMA = re.compile(r"^\s*([-+]?\d*),(\d+(?:[eE][-+]?\d+)?)\s*$")


@dataclass(frozen=True)
class Table:
    """values: (N, D), float64, finite, no column constant. columns: their D names, each once."""

    values: Tensor
    columns: list[str]

    def of(self, path: Path, names: Sequence[str]) -> Tensor:
        """The columns of these names; in the order of the file where it has other names, and as many columns."""
        if set(names) <= set(self.columns):
            return self.values[:, [self.columns.index(name) for name in names]]
        if len(names) == len(self.columns) and (_unnamed(names) or _unnamed(self.columns)):
            return self.values
        if _unnamed(self.columns) or _unnamed(names):
            raise UserError(
                f"{path} has {len(self.columns)} columns, and the run was trained on {len(names)}: {', '.join(names)}"
            )
        absent = next(name for name in names if name not in self.columns)
        raise UserError(f"{path} has no column {absent!r}, one of {len(names)} that the run was trained on: add it")


def read_table(path: Path, array_name: str = "", to_train: bool = True) -> Table:
    """The columns of a file that are real numbers; a line on stderr names those that are left out.

    Text (.csv, .tsv, .txt, .dat): UTF-8; the delimiter is a semicolon, a tab, a vertical bar, a comma or spaces; with
    semicolons a decimal comma is read too. The first row is a header where it has a text above a number, or texts
    alone. Empty fields, NA, null, ? and the like are missing values. Arrays (.npy, .npz) are (N, D); `array_name`,
    or a path FILE.npz:NAME, chooses that of an .npz with several. Columns of texts, dates and truth values are
    left out, and so is an unnamed first column that counts the rows, as pandas writes it. to_train: False allows few
    rows and constant columns, of rows to score.

    Raises:
        UserError: the file is not there or cannot be read, has no numbers, fewer than FEWEST_ROWS rows, rows of several
            lengths, a name twice, a missing or infinite value, a constant column; an array is not real or not 2-d.
    """
    if not array_name and not path.exists() and ".npz:" in path.name:
        name, _, array_name = path.name.rpartition(":")
        path = path.with_name(name)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file .csv, .npy, .npz or .parquet")
    if not path.is_file():
        raise UserError(f"{path} is not there: give a file .csv, .npy, .npz or .parquet")
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        values, columns = _read_text(path)
    elif suffix in (".npy", ".npz"):
        values, columns = _read_array(path, array_name)
    elif suffix == ".parquet":
        values, columns = _read_parquet(path)
    else:
        raise UserError(f"{path} is of no known form: give {', '.join(_TEXT)}, .npy, .npz or .parquet")
    if values.shape[1] > 1 and columns[0] in ("", "__index_level_0__") and bool((np.diff(values[:, 0]) == 1).all()):
        print(f"odenet: {path}: the first column counts the rows and is left out", file=sys.stderr)
        values, columns = values[:, 1:], columns[1:]
    columns = [name or f"column {i}" for i, name in enumerate(columns, 1)]
    _check(path, values, columns, to_train)
    return Table(torch.from_numpy(np.ascontiguousarray(values)), columns)


def _unnamed(columns: Sequence[str]) -> bool:
    return list(columns) == [f"column {i}" for i in range(1, len(columns) + 1)]


def optional(name: str, needed_for: str) -> Any:
    """A module of the extra `tables`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{needed_for} needs {name.split(".")[0]}: pip install "torch-odenet[tables]"') from None


def _check(path: Path, values: Any, columns: Sequence[str], to_train: bool) -> None:
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise UserError(f"{path} has {len(columns)} columns, and the name {twice[0]!r} twice: rename one of them")
    if not len(values):
        raise UserError(f"{path} has no rows: give at least one")
    if to_train and len(values) < FEWEST_ROWS:
        raise UserError(f"{path} has {len(values)} rows: a density needs at least {FEWEST_ROWS}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        what = "missing" if np.isnan(values[row, column]) else "infinite"
        rest = f", and so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{path}: row {row + 1} of column {columns[column]!r} is {what}{rest}: leave out such rows, or the column"
        )
    for column, name in enumerate(columns if to_train else ()):
        if (values[:, column] == values[0, column]).all():
            raise UserError(
                f"{path}: column {name!r} is constant, {values[0, column]:g}, and has no density: leave it out"
            )


def _keep_numbers(path: Path, columns: Sequence[str], numeric: Sequence[bool]) -> list[int]:
    """Indices of the columns of numbers; says which are left out."""
    kept = [i for i, is_number in enumerate(numeric) if is_number]
    others = [name or f"column {i}" for i, (name, yes) in enumerate(zip(columns, numeric, strict=True), 1) if not yes]
    named = ", ".join(map(repr, others[:5])) + (", ..." if len(others) > 5 else "")
    if not kept:
        raise UserError(f"{path} has no column of numbers; not numbers: {named or 'none, it is empty'}")
    if others:
        print(f"odenet: {path}: left out, not numbers: {named}", file=sys.stderr)
    return kept


def delimiter(line: str) -> str:
    """The first of these in the first line. No number has a semicolon, tab or bar in it, so they come before commas."""
    return next((mark for mark in ";\t|," if mark in line), " ")


def _number(field: str) -> float | None:
    """A field as a float, NaN where it is missing, None where it is a text."""
    try:
        return float(field)
    except ValueError:
        return float("nan") if field.strip().lower() in MISSING else None


def _read_text(path: Path) -> tuple[Any, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (stripped for line in file if (stripped := line.strip(" \r\n")))
            first = next(lines, "")
            if not first:
                raise UserError(f"{path} is empty: give a table of numbers")
            return _parse(path, text_rows(path, delimiter(first), first, lines))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#x}): save it as a text in UTF-8"
        ) from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): save it as a text with commas") from None


def text_rows(path: Path, delimiter: str, first: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The fields of each row, all of the same number."""
    width = 0
    for number, row in enumerate(csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=True), 1):
        width = width or len(row)
        if len(row) != width:
            raise UserError(
                f"{path}: line {number} has {len(row)} fields, and line 1 has {width}: each row needs as many "
                "(empty lines are not counted)"
            )
        yield [_DECIMAL_COMMA.sub(r"\1.\2", field) for field in row] if delimiter == ";" else row


def _parse(path: Path, rows: Iterator[list[str]]) -> tuple[Any, list[str]]:
    """Values and names. A column is one of numbers if its first value is: with a header, the second row's."""
    head = list(islice(rows, 2))
    kinds = [[_number(field) is not None for field in row] for row in head]
    above_numbers = len(kinds) == 2 and any(below and not above for above, below in zip(*kinds, strict=True))
    has_header = not any(kinds[0]) or above_numbers
    columns = [f"column {i}" for i in range(1, len(head[0]) + 1)]
    if has_header:
        columns = [name.lstrip("# ").strip() for name in head[0]]
    kept = _keep_numbers(path, columns, kinds[-1] if has_header else kinds[0])
    flat = array("d")
    for index, row in enumerate(chain(head[has_header:], rows), 1):
        try:
            flat.extend([float(row[i]) for i in kept])
        except ValueError:
            flat.extend(_fields(path, index, [(columns[i], row[i]) for i in kept]))
    return np.array(flat).reshape(-1, len(kept)), [columns[i] for i in kept]


def _fields(path: Path, index: int, fields: Sequence[tuple[str, str]]) -> list[float]:
    """The numbers of a row in which one is missing or is a text."""
    values: list[float] = []
    for name, field in fields:
        value = _number(field)
        if value is None:
            raise UserError(
                f"{path}: row {index} of column {name!r} is {field[:40]!r}, in a column of numbers: "
                "mend it, or leave out the column"
            )
        values.append(value)
    return values


def _read_array(path: Path, array_name: str) -> tuple[Any, list[str]]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            found = loaded if isinstance(loaded, np.ndarray) else _array_of(path, loaded, array_name)
    except UserError:  # of _array_of
        raise
    except Exception as error:  # of NumPy, zipfile and zlib; the cure is the same
        why = "it is no file of NumPy, or has objects" if "pickle" in str(error) else first_line(error)
        raise UserError(f"{path} cannot be read ({why}): save it by numpy.save, without objects") from None
    if found.dtype.kind not in "fiu":
        raise UserError(f"{path} is of dtype {found.dtype}: real numbers are needed, floats or integers")
    if found.ndim != 2 or 0 in found.shape:
        cure = "; a single column is x.reshape(-1, 1)" if found.ndim == 1 else ""
        raise UserError(f"{path} is of shape {found.shape}: (rows, columns) is needed{cure}")
    return found.astype(np.float64), [f"column {i}" for i in range(1, found.shape[1] + 1)]


def _array_of(path: Path, archive: Any, array_name: str) -> Any:
    names = list(archive.files)
    if not names:
        raise UserError(f"{path} has no arrays: save one by numpy.savez")
    if array_name not in names and (array_name or len(names) != 1):
        asked = f"no array {array_name!r}" if array_name else f"{len(names)} arrays"
        raise UserError(f"{path} has {asked}: name one, as in {path.name}:{names[0]}, of {', '.join(names)}")
    return archive[array_name or names[0]]


def _read_parquet(path: Path) -> tuple[Any, list[str]]:
    parquet, arrow = optional("pyarrow.parquet", f"{path}: Parquet"), optional("pyarrow", f"{path}: Parquet")
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): is it a Parquet file?") from None
    types = arrow.types
    tests = (types.is_integer, types.is_floating, types.is_decimal)
    kept = _keep_numbers(path, table.column_names, [any(test(field.type) for test in tests) for field in table.schema])
    values = [table.column(i).cast(arrow.float64(), safe=False).to_numpy() for i in kept]
    return np.stack(values, 1), [table.column_names[i] for i in kept]
