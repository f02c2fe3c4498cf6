"""Checkpoints: the last one and the one before, each with a digest of its bytes, read without executing code.

A checkpoint is a file of `torch.save`, a zip archive, whose archive comment holds the SHA-256 of all bytes before it.
So `torch.load(path, weights_only=True)` opens it, and no flipped, missing or added byte goes unnoticed here. A digest
keeps out accidents, not attackers: the content is checked as if it came from one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickletools
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO

from . import lock
from .files import remove, replace, stage
from .form import Rows, differs
from .interrupt import held
from .problems import UserError
from .tasks import Settings, Task

LAST, BEFORE, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
_LABEL = b"odenet sha256 "
_COMMENT = len(_LABEL) + 64
_END = b"PK\x05\x06"  # of a zip archive: 22 bytes from here, the last two the length of the comment
_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Byte", "Bool")
_NAMES = {f"torch {name}Storage" for name in _TYPES} | {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
# fmt: off
_CODES = {
    "PROTO", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINUNICODE", "BINFLOAT",
    "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE", "BINPERSID", "GLOBAL", "REDUCE", "BUILD",
}
# fmt: on


class DamagedError(Exception):
    """Why a file is no checkpoint of this run, in a few words: of the file, so only what a terminal can show."""

    def __init__(self, reason: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in reason))


class TooLargeError(DamagedError):
    """The file is larger than any checkpoint of this run: perhaps of a run with more --channels."""


def sealed(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = buffer.getvalue()
    if archive[-22:-18] != _END:
        raise RuntimeError("torch.save wrote no zip archive")
    body = archive[:-2] + _COMMENT.to_bytes(2, "little")
    return body + _LABEL + hashlib.sha256(body).hexdigest().encode()


def intact(path: Path) -> bool:
    """Whether the file is there and every byte is as it was written."""
    try:
        _checked(path.read_bytes())
    except (OSError, DamagedError):
        return False
    return True


def _checked(raw: bytes) -> bytes:
    body, comment = raw[:-_COMMENT], raw[-_COMMENT:]
    if not comment.startswith(_LABEL):
        raise DamagedError("it has no digest: cut short, or saved by an older version")
    if comment[len(_LABEL) :] != hashlib.sha256(body).hexdigest().encode():
        raise DamagedError("its bytes do not match its digest")
    return raw


def load(path: Path, largest: int) -> dict[str, Any]:
    """What the file holds. Raises DamagedError, or OSError where the system cannot read it.

    largest: bytes that a checkpoint of this run may have; a bigger file is not read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError("it is not a file")
    if found.st_size > largest:
        raise TooLargeError(f"it has {found.st_size} bytes, and one of this net less than {largest}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedError("the disk cannot read it") from None
    _checked(raw)
    try:
        _refuse_code(raw)
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # torch, pickletools and zipfile report damage by many exception types
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DamagedError(reason) from None
    if type(state) is not dict:
        raise DamagedError("it holds no training state")
    return state


def _refuse_code(raw: bytes) -> None:
    """Look through the archive without building anything.

    torch.load(weights_only=True) executes no foreign code either. Here it is also kept from allocating what a few bytes
    can ask for (bytearray(10**11), a record that unpacks to terabytes), and what was attempted is named.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise DamagedError(f"{entry.filename[:60]!r} in it is compressed")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        for code, value, _ in pickletools.genops(archive.read(pickled)):
            if code.name == "GLOBAL" and value not in _NAMES:
                raise DamagedError(f"it asks for {str(value).replace(' ', '.')[:60]}, which was not run")
            if code.name not in _CODES:
                raise DamagedError(f"it has the pickle code {code.name}, which no checkpoint needs; it was not run")


@dataclass(frozen=True)
class Origin:
    """What a checkpoint must agree in with the run that takes it up. data: the fingerprint of the images."""

    kind: str
    settings: Settings
    data: str

    def as_dict(self, ended: bool) -> dict[str, Any]:
        return {"settings": self.settings.as_dict(), "kind": self.kind, "data": self.data, "ended": ended}

    def refuse_other(self, path: Path, own: dict[str, Any]) -> None:
        """Raises UserError if the checkpoint's `own` part is of another run."""
        given = own["settings"]
        differ = [f"{k}={given[k]!r} (now {v!r})" for k, v in self.settings.as_dict().items() if given[k] != v]
        if own["kind"] != self.kind:
            differ.insert(0, f"net {own['kind']!r} (now {self.kind!r})")
        if differ:
            raise UserError(f"{path} is of other settings: {', '.join(differ)[:300]}; use those, or another --out")
        if own["data"] != self.data:
            raise UserError(
                f"{path} was trained on other data: the images or labels of {self.settings.data} have changed since; "
                "bring the old files back, or choose another --out to start on the new ones"
            )


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run goes on from. note: a line for the user where that is not the last one."""

    path: Path
    state: dict[str, Any]
    note: str | None


def exists(folder: Path) -> bool:
    """Whether a run left a checkpoint in this folder."""
    return any(os.path.lexists(folder / name) for name in (LAST, BEFORE))


def find(folder: Path, origin: Origin, model: dict[str, Any]) -> Found | None:
    """The last usable checkpoint of `folder`, or None where there is none at all.

    model: a state of the form that is expected (`form.differs`). Raises UserError where neither the last nor the one
    before is usable, and where the newest usable one is of other settings or other data.
    """
    reasons: dict[Path, str] = {}
    large = False
    weights = sum(t.nbytes for t in model["state_dict"].values())
    for path in (folder / LAST, folder / BEFORE):
        if not os.path.lexists(path):
            continue
        try:
            state = load(path, largest=2**26 + 8 * weights)
            _check_form(path, state, origin, model)
        except DamagedError as damage:
            reasons[path] = str(damage)
            large = large or isinstance(damage, TooLargeError)
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}): make it readable") from None
        return Found(path, state, _note(folder, path, reasons))
    if not reasons:
        return None
    told = " and ".join(f"{path} ({reason})" for path, reason in reasons.items())
    if large:
        raise UserError(f"not a usable checkpoint: {told}; give the run's own --channels, or bring a copy back")
    raise UserError(
        f"not a usable checkpoint: {told}; bring a copy back, or delete {' and '.join(p.name for p in reasons)} there "
        "to train this net anew"
    )


def _note(folder: Path, path: Path, reasons: dict[Path, str]) -> str | None:
    if path.name == LAST:
        return None
    reason = reasons.get(folder / LAST, "it is missing")
    return f"odenet: {folder / LAST} is not usable ({reason}): going on from {path}, saved before it"


def _check_form(path: Path, state: dict[str, Any], origin: Origin, model: dict[str, Any]) -> None:
    own = state.get("odenet")
    if type(own) is dict and "data" not in own:
        raise DamagedError("it was saved by an older version")
    if type(own) is dict and type(own.get("settings")) is dict:
        own["settings"].setdefault("per_sample", False)  # what a run was before there was a choice
    mine = {"odenet": origin.as_dict(ended=False)}
    if not differs({"odenet": own}, mine):
        origin.refuse_other(path, own)  # pyright: ignore  # other settings may make a net of another form
    different = differs(state, model | mine)
    if different:
        version = state.get("pytorch-lightning_version")
        by = f"; saved with Lightning {version[:20]}" if type(version) is str and version != L.__version__ else ""
        raise DamagedError(different + by)
    # of the installed Lightning's form, so there is nothing that Lightning would have to migrate
    state["pytorch-lightning_version"] = L.__version__


def expected(trainer: L.Trainer, task: Task, epochs: int) -> dict[str, Any]:
    """A state of the form that this trainer saves of this task, `odenet` left out: the model for `form.differs`."""
    optimizers = task.configure_optimizers()
    weights = list(task.parameters())
    moments = {i: {"step": torch.tensor(0.0), "exp_avg": w, "exp_avg_sq": w} for i, w in enumerate(weights)}
    loops = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    states = {c.state_key: c.state_dict() for c in trainer.callbacks}  # type: ignore[attr-defined]
    if "History" in states:
        states["History"] = {"rows": Rows(("epoch", "val_error"), epochs)}
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": L.__version__,
        "state_dict": task.state_dict(),
        "loops": {name: getattr(trainer, name).state_dict() for name in loops},
        "callbacks": {k: v for k, v in states.items() if v},
        "optimizer_states": [optimizers["optimizer"].state_dict() | {"state": moments}],
        "lr_schedulers": [optimizers["lr_scheduler"]["scheduler"].state_dict()],
    }


class Keeper(CheckpointIO):
    """Saves checkpoints for Lightning, and hands it the one that was found, so that no file is read a second time."""

    def __init__(self) -> None:
        self.found: Found | None = None
        self.last_is_bad = False

    def use(self, found: Found | None) -> None:
        """Go on from this checkpoint."""
        self.found = found
        self.last_is_bad = found is not None and found.path.name != LAST

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Put the new one in the last one's place, and the last one, if it is good, in that of the one before.

        After every single step here there is a good checkpoint under one of the two names.
        """
        last = Path(path)
        content = sealed(checkpoint)
        with held():
            lock.check(last)
            last.parent.mkdir(parents=True, exist_ok=True)
            partial = stage(last, content)
            try:
                if os.path.lexists(last):
                    good = not self.last_is_bad and intact(last)
                    os.replace(last, last.with_name(BEFORE if good else DAMAGED))
            except BaseException:
                remove(partial)
                raise
            replace(partial, last)
            self.last_is_bad = False

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if self.found is None or Path(path) != self.found.path:
            raise UserError(f"{path} is not a checkpoint of this run: remove it")
        return self.found.state

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError("this run keeps its checkpoints")
