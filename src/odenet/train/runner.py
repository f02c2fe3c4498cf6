"""One training run: logs, checkpoints, resume."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from .data import ImageData
from .problems import UserError
from .tasks import ImageModule, Settings, Task, build

PATIENCE = 20  # epochs without a better validation error


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside it first, then in its place."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        _remove(partial)
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): free space or choose --out"
        ) from None


def _remove(path: Path) -> None:
    with suppress(OSError):  # what kept the file from being written may keep it from being removed
        path.unlink(missing_ok=True)


class History(L.Callback):
    """The metrics of every epoch, kept in the checkpoint, so that metrics.csv is whole also after a resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(self.rows)
        write(self.path, text.getvalue())


def history(out: Path, kind: str) -> list[dict[str, float]]:
    """The metrics of each epoch that a run left."""
    path = out / kind / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


class Bar(TQDMProgressBar):
    """Lightning's bar without the logger's version, which says nothing here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {k: v for k, v in metrics.items() if k != "v_num"}


class EpochCheckpoint(Checkpoint):
    """Saves the whole training state after each epoch, in place of the last one only once it is complete.

    A `Checkpoint` to Lightning, which so calls it after the early stop has judged the epoch.
    """

    def __init__(self, path: Path, settings: Settings, kind: str) -> None:
        self.path, self.settings, self.kind = path, settings, kind

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        ended = trainer.should_stop or trainer.current_epoch + 1 >= self.settings.epochs
        checkpoint["odenet"] = {"settings": self.settings.as_dict(), "kind": self.kind, "ended": ended}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            trainer.save_checkpoint(partial)
            os.replace(partial, self.path)
        except (OSError, RuntimeError) as error:
            _remove(partial)
            raise UserError(
                f"{self.path} could not be saved ({error}): {kept(self.path)}; free space and go on with --resume"
            ) from None


def read_checkpoint(path: Path, kind: str, s: Settings) -> dict[str, Any]:
    """The checkpoint at `path`, loaded without executing code; a damaged or foreign one is refused in one line."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = state["odenet"]
    except Exception as error:  # torch reports damage by many exception types
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a usable checkpoint ({reason}): delete it to train this net anew, or choose another --out"
        ) from None
    mine = s.as_dict()
    differ = [f"{k}={own['settings'].get(k)!r} (now {v!r})" for k, v in mine.items() if own["settings"].get(k) != v]
    if differ or own["kind"] != kind:
        raise UserError(f"{path} is of other settings: {', '.join(differ) or own['kind']}; use those, or another --out")
    return state


def train(kind: str, data: ImageData, s: Settings, out: Path, resume: bool, device: str) -> Task:
    """Train one net (or go on with it) and leave logs and the checkpoint under out/kind; gives the trained task."""
    folder = out / kind
    last = folder / "last.ckpt"
    module = ImageModule(data, s)
    steps = len(module.train_dataloader()) * s.epochs
    task = Task(build(kind, data, s), s.lr, steps)
    state = read_checkpoint(last, kind, s) if resume and last.exists() else None
    if state is not None and state["odenet"]["ended"]:
        task.load_state_dict(state["state_dict"])
        return task
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another") from None
    quiet()
    trainer = L.Trainer(
        max_epochs=s.epochs,
        accelerator={"cpu": "cpu", "cuda": "gpu"}.get(device, device),
        devices=1,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[
            EarlyStopping("val_error", patience=PATIENCE),
            History(folder / "metrics.csv"),
            EpochCheckpoint(last, s, kind),
            *([Bar()] if sys.stderr.isatty() else []),
        ],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1_000_000,
        deterministic=True,
    )
    try:
        with warnings.catch_warnings(), writers_fail_quietly():
            warnings.simplefilter("ignore")  # Lightning's advice on loaders and folders; ours are as meant
            trainer.fit(task, datamodule=module, ckpt_path=last if state is not None else None, weights_only=True)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror or error}): {kept(last)}; free space and go on with "
            "--resume"
        ) from None
    if trainer.interrupted:
        raise KeyboardInterrupt
    return task


def kept(checkpoint: Path) -> str:
    """What a failed run has left, in words."""
    if checkpoint.exists():
        return f"the last complete checkpoint, {checkpoint}, is intact"
    return "no epoch was saved yet"


@contextmanager
def writers_fail_quietly() -> Iterator[None]:
    """A log writer's thread that meets a full disk passes its OSError on to the main thread, which reports it once."""
    before = threading.excepthook
    threading.excepthook = lambda given: None if issubclass(given.exc_type, OSError) else before(given)
    try:
        yield
    finally:
        threading.excepthook = before


def quiet() -> None:
    """Lightning tells of devices and files at every start; here the command line does the talking."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
