"""One training run: logs, checkpoints, resume."""

from __future__ import annotations

import csv
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from ..errors import SolveError
from ..nn.classifier import KINDS
from . import lock
from .checkpoint import BEFORE, LAST, Found, Keeper, Origin, exists, expected, find
from .data import ImageData
from .failed import DivergedError, check_finite, hint, when
from .files import cure, write
from .problems import UserError
from .processes import Processes, together
from .summed import Signals
from .tasks import ImageModule, Settings, Task, build

PATIENCE = 20  # epochs without a better validation error


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
        check_finite(trainer, pl_module)  # before anything of this epoch is kept
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        self.save()

    def save(self) -> None:
        """Write metrics.csv."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(self.rows)
        if lock.first_process():
            write(self.path, text.getvalue(), "and go on with --resume")


def history(out: Path, kind: str) -> list[dict[str, float]]:
    """The metrics of each epoch that a run left."""
    path = out / kind / "metrics.csv"
    try:
        with path.open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:  # a row that is too long has a list in it
        raise UserError(f"{path} cannot be read ({error}): --resume writes it anew") from None


class Bar(TQDMProgressBar):
    """Lightning's bar without the logger's version, which says nothing here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {k: v for k, v in metrics.items() if k != "v_num"}


class EpochCheckpoint(Checkpoint):
    """Saves the whole training state after each epoch; `Keeper` puts it in place.

    A `Checkpoint` to Lightning, which so calls it after the early stop has judged the epoch.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path, self.origin = path, origin
        self.started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        ended = trainer.should_stop or trainer.current_epoch + 1 >= self.origin.settings.epochs
        checkpoint["odenet"] = self.origin.as_dict(ended)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            trainer.save_checkpoint(self.path)
        except OSError as error:
            lock.check(self.path)
            raise UserError(
                f"{self.path} could not be saved ({error}): {kept(self.path)}; {cure(error)} and go on with --resume"
            ) from None


@dataclass
class Run:
    """One net's training, ready to begin or to go on from `found`."""

    task: Task
    module: ImageModule
    trainer: L.Trainer
    history: History
    saver: EpochCheckpoint
    found: Found | None


def prepare(kind: str, data: ImageData, s: Settings, out: Path, resume: bool, processes: Processes) -> Run:
    """Build a net and its trainer and, to resume, read its checkpoint; writes nothing.

    Raises UserError where the checkpoints are damaged, or of other settings or data.
    """
    folder = out / kind
    module = ImageModule(data, s)
    task = Task(build(kind, data, s), s.lr, len(module.train_dataloader()) * s.epochs)
    origin, keeper = Origin(kind, s, data.fingerprint), Keeper()
    rows, saver = History(folder / "metrics.csv"), EpochCheckpoint(folder / LAST, origin)
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=s.epochs,
            **processes.trainer_options(),
            logger=TensorBoardLogger(folder, name="", version="tensorboard"),
            callbacks=[
                EarlyStopping("val_error", patience=PATIENCE),
                rows,
                saver,
                *([Bar()] if sys.stderr.isatty() else []),
            ],
            plugins=[keeper],
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=1_000_000,
            deterministic=True,
        )
    trainer._signal_connector = Signals(trainer)
    found = find(folder, origin, expected(trainer, task, s.epochs)) if resume else None
    keeper.use(found)
    return Run(task, module, trainer, rows, saver, found)


def train(kind: str, data: ImageData, s: Settings, out: Path, resume: bool, processes: Processes | str) -> Task:
    """Train one net (or go on with it) and leave logs and the checkpoint under out/kind; gives the trained task."""
    processes = Processes(processes) if isinstance(processes, str) else processes
    folder = out / kind
    run = prepare(kind, data, s, out, resume, processes)
    task, found, last = run.task, run.found, folder / LAST
    if found is not None:
        if found.note is not None and lock.first_process():
            print(found.note, file=sys.stderr)
        if found.state["odenet"]["ended"]:
            task.load_state_dict(found.state["state_dict"])
            run.history.load_state_dict(found.state["callbacks"]["History"])
            run.history.save()
            return task
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another") from None
    try:
        with (
            warnings.catch_warnings(),
            writers_fail_quietly(),
            together(processes, lambda: f"{kept(last)}; go on with --resume"),
            told_of(kind, run.trainer, task, folder),
        ):
            warnings.simplefilter("ignore")  # Lightning's advice on loaders and folders; ours are as meant
            run.trainer.fit(task, datamodule=run.module, ckpt_path=found.path if found else None, weights_only=True)
    except OSError as error:
        lock.check(folder)
        raise UserError(
            f"{folder} could not be written ({error.strerror or error}): {kept(last)}; {cure(error)} and go "
            "on with --resume"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if found is None or run.saver.started:
            raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{found.path} cannot be taken up ({reason}): delete it to train this net anew") from None
    return task


def kept(checkpoint: Path) -> str:
    """What a failed run has left, in words."""
    for path in (checkpoint, checkpoint.with_name(BEFORE)):
        if path.exists():
            return f"the last complete checkpoint, {path}, is intact"
    return "no epoch was saved yet"


@contextmanager
def told_of(kind: str, trainer: L.Trainer, task: Task, folder: Path) -> Iterator[None]:
    """A solve that fails, or a training that diverged, in one line: no other option would let this run go on."""
    try:
        yield
    except SolveError as error:
        reason = f"{when(trainer)}: {error} {hint(error, task)}"
    except DivergedError as error:
        reason = str(error)
    else:
        return
    anew = "start anew with another --out" if exists(folder) else "start anew"
    raise UserError(f"{KINDS[kind]}, {reason}; {kept(folder / LAST)}; {anew}")


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
