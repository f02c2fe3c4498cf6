"""One training run: settings, checkpoints, resume, results."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save
from torch import nn

from .. import __version__
from ..errors import BlowUpError, MaxStepsError, NonFiniteError, SolveError, StepUnderflowError
from . import figures
from .callbacks import Finite, History, Signals, SolverStats, when
from .checkpoint import Checkpoints, Found, newest
from .errors import UserError, first_line
from .files import locked, write
from .module import Data, Module
from .processes import Processes, first_process, lost
from .stop import install, supervisor
from .task import Task
from .trained import CHECKPOINTS, SETTINGS, WEIGHTS, record

PATIENCE = 20  # epochs without progress in validation


def settle(task: type[Task[Any]], given: Mapping[str, Any], folder: Path, resume: bool) -> Any:
    """The settings of a run: those that are given, else those of the run that is resumed, else the defaults."""
    saved: dict[str, Any] = record(folder)["settings"] if resume else {}
    differ = [
        f"{k}={saved[k]!r} (now {v!r})"
        for k, v in given.items()
        if k in saved and saved[k] != v and k not in task.PLACES
    ]
    if differ:
        raise UserError(f"{folder} is of other settings: {', '.join(differ)}; leave them out, or choose another --out")
    stated = {**saved, **given}
    defaults = {field.name: field.default for field in fields(task.Settings)} | task.defaults(stated)
    quick = task.QUICK if stated.get("quick") else {}
    return task.Settings(**{**defaults, **quick, **stated})


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training. test: the metrics on the test data; history: those of each epoch."""

    net: nn.Module
    test: dict[str, float]
    history: list[dict[str, float]]
    resumed: bool
    files: list[Path]


def train(task: Task[Any], name: str, folder: Path, resume: bool, processes: Processes) -> Trained:
    """Train a task, or go on with it, and leave what is known of it in the folder; only the first process writes."""
    own = {"task": name, "settings": task.settings.as_dict(), "info": task.info, "data": fingerprint(task)}
    if not first_process():
        return _train(task, own, folder, resume, processes)
    with locked(folder):
        return _train(task, own, folder, resume, processes)


def _train(task: Task[Any], own: dict[str, Any], folder: Path, resume: bool, processes: Processes) -> Trained:
    if not resume and first_process() and (folder / SETTINGS).exists():
        raise UserError(f"--out {folder} holds a run already: add --resume to go on with it, or choose another --out")
    found = newest(folder / CHECKPOINTS) if resume else None
    if resume:
        _refuse_other(task, own, record(folder), folder / SETTINGS)
    if found is not None:
        _refuse_other(task, own, found.state["odenet"].get("record"), found.path)
    if first_process():
        if found is not None and found.note:
            print(f"odenet: {found.note}", file=sys.stderr)
        versions = {"odenet": __version__, "torch": torch.__version__}
        write(folder / SETTINGS, json.dumps(own | versions, indent=2) + "\n")
    data = Data(task, processes.all)
    module = Module(task, data.steps * task.settings.epochs, own)
    history = History(folder / "metrics.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and folders; ours are as meant
        trainer, signals = _trainer(task, folder, history, found, processes)
        if found is not None and found.ended:
            _restore(module, history, found)
        else:
            _fit(trainer, signals, module, data, found, folder)
        test = {k: float(v) for k, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
    files = _results(task, module, history, test, folder) if first_process() else []
    return Trained(module.net.cpu().eval(), test, history.rows, found is not None and found.ended, files)


def _trainer(
    task: Task[Any], folder: Path, history: History, found: Found | None, processes: Processes
) -> tuple[L.Trainer, Signals]:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of devices and files; here the command does
    shown = sys.stderr.isatty() and first_process()
    signals = Signals(install, supervisor())
    callbacks = [
        EarlyStopping(task.MONITOR, patience=PATIENCE, check_finite=False),
        SolverStats(),
        LearningRateMonitor("epoch"),
        Finite(),
        history,
        signals,
        ModelCheckpoint(
            folder / CHECKPOINTS,
            "{epoch:06d}",
            save_top_k=-1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        *([RichProgressBar()] if shown else []),
    ]
    purge = found.state["global_step"] if found is not None else None
    trainer = L.Trainer(
        max_epochs=task.settings.epochs,
        logger=TensorBoardLogger(folder, name="", version="tensorboard", purge_step=purge),
        callbacks=callbacks,
        plugins=[Checkpoints()],
        enable_progress_bar=shown,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1_000_000,
        **processes.trainer_options(),
    )
    return trainer, signals


def _restore(module: Module, history: History, found: Found) -> None:
    try:
        module.load_state_dict(found.state["state_dict"])
        history.load_state_dict(found.state["callbacks"]["History"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise _unusable(found, error) from None


def _unusable(found: Found, error: Exception) -> UserError:
    return UserError(f"{found.path} cannot be taken up ({first_line(error)}): delete it to go on from the one before")


def _fit(
    trainer: L.Trainer, signals: Signals, module: Module, data: Data, found: Found | None, folder: Path
) -> None:
    path = found.path if found is not None else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    except SolveError as error:
        raise UserError(f"{when(trainer)}: {error} {_hint(error, module)}; {_kept(folder)}") from None
    except UserError as error:
        raise UserError(f"{error}; {_kept(folder)}") from None
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror or error}): free space or make it writable; {_kept(folder)}"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if found is None or signals.started or lost(error):
            raise
        raise _unusable(found, error) from None


def _hint(error: SolveError, net: nn.Module) -> str:
    """Which option to change."""
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return "The weights are not finite any more, training diverged: lower --lr"
    if isinstance(error, (MaxStepsError, StepUnderflowError)):
        return "Raise --tolerance, or lower --lr"
    if isinstance(error, (NonFiniteError, BlowUpError)):
        return "The weights are finite, but training diverged: lower --lr"
    return "Try another --tolerance, --method or --lr"


def _kept(folder: Path) -> str:
    """What a failed run has left, in words."""
    found = newest(folder / CHECKPOINTS)
    return f"{found.path} is intact: --resume goes on from it" if found else "no epoch was saved yet"


def _refuse_other(task: Task[Any], own: dict[str, Any], theirs: Any, path: Path) -> None:
    """Raises UserError where a file of the run is of another one."""
    if not isinstance(theirs, dict) or not isinstance(theirs.get("settings"), dict) or "data" not in theirs:
        raise UserError(f"{path} does not say of which run it is: delete it")
    if theirs.get("task") != own["task"]:
        raise UserError(f"{path} is of the task {str(theirs.get('task'))[:60]!r}, not {own['task']!r}: choose another --out")
    settings = theirs["settings"]
    differ = [
        f"{k}={settings.get(k)!r} (now {v!r})"
        for k, v in own["settings"].items()
        if settings.get(k) != v and k not in task.PLACES
    ]
    if differ:
        raise UserError(f"{path} is of other settings: {', '.join(differ)[:300]}; use those, or another --out")
    if theirs["data"] != own["data"]:
        raise UserError(
            f"{path} was trained on other data: they have changed since; bring the old ones back, or choose another --out"
        )


def fingerprint(task: Task[Any]) -> str:
    """SHA-256 of all samples: what tells a resumed run that its data are those it began with."""
    digest = hashlib.sha256(json.dumps(task.info).encode())
    for split in ("train", "val", "test"):
        data: Any = task.data(split, 0)
        for i in range(len(data)):
            sample = data[i]
            for part in sample.values() if isinstance(sample, dict) else sample:
                array = torch.as_tensor(part).numpy()
                digest.update(f"{split}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()


def _results(
    task: Task[Any], module: Module, history: History, test: dict[str, float], folder: Path
) -> list[Path]:
    """The trained weights, the metrics and the figures; gives the files."""
    history.save()
    net = module.net.cpu().eval()
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    files = [
        folder / SETTINGS,
        history.path,
        write(folder / "results.json", json.dumps({"epochs": len(history.rows), **test}, indent=2) + "\n"),
        write(folder / WEIGHTS, save(weights)),
    ]
    drawn = {"training": figures.training({"": history.rows}, task.MONITOR), **task.figures(net, history.rows)}
    return files + [figures.write_png(figure, folder / f"{name}.png") for name, figure in drawn.items()]
