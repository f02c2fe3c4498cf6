"""The table of a folder: all nets that were trained there, for the epochs that they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from command_line import call, refused
from odenet.train import compare, runner
from odenet.train.data import load
from train.runs import table


def words(net: str, out: Path, *more: object) -> list[str]:
    return ["train", net, "--quick", "--out", str(out), *map(str, more)]


def test_two_nets_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words("odenet", tmp_path)) == 0
    (row,) = table(tmp_path / "results.csv")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    capsys.readouterr()
    refused(
        words("resnet", tmp_path, "--channels", 16),
        "channels=8 (now 16); use those, or another --out",
        monkeypatch,
        capsys,
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    assert call(monkeypatch, *words("resnet", tmp_path)) == 0
    told = capsys.readouterr()
    assert "ResNet: trained in" in told.err and "ODE-Net: trained already" in told.err
    assert "odenet/last.ckpt" not in told.out and "resnet/last.ckpt" in told.out
    both = table(tmp_path / "results.csv")
    assert [r["net"] for r in both] == ["resnet", "odenet"] and both[1] == row
    page = (tmp_path / "results.md").read_text()
    assert "| ResNet |" in page and "| ODE-Net |" in page and "ODE-Net: trained by an earlier command" in page
    assert before[tmp_path / "settings.json"] == (tmp_path / "settings.json").read_bytes()

    assert call(monkeypatch, *words("resnet", tmp_path, "--resume")) == 0
    told = capsys.readouterr()
    assert "ResNet: trained already" in told.err and "last.ckpt" not in told.out
    assert table(tmp_path / "results.csv") == both
    assert "--resume" not in (tmp_path / "results.md").read_text()


def test_the_page_builds_the_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words("odenet", Path("runs/digits"), "--method", "dopri5")) == 0
    made: dict[str, Any] = {}
    exec(compile(block, "docs/training.md", "exec"), made)
    (row,) = table(Path("runs/digits/results.csv"))
    assert compare.test_error(made["net"], load("digits", None).small()) == float(row["test_error_percent"])


def test_a_net_that_is_not_trained_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays as it is, and is no part of another one's table."""
    assert call(monkeypatch, *words("rknet", tmp_path, "--epochs", 2)) == 0
    last, previous = (tmp_path / "rknet" / name for name in ("last.ckpt", "previous.ckpt"))
    previous.replace(last)
    assert call(monkeypatch, *words("resnet", tmp_path, "--epochs", 2)) == 0
    assert "RK-Net: begun" in capsys.readouterr().err
    assert [r["net"] for r in table(tmp_path / "results.csv")] == ["resnet"]
    assert call(monkeypatch, *words("rknet", tmp_path, "--epochs", 2, "--resume")) == 0
    assert [r["net"] for r in table(tmp_path / "results.csv")] == ["resnet", "rknet"]


def test_an_early_stop_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 1)
    assert call(monkeypatch, *words("resnet", tmp_path, "--epochs", 50, "--lr", 1e-8)) == 0
    epochs = len(runner.history(tmp_path, "resnet"))
    assert epochs < 50 and f"; stopped after {epochs} of 50 epochs, the last " in capsys.readouterr().err
    assert (
        f"at most 50 epochs, run until the validation error stopped falling (ResNet {epochs}), batch"
        in (tmp_path / "results.md").read_text()
    )
