"""One training run: settings, checkpoints, resume, results."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader

from ..errors import MaxStepsError, SolveError, StepUnderflowError
from .checkpoint import Checkpoints, Found, newest
from .files import locked, write, write_csv
from .module import Data, Module
from .processes import first_process
from .task import Task
from .trained import CHECKPOINTS, SETTINGS, WEIGHTS, read_settings
from .training_callbacks import History, SolverStats, finite, when
from .training_figure import training_figure, write_png
from .user_error import UserError, first_line

PATIENCE = 20  # epochs without progress in validation


def resolve_settings(task: type[Task], given: Mapping[str, Any], folder: Path, resume: bool) -> Any:
    """The settings of a run: those that are given, else those of the run that is resumed, else the defaults."""
    if not resume and first_process() and (folder / SETTINGS).exists():
        raise UserError(f"--out {folder} holds a run already: add --resume to go on with it, or choose another --out")
    if folder.is_file():
        raise UserError(f"--out {folder} is a file: give a folder, which is made where there is none")
    saved: dict[str, Any] = read_settings(folder)["settings"] if resume else {}
    differ = [f"{k}={saved[k]!r} (now {v!r})" for k, v in given.items() if k in saved and saved[k] != v]
    if differ:
        raise UserError(f"{folder} is of other settings: {', '.join(differ)}; leave them out, or choose another --out")
    stated = {**saved, **given}
    defaults: dict[str, Any] = {field.name: field.default for field in fields(task.Settings)} | task.defaults(stated)
    unknown = [name for name in saved if name not in defaults]
    if unknown:
        raise UserError(
            f"{folder} is of another task or version, with the setting {unknown[0]!r}: choose another --out"
        )
    return task.Settings(**{**defaults, **(task.QUICK if stated.get("quick") else {}), **stated})


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training. history: metrics by epoch; already: whether it was trained before.

    table: rows that the task adds to the metrics.
    """

    net: nn.Module
    test: dict[str, float]
    history: list[dict[str, float]]
    already: bool
    files: list[Path]
    table: list[dict[str, Any]]


def train(task: Task, name: str, folder: Path, resume: bool, processes: Mapping[str, Any]) -> Trained:
    """Train a task, or go on with it, and leave what is known of it in the folder; only the first process writes."""
    record = {"task": name, "settings": asdict(task.settings), "info": task.info, "data": fingerprint(task)}
    if not first_process():
        return _train(task, record, folder, resume, processes)
    with locked(folder):
        return _train(task, record, folder, resume, processes)


def _train(task: Task, record: dict[str, Any], folder: Path, resume: bool, processes: Mapping[str, Any]) -> Trained:
    found = newest(folder / CHECKPOINTS) if resume else None
    began = read_settings(folder) if resume else record
    if any(began[key] != record[key] for key in ("task", "info", "data")):
        raise UserError(f"{folder} was trained on other data: they have changed since; bring those back")
    if found is not None and found[1]["odenet"].get("run") != record:
        raise UserError(f"{found[0]} is of another run than {folder / SETTINGS}: bring the run's own back")
    data = Data(task, processes["devices"] * processes["num_nodes"])
    module = Module(task, data.steps * task.settings.epochs, record)
    history = History(folder / "metrics.csv")
    if first_process():
        write(folder / SETTINGS, json.dumps(record, indent=2) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and folders; ours are as meant
        trainer = _trainer(task, folder, history, processes)
        start = time.perf_counter()
        _fit(trainer, module, data, history, found, folder)
        seconds = time.perf_counter() - start if found is None else None
        test = {k: float(v) for k, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
    net = module.net.cpu().eval()
    files = _results(task, net, history, test, folder) if first_process() else []
    table, more = task.report(net, folder, seconds) if first_process() else ([], [])
    return Trained(net, test, history.rows, found is not None and _ended(found), [*files, *more], table)


def _trainer(task: Task, folder: Path, history: History, processes: Mapping[str, Any]) -> L.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of devices and files; here the command does
    shown = sys.stderr.isatty() and first_process()
    saver = ModelCheckpoint(
        folder / CHECKPOINTS,
        "{epoch:06d}",
        save_top_k=-1,  # `Checkpoints` removes older ones
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    watch = [EarlyStopping(task.MONITOR, patience=PATIENCE, check_finite=False), LearningRateMonitor("epoch")]
    several = processes["devices"] * processes["num_nodes"] > 1
    return L.Trainer(
        # without an exchange of buffers, a forward pass without gradients waits for nobody
        strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
        max_epochs=task.settings.epochs,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=[*watch, SolverStats(), history, saver, *([RichProgressBar()] if shown else [])],
        plugins=[Checkpoints()],
        enable_progress_bar=shown,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1_000_000,
        use_distributed_sampler=False,
        deterministic=processes["accelerator"] == "cpu",
        **processes,
    )


def _fit(trainer: L.Trainer, module: Module, data: Data, history: History, found: Found | None, folder: Path) -> None:
    """Train, or take the weights of a training that is at its end; an error is one line."""
    try:
        if found is not None and _ended(found):
            module.load_state_dict(found[1]["state_dict"])
            history.load_state_dict(found[1]["callbacks"]["History"])
        else:
            trainer.fit(module, datamodule=data, ckpt_path=found[0] if found else None, weights_only=True)
    except SolveError as error:
        raise UserError(f"{when(trainer)}: {error} {_hint(error, module)}; {_kept(folder)}") from None
    except UserError as error:
        raise UserError(f"{error}; {_kept(folder)}") from None
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror or error}: free space or make it writable; {_kept(folder)}"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if found is None or module.started:
            raise
        raise UserError(f"{found[0]} cannot be taken up ({first_line(error)}): delete it") from None
    finally:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None and sys.exc_info()[0] is not None:
            launcher.kill(signal.SIGTERM)  # the processes that Lightning has started


def _ended(found: Found) -> bool:
    return found[1]["odenet"].get("ended") is True


def _hint(error: SolveError, net: nn.Module) -> str:
    """Which option to change."""
    if not finite(net):
        return "The weights are not finite any more, training diverged: lower --lr"
    if isinstance(error, (MaxStepsError, StepUnderflowError)):
        return "Raise --tolerance, or lower --lr"
    return "Lower --lr, or try another --method or --tolerance"


def _kept(folder: Path) -> str:
    """What a failed run has left, in words."""
    found = newest(folder / CHECKPOINTS)
    return f"{found[0]} is intact, --resume goes on from it" if found else "no epoch was saved yet"


def fingerprint(task: Task) -> str:
    """SHA-256 of all samples: what tells a resumed run that its data are those it began with."""
    digest = hashlib.sha256(json.dumps(task.info).encode())
    for split in ("train", "val", "test"):
        for batch in DataLoader(task.data(split, 0), 256):
            for part in batch.values() if isinstance(batch, dict) else batch:
                digest.update(f"{split} {part.dtype} {tuple(part.shape)}".encode())
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def _results(task: Task, net: nn.Module, history: History, test: dict[str, float], folder: Path) -> list[Path]:
    """The trained weights, the metrics and the figures; gives the files."""
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    drawn = {"training": training_figure({"": history.rows}, task.MONITOR), **task.figures(net, history.rows)}
    return [
        folder / SETTINGS,
        write_csv(history.path, history.rows),
        write(folder / "results.json", json.dumps({"epochs": len(history.rows), **test}, indent=2) + "\n"),
        write(folder / WEIGHTS, save(weights)),
        *(write_png(figure, folder / f"{name}.png") for name, figure in drawn.items()),
    ]
