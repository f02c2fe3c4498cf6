"""One process of two that train as the command line does: `torchrun --nproc-per-node 2 train_worker.py FOLDER`.

It stops a run after its first epoch, and goes on with one that a single process has stopped there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from odenet.train import UserError
from odenet.train.processes import trainer_options
from odenet.train.run import Trained, resolve_settings
from odenet.train.run import train as trained
from odenet.train.tasks.images import Images
from odenet.train.training_callbacks import History


def train(out: Path, resume: bool, processes: dict[str, Any]) -> Trained:
    """In float64: Adam divides gradients by their size, and makes a whole step of the rounding of one near 0."""
    torch.set_default_dtype(torch.float64)
    try:
        given = {"quick": True, "epochs": 2, "batch_size": 32, "lr": 1e-3, "per_sample": True}
        return trained(Images(resolve_settings(Images, given, out, resume)), "images", out, resume, processes)
    finally:
        torch.set_default_dtype(torch.float32)


def stop_after_one_epoch(out: Path, processes: dict[str, Any]) -> None:
    row = History.on_train_epoch_end

    def stop(self: History, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise OSError(28, "No space left on device")
        row(self, trainer, module)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(History, "on_train_epoch_end", stop)
        train(out, False, processes)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    two = trainer_options("cpu", None, None)
    assert (two["devices"], two["num_nodes"]) == (2, 1)
    stop_after_one_epoch(folder / "two then one", two)
    train(folder / "one then two", True, two)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
