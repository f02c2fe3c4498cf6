"""`odenet train` in several processes: the run of one process, files from one of them, mistakes and deaths that end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from command_line import default_dtype, refused
from distributed.launch import started, torchrun
from distributed.train_worker import stop_after_one_epoch, train
from odenet.train.module import Data
from odenet.train.processes import trainer_options
from odenet.train.run import resolve_settings
from odenet.train.tasks.images import Images
from train.runs import table

__all__ = ["default_dtype"]
QUICK = ["train", "images", "--net", "resnet", "--quick"]


@pytest.mark.slow
def test_resume_on_another_number_of_processes(tmp_path: Path) -> None:
    """2 -> 1 and 1 -> 2: the numbers of one process to rounding."""
    one = trainer_options("cpu", None, None)
    whole = train(tmp_path / "one", False, one).net.state_dict()
    stop_after_one_epoch(tmp_path / "one then two", one)
    done = torchrun([Path(__file__).parent / "train_worker.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    train(tmp_path / "two then one", True, one)
    for name in ("two then one", "one then two"):
        saved = load_file(tmp_path / name / "model.safetensors")
        for key, weight in whole.items():
            assert float((saved[key] - weight).abs().max()) <= 1e-9 * float(weight.abs().max()), (name, key)
        rows, expected = table(tmp_path / name / "metrics.csv"), table(tmp_path / "one" / "metrics.csv")
        assert len(rows) == len(expected) == 2
        for row, wanted in zip(rows, expected, strict=True):
            for key in wanted:
                assert float(row[key]) == pytest.approx(float(wanted[key]), rel=1e-9), (name, key)
        results = [json.loads((tmp_path / n / "results.json").read_text()) for n in (name, "one")]
        assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_command(tmp_path: Path) -> None:
    """--devices 2: each file is written once, and said to be."""
    done = started([sys.executable, "-m", "odenet.train.cli", *QUICK, "--devices", "2", "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote:") == 1 and not done.stderr
    for file in done.stdout.split("Wrote:")[1].split():
        assert (tmp_path / file).is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_torchrun_and_compare(tmp_path: Path) -> None:
    words = ["-m", "odenet.train.cli", "compare", "digits", "--quick", "--out", "run"]
    done = torchrun(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote:") == 1 and done.stderr.count(": trained in") == 3
    assert len(table(tmp_path / "run" / "results.csv")) == 3


DYING = """
import os, signal, sys
from odenet.train import cli, module
def die(self, outputs, batch, number):
    if number == 1 and self.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
module.Module.on_train_batch_end = die
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_one_process_dies(by_torchrun: bool, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    words = ["dying.py", *QUICK, "--out", "run"]
    start = time.monotonic()
    if by_torchrun:
        done = torchrun(words, tmp_path, limit=100)
    else:
        done = started([sys.executable, *words, "--devices", "2"], tmp_path, limit=100)
    assert done.returncode != 0 and time.monotonic() - start < 90
    assert not (tmp_path / "run" / "results.json").exists()
    again = started([sys.executable, "-m", "odenet.train.cli", *words[1:], "--resume"], tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_one_process_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM to the first, while the other goes on to the next exchange of gradients."""
    told = DYING.replace("SIGKILL", "SIGTERM").replace("global_rank == 1", "global_rank == 0")
    (tmp_path / "told.py").write_text(told)
    done = started([sys.executable, "told.py", *QUICK, "--out", "run", "--devices", "2"], tmp_path, limit=100)
    assert done.returncode == 143 and "odenet: interrupted" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--devices", "0"], "--devices"),
        (["--nodes", "-1"], "--nodes"),
        (["--batch-size", "33", "--devices", "2"], "--batch-size 33 and 64 samples cannot be shared out"),
        (["--device", "cuda", "--devices", "3"], "--devices 3: PyTorch finds 2 CUDA"),
        (["--nodes", "2"], "MASTER_ADDR"),
    ],
)
def test_mistakes(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused([*QUICK, "--device", "cpu", "--out", str(tmp_path / "run"), *words], match, monkeypatch, capsys)
    assert not (tmp_path / "run" / "settings.json").exists()


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}, "but 3 are started"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "x"}, "but 4 are started"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}, "--ntasks-per-node"),
    ],
)
def test_launchers_have_their_say(
    variables: dict[str, str],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused([*QUICK, "--devices", "2", "--out", str(tmp_path / "run")], match, monkeypatch, capsys)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_parts_make_up_each_batch(processes: int) -> None:
    """The training batches are those of one process, and the data to validate on are each seen once."""
    task = Images(resolve_settings(Images, {"batch_size": 36}, Path("nowhere"), False))

    def batches(rank: int, of: int, split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = Data(task, of)
        data.trainer = SimpleNamespace(current_epoch=3, global_rank=rank)  # type: ignore[assignment]
        return list(data.train_dataloader() if split == "train" else data.val_dataloader())

    whole = batches(0, 1, "train")
    parts = [batches(rank, processes, "train") for rank in range(processes)]
    assert len(whole) == len(task.data("train", 3)) // 36  # type: ignore[arg-type]
    for number, (images, labels) in enumerate(whole):
        together = torch.cat([part[number][0].flatten(1) for part in parts])
        assert len(together) == 36
        assert torch.equal(together.sort(0).values, images.flatten(1).sort(0).values)
        assert torch.equal(torch.cat([part[number][1] for part in parts]).sort().values, labels.sort().values)
    held = torch.cat([labels for rank in range(processes) for _, labels in batches(rank, processes, "val")])
    assert torch.equal(held.sort().values, task.images.splits["val"][1].sort().values)
