"""The command line as a user meets it: a smoke run, a resume to the same result, and mistakes that end in one line."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import odenet
from command_line import call, refused
from odenet.train import files, interrupt, runner
from odenet.train.data import Batches, load, read_idx
from odenet.train.problems import UserError
from odenet.train.tasks import Settings


def test_quick_run_then_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "train", "odenet", "--quick", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    for name in ("results.md", "training.png", "memory.png", "trade_off.png", "trajectories.png", "last.ckpt"):
        assert name in shown
    assert (tmp_path / "odenet" / "metrics.csv").read_text().startswith("epoch,")
    assert call(monkeypatch, "train", "odenet", "--quick", "--out", tmp_path) == 2
    assert "--resume" in capsys.readouterr().err
    assert call(monkeypatch, "train", "odenet", "--quick", "--out", tmp_path, "--resume", "--lr", "0.5") == 2
    assert "other settings" in capsys.readouterr().err
    last = tmp_path / "odenet" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:500])
    assert call(monkeypatch, "train", "odenet", "--quick", "--out", tmp_path, "--resume") == 2
    message = capsys.readouterr().err
    assert "not a usable checkpoint" in message and message.count("\n") == 1


def settings(epochs: int) -> Settings:
    return Settings("digits", epochs, 32, 8, 1e-2, 1e-2, 1e-2, "bosh3", 0, True)


def test_resume_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits", None).small()
    whole = runner.train("odenet", data, settings(3), tmp_path / "a", False, "cpu")
    save = runner.EpochCheckpoint.on_train_epoch_end

    def stop_after_first(self: runner.EpochCheckpoint, trainer: object, module: object) -> None:
        save(self, trainer, module)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner.EpochCheckpoint, "on_train_epoch_end", stop_after_first)
    with pytest.raises(UserError, match="intact"):
        runner.train("odenet", data, settings(3), tmp_path / "b", False, "cpu")
    monkeypatch.undo()
    resumed = runner.train("odenet", data, settings(3), tmp_path / "b", True, "cpu")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert len(runner.history(tmp_path / "b", "odenet")) == 3


def test_early_stop_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stopped for want of progress is not taken up again."""
    data = load("digits", None).small()
    monkeypatch.setattr(runner, "PATIENCE", 1)
    stopped = runner.train("resnet", data, replace(settings(50), lr=1e-8), tmp_path, False, "cpu")
    epochs = len(runner.history(tmp_path, "resnet"))
    assert 2 <= epochs < 50
    again = runner.train("resnet", data, replace(settings(50), lr=1e-8), tmp_path, True, "cpu")
    assert len(runner.history(tmp_path, "resnet")) == epochs
    for a, b in zip(stopped.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("limit", [60, 30_000])
def test_no_room_for_files(tmp_path: Path, limit: int) -> None:
    """The system refuses to write more than `limit` bytes: met by the log's thread, or by the checkpoint."""
    code = (
        "import resource, sys; from odenet.train.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        f"sys.argv = ['odenet', 'train', 'resnet', '--quick', '--out', {str(tmp_path / 'run')!r}]; main()"
    )
    # a process whose coverage is measured writes that too
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("odenet: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.partial"))


def test_full_disk_keeps_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.md"
    files.write(path, "good")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "good" and [p.name for p in tmp_path.iterdir()] == ["results.md"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["compare", "mnits"], "Did you mean 'mnist'"),
        (["compare", "mnist", "--data-dir", "/no/such/folder"], "not a folder"),
        (["compare", "digits", "--resume", "--out", "/no/such/run"], "holds no run"),
        (["compare", "digits", "--method", "euler"], "adaptive"),
        (["compare", "digits", "--device", "tpu"], "cpu or cuda"),
        (["train", "resnett"], "Did you mean 'resnet'"),
        (["train", "resnet", "--quick", "--out", ""], "--out is empty"),
        (["compare", "digits", "--quick", "--data-dir", "x"], "digits are embedded"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(words, match, monkeypatch, capsys)


def test_options_without_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--quick", "--out", tmp_path, "--per-sample", "--method", "dopri5")
    assert call(monkeypatch, "train", "resnet", *words) == 0
    told = "odenet: resnet solves no ODE: --method, --per-sample without effect\n"
    assert capsys.readouterr().err.startswith(told)
    assert call(monkeypatch, "train", "odenet", *words) == 0  # whose settings are those of the folder
    assert "without effect" not in capsys.readouterr().err


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"odenet {odenet.__version__}\n"
    for name in ("compare", "train"):
        assert call(monkeypatch, name, "--help") == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "(default: 30 for digits, 8 for mnist, 1 with --quick)" in shown
        assert "(default: bosh3)" in shown and "(default: 0.005 for digits, 0.003 for mnist)" in shown
        assert f"ends after {runner.PATIENCE} in a row" in shown
        small = load("digits", None).small()
        images = f"{len(small.train)} training images, {len(small.val)} to validate, {len(small.test)} to test"
        assert images in shown


def test_the_reason_of_a_failed_download_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Max retries exceeded with url: /mnist (Caused by NameResolutionError) " * 20

    def fetch(*_: object, **__: object) -> str:
        raise OSError(words)

    monkeypatch.setattr("pooch.Pooch.fetch", fetch)
    with pytest.raises(UserError, match="--data-dir") as error:
        load("mnist", None)
    told = str(error.value).split("fetched (")[1].split(" ...)")[0]
    assert 300 < len(told) < 400 and told.split()[-1] in words.split()


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_out_is_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert call(monkeypatch, "train", "resnet", "--quick", "--out", tmp_path / name) == 2
    message = capsys.readouterr().err
    assert "choose --out" in message and message.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


def test_idx_files(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    good = struct.pack(">4I", 2051, 3, 2, 2) + pixels.tobytes()
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(good))
    assert np.array_equal(read_idx(path), pixels)
    for bad in (good[:-1], good + b"x", b"", b"\x00\x00\x08\x05" + good[4:], gzip.compress(good)[:-9]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"images\.gz"):
            read_idx(path)


def test_batches_follow_from_the_seed() -> None:
    split = load("digits", None).train
    first, second = ([labels.tolist() for _, labels in Batches(split, 64, seed=s, shift=1)] for s in (1, 1))
    assert first == second != [labels.tolist() for _, labels in Batches(split, 64, seed=2, shift=1)]


def test_what_an_interruption_says(tmp_path: Path) -> None:
    """--resume is spoken of where it would find something."""
    with interrupt.stoppable():
        assert interrupt.line() == "odenet: interrupted"
        interrupt.run_in(tmp_path)
        assert interrupt.line() == "odenet: interrupted"
        (tmp_path / "settings.json").write_text("{}")
        assert "goes on with --resume" in interrupt.line()
