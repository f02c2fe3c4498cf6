"""Callbacks of Lightning: statistics of the solves, the table of metrics, and the end of a training that diverged."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ..nn import NeuralODE
from .errors import UserError
from .files import write


class SolverStats(L.Callback):
    """Logs nfe and backward_nfe: evaluations of f in a training step's solves, summed over the layers `NeuralODE`.

    Means over the samples, and over the steps of an epoch.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stats = [m.stats for m in pl_module.modules() if isinstance(m, NeuralODE) and m.stats is not None]
        for name in ("nfe", "backward_nfe") if stats else ():
            value = sum(torch.as_tensor(s[name], dtype=torch.float64).mean().item() for s in stats)
            pl_module.log(name, value, on_step=False, on_epoch=True, sync_dist=True)


class History(L.Callback):
    """The metrics of every epoch, written to metrics.csv.

    They are part of the checkpoint, so that the file is whole after a resume; Lightning's CSVLogger starts a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **dict(sorted(metrics.items()))})
        if trainer.is_global_zero:
            self.save()

    def save(self) -> None:
        """Write metrics.csv."""
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in self.rows for name in row)))
        table.writeheader()
        table.writerows(self.rows)
        write(self.path, text.getvalue())


class Finite(L.Callback):
    """Ends the training after an epoch that left a loss or weights that are not finite, before it is saved."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        losses = {k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("_loss")}
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if not all(bool(torch.isfinite(p).all()) for p in pl_module.parameters()):
            bad.append("the weights are not finite any more")
        if bad:
            raise UserError(f"{when(trainer)}: {', '.join(bad)}: training diverged, lower --lr")


def when(trainer: L.Trainer) -> str:
    """How far the training is."""
    return f"epoch {trainer.current_epoch + 1}, {trainer.global_step} training steps done"


class Signals(L.Callback):
    """Puts the program's own handlers back in place of Lightning's.

    Lightning's handler of SIGTERM waits for the other processes, for ever where those wait for something else.
    parent: the process that started this one as one of several; without it, this one ends.
    """

    def __init__(self, install: Callable[[], None], parent: int | None) -> None:
        self.install, self.parent = install, parent
        self.started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True
        self.install()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.install()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            raise UserError("the process that started this one has ended: go on with --resume")

