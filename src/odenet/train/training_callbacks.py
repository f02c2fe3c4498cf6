"""Callbacks of Lightning: statistics of the solves, the table of metrics, and the end of a training that diverged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ..nn import CNF, NeuralODE
from .files import write_csv
from .user_error import UserError


class SolverStats(L.Callback):
    """Logs nfe and backward_nfe: evaluations of f in a training step's solves, summed over `NeuralODE`s and `CNF`s.

    Means over the samples, and over the steps of an epoch.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        solved = [m.stats for m in pl_module.modules() if isinstance(m, (NeuralODE, CNF))]
        blocks = [block for stats in solved for block in (stats if isinstance(stats, tuple) else (stats,))]
        stats = [block for block in blocks if block is not None]
        for name in ("nfe", "backward_nfe") if stats else ():
            value = sum(torch.as_tensor(s[name], dtype=torch.float64).mean().item() for s in stats)
            pl_module.log(name, value, on_step=False, on_epoch=True, sync_dist=True)


class History(L.Callback):
    """The metrics of every epoch, written to metrics.csv; the training ends where a loss or the weights are not finite.

    The rows are part of the checkpoint, so that the file is whole after a resume; Lightning's CSVLogger begins a new
    one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        bad = [f"{k} is {v}" for k, v in metrics.items() if k.endswith("_loss") and not math.isfinite(v)]
        if not finite(pl_module):
            bad.append("the weights are not finite any more")
        if bad:  # before the epoch is saved
            raise UserError(f"{when(trainer)}: {', '.join(bad)}: training diverged, lower --lr")
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        if trainer.is_global_zero:
            write_csv(self.path, self.rows)


def finite(module: torch.nn.Module) -> bool:
    """Whether all weights are finite."""
    return all(bool(torch.isfinite(p).all()) for p in module.parameters())


def when(trainer: L.Trainer) -> str:
    """How far the training is."""
    return f"epoch {trainer.current_epoch + 1}, {trainer.global_step} training steps done"
