"""One run in a folder at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .problems import UserError

NAME = ".lock"
_held: dict[Path, tuple[int, int]] = {}  # locked folder -> device and inode of its lock file
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def first_process() -> bool:
    """Whether this is the only process of a run, or its first: the one that writes."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def begun(out: Path) -> bool:
    """Whether there is a run in the folder that --resume takes up."""
    return any((out / name).exists() for name in (NAME, "settings.json"))


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Hold the folder; create it if need be. The system drops the lock with the process, however that ends.

    Raises UserError where another run holds the folder, or it cannot be written. Does nothing in the further processes
    of a run on several devices.
    """
    from filelock import FileLock, Timeout

    if not first_process():
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / NAME)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file system without locks: filelock leaves a file with our number
            held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--out {out}: another run is at work in this folder; wait for its end or stop it, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}): choose --out elsewhere") from None
    folder = out.absolute()
    try:
        _held[folder] = _identity(folder / NAME)
        yield
    finally:
        _held.pop(folder, None)
        held.release()


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def check(path: Path) -> None:
    """Raises UserError if `path` is in a folder that we locked and that is not ours any more: removed, or made anew.

    Without this a run whose folder was deleted would write into the folder of the run that was started in its place.
    """
    for folder, identity in _held.items():
        if not path.absolute().is_relative_to(folder):
            continue
        try:
            ours = _identity(folder / NAME) == identity
        except (FileNotFoundError, NotADirectoryError):
            ours = False
        if not ours:
            raise UserError(f"{folder} was removed or replaced while this run was at work in it: start the run anew")
