"""Tables that are written: .csv, .npy and .parquet, each whole or not there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..files import write
from ..user_error import UserError
from .tables import optional

_SUFFIXES = (".csv", ".npy", ".parquet")


def check_suffix(path: Path) -> None:
    """Refuse a file that `write_table` does not know, or cannot write here."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"--out {path}: unknown suffix {path.suffix!r}. Known: {', '.join(_SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        optional("pyarrow", f"--out {path}")


def write_table(path: Path, columns: Sequence[str], values: Tensor) -> Path:
    """Write values (N, D), float64, by the suffix of the path; an .npy has no names of columns."""
    check_suffix(path)
    suffix, array = path.suffix.lower(), values.numpy()
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, array)
    elif suffix == ".parquet":
        arrow, parquet = optional("pyarrow", f"{path}"), optional("pyarrow.parquet", f"{path}")
        parquet.write_table(arrow.table(list(array.T), names=list(columns)), buffer)
    else:
        import csv

        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        # a lattice of 0.1 gives 0.30000000000000004
        writer.writerows([f"{value:.10g}" for value in row] for row in array.tolist())
        buffer.write(text.getvalue().encode())
    return write(path, buffer.getvalue())
