"""One process of two that train as the command line does: `torchrun --nproc-per-node 2 train_worker.py FOLDER`.

It stops a run after its first epoch, and goes on with one that a single process has stopped there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from odenet.train import runner
from odenet.train.data import Split, load
from odenet.train.problems import UserError
from odenet.train.processes import Processes, chosen
from odenet.train.tasks import Settings

# 33 images a step: the two processes take 16 and 17
SETTINGS = Settings("digits", 2, 33, 8, 1e-3, 1e-2, 1e-2, "bosh3", 0, True, per_sample=True)


def train(out: Path, resume: bool, processes: Processes) -> runner.Task:
    """In float64: Adam divides gradients by their size, and makes a whole step of the rounding of one near 0."""
    data = load("digits", None).small()
    splits = {k: Split(getattr(data, k).images.double(), getattr(data, k).labels) for k in ("train", "val", "test")}
    torch.set_default_dtype(torch.float64)
    try:
        return runner.train("odenet", replace(data, **splits), SETTINGS, out, resume, processes)
    finally:
        torch.set_default_dtype(torch.float32)


def stop_after_one_epoch(out: Path, processes: Processes) -> None:
    save = runner.EpochCheckpoint.on_train_epoch_end

    def stop(self: runner.EpochCheckpoint, trainer: object, module: object) -> None:
        save(self, trainer, module)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(runner.EpochCheckpoint, "on_train_epoch_end", stop)
        train(out, False, processes)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    two = chosen("cpu", None, None)
    assert two == Processes("cpu", 2, 1)
    stop_after_one_epoch(folder / "two then one", two)
    train(folder / "one then two", True, two)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
