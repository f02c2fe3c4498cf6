"""Files that are whole or not there: written beside, synced, then renamed into place."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from . import lock
from .interrupt import held
from .problems import UserError

_PARTIAL = ".odenet.partial"
# What a file system answers that cannot sync a folder; its renames are then as safe as it makes them.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write(path: Path, content: str | bytes, then: str = "or choose --out") -> None:
    """Write a file whole or not at all. Raises UserError where the system refuses; `then` ends its message."""
    try:
        with held():  # a Ctrl-C waits for the rename, a matter of milliseconds
            lock.check(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(stage(path, content), path)
    except OSError as error:
        lock.check(path)  # a folder that is gone is told as that
        raise UserError(f"{path} could not be written ({error.strerror or error}): {cure(error)} {then}") from None


def cure(error: Exception) -> str:
    """What the user can do about it."""
    return "free space" if getattr(error, "errno", None) in _FULL else "make the folder writable"


def stage(path: Path, content: str | bytes) -> Path:
    """Write the content beside `path`, down to the disk; gives the file to be renamed. Leaves none if that fails."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        _put(partial, content.encode() if isinstance(content, str) else content)
    except BaseException:
        remove(partial)
        raise
    return partial


def _put(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)  # without it a crash of the machine may leave the name on an empty file
    finally:
        os.close(descriptor)


def replace(partial: Path, path: Path) -> None:
    """Rename, and have the folder on the disk too. Removes `partial` if it cannot be renamed."""
    try:
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove(path: Path) -> None:
    """Remove a file if the system lets us."""
    with suppress(OSError):  # what kept the file from being written may keep it from being removed
        path.unlink(missing_ok=True)


def clean(*folders: Path) -> None:
    """Remove the unfinished files that a killed run left in these folders."""
    for folder in folders:
        for leftover in folder.glob("*" + _PARTIAL):
            remove(leftover)
