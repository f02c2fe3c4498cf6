"""Files that are whole or not there, and the lock of a folder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .user_error import UserError


def write(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place, down to the disk, and rename it: a reader finds the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be written ({reason}): free space or make the folder writable") from None
    finally:
        with suppress(OSError):  # what kept the file from being written may keep it from being removed
            partial.unlink(missing_ok=True)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table; its columns are all names in the rows."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    return write(path, text.getvalue())


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder, made if need be; the system drops the lock with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            for leftover in folder.rglob("*.partial"):  # of a run that was killed
                leftover.unlink(missing_ok=True)
            yield
    except Timeout:
        raise UserError(f"--out {folder}: another run is at work there; wait for its end or choose another") from None
