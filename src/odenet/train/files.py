"""Files that are whole or not there, and the lock of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

_PARTIAL = ".partial"


def write(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place, down to the disk, and rename it: a reader finds the old one or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == "posix":
            _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): free space or make the folder writable"
        ) from None
    finally:
        with suppress(OSError):  # what kept the file from being written may keep it from being removed
            partial.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot; a rename is then as safe as they make it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be; the system drops the lock with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--out {folder}: another run is at work in this folder; wait for its end, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror or error}): choose another --out") from None
    try:
        for leftover in folder.rglob(f"*{_PARTIAL}"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
