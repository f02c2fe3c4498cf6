"""Checkpoints: the last two epochs of a run, written whole, read without running code."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from .files import write
from .user_error import UserError, first_line

KEPT = 2
Found = tuple[Path, dict[str, Any]]


class DamagedError(Exception):
    """Why a file is no checkpoint, in a few words."""


class Checkpoints(CheckpointIO):
    """How Lightning writes and reads checkpoints here; older ones go when a new one is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write(Path(path), buffer.getvalue())
        for old in listed(Path(path).parent)[KEPT:]:
            self.remove_checkpoint(old)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return sorted(folder.glob("epoch=*.ckpt"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. Raises DamagedError where it is not what `torch.save` wrote."""
    if not path.is_file():  # a pipe would be waited for, a device read without end
        raise DamagedError("it is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                raise zipfile.BadZipFile("its bytes do not match their checksums")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{path} cannot be read: make it readable") from None
    except Exception as error:  # zipfile, pickle and torch tell of damage by many types
        raise DamagedError(first_line(error)) from None
    if not _complete(state):
        raise DamagedError("it holds no training state")
    return state


def _complete(state: Any) -> bool:
    """Whether all is there of which Lightning would miss nothing."""
    try:
        rows = state["callbacks"]["History"]["rows"]
        parts = state["state_dict"], state["optimizer_states"], state["lr_schedulers"], state["loops"], state["odenet"]
        return all(parts) and isinstance(parts[-1], dict) and len(rows) == state["epoch"] + 1
    except (KeyError, TypeError, IndexError):
        return False


def newest(folder: Path) -> Found | None:
    """The newest whole checkpoint; None where there is none at all. A line on stderr names a damaged one after it."""
    damaged: list[str] = []
    for path in listed(folder):
        try:
            state = read(path)
        except DamagedError as error:
            damaged.append(f"{path} ({error})")
            continue
        if damaged:
            print(f"odenet: {' and '.join(damaged)} cannot be used: going on from {path.name}", file=sys.stderr)
        return path, state
    if damaged:
        names = " and ".join(damaged)
        raise UserError(f"no usable checkpoint: {names}; bring a copy back, or delete them to train anew")
    return None
