"""`odenet train` in several processes: the run of one process, files from one of them, mistakes and deaths that end."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import pytest
import torch

from command_line import refused
from distributed.launch import started, torchrun
from distributed.train_worker import stop_after_one_epoch, train
from odenet.train.data import Batches, load
from odenet.train.processes import Part, Processes

ONE = Processes()


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "odenet" / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_resume_on_another_number_of_processes(tmp_path: Path) -> None:
    """2 -> 1 and 1 -> 2: the numbers of one process to rounding."""
    whole = train(tmp_path / "one", False, ONE).state_dict()
    stop_after_one_epoch(tmp_path / "one then two", ONE)
    done = torchrun([Path(__file__).parent / "train_worker.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    train(tmp_path / "two then one", True, ONE)
    for name in ("two then one", "one then two"):
        saved = torch.load(tmp_path / name / "odenet" / "last.ckpt", weights_only=True)["state_dict"]
        for key, weight in whole.items():
            assert float((saved[key] - weight).abs().max()) <= 1e-9 * float(weight.abs().max()), (name, key)
        rows, expected = metrics(tmp_path / name), metrics(tmp_path / "one")
        assert len(rows) == len(expected) == 2
        for row, wanted in zip(rows, expected, strict=True):
            for key in ("epoch", "nfe", "backward_nfe", "val_error", "train_loss"):
                assert row[key] == pytest.approx(wanted[key], rel=1e-9), (name, key)


def test_command(tmp_path: Path) -> None:
    """--devices 2: each file is written once, and said to be."""
    words = ["train", "resnet", "--quick", "--devices", "2", "--out", str(tmp_path / "run")]
    done = started([sys.executable, "-m", "odenet.train.cli", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote:") == 1 and done.stderr.count("trained in") == 1
    for file in done.stdout.split("Wrote:")[1].split():
        assert (tmp_path / file).is_file()
    assert len(list((tmp_path / "run").rglob("events.*"))) == 1 and not list(tmp_path.rglob("*.partial"))


DYING = """
import os, signal, sys
from odenet.train import cli, tasks
after = tasks.Task.on_train_batch_end
def die(self, outputs, batch, number):
    if number == 1 and self.trainer.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    after(self, outputs, batch, number)
tasks.Task.on_train_batch_end = die
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_one_process_dies(by_torchrun: bool, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    words = ["dying.py", "train", "resnet", "--quick", "--out", "run"]
    start = time.monotonic()
    if by_torchrun:
        done = torchrun(words, tmp_path, limit=100)
    else:
        done = started([sys.executable, *words, "--devices", "2"], tmp_path, limit=100)
        assert done.returncode == 2 and "odenet: another process of this run has ended" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert done.returncode != 0 and time.monotonic() - start < 90
    assert not (tmp_path / "run" / "results.md").exists()


def test_one_process_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM to the first, while the other goes on to the next exchange of gradients."""
    (tmp_path / "told.py").write_text(
        DYING.replace("SIGKILL", "SIGTERM").replace("global_rank == 1", "global_rank == 0")
    )
    words = ["told.py", "train", "resnet", "--quick", "--out", "run", "--devices", "2"]
    done = started([sys.executable, *words], tmp_path, limit=100)
    assert done.returncode == 143 and "odenet: interrupted" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--devices", "0"], "--devices 0: at least 1"),
        (["--nodes", "-1"], "--nodes -1: at least 1"),
        (["--devices", "40", "--batch-size", "39"], "less than the 40 processes"),
        (["--device", "cuda", "--devices", "3"], "--devices 3: PyTorch finds 2 CUDA"),
        (["--nodes", "2"], "MASTER_ADDR"),
    ],
)
def test_mistakes(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(["train", "resnet", "--out", str(tmp_path / "run"), *words], match, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}, "torchrun has started 3"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "x"}, "Slurm has started 4"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}, "--ntasks-per-node"),
    ],
)
def test_launchers_have_their_say(
    variables: dict[str, str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(["train", "resnet", "--devices", "2"], match, monkeypatch, capsys)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_parts_make_up_each_batch(processes: int) -> None:
    data = load("digits", None)
    whole = list(Batches(data.train, 33, seed=5, shift=1))
    parts = [list(Batches(data.train, 33, seed=5, shift=1, part=Part(i, processes))) for i in range(processes)]
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(images, torch.cat([p[number][0] for p in parts]))
        assert torch.equal(labels, torch.cat([p[number][1] for p in parts]))
    assert sum(Batches(data.train, 33, seed=5).weight(len(p[0][1])) for p in parts) == pytest.approx(1.0)
    held = [list(Batches(data.val, 16, part=Part(i, processes))) for i in range(processes)]
    assert torch.equal(data.val.labels, torch.cat([labels for part in held for _, labels in part]))
