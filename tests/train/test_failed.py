"""A training that cannot go on ends in one line that names the option to change, and keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from command_line import call, default_dtype, refused
from odenet.errors import MaxStepsError, NonFiniteError
from odenet.train.checkpoint import newest
from odenet.train.module import Module
from odenet.train.run import _hint

__all__ = ["default_dtype"]


def words(out: Path, *more: object) -> list[str]:
    return ["train", "images", "--quick", "--out", str(out), *map(str, more)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--lr", 1e9), "epoch 1, "),
        (("--lr", 1e9), "--tolerance; no epoch was saved yet"),
        (("--net", "resnet", "--lr", 1e9), "epoch 1, 4 training steps done: train_loss is nan"),
        pytest.param(("--tolerance", 1e-13), "Raise --tolerance", marks=pytest.mark.slow),
    ],
)
def test_what_is_said(
    options: tuple[object, ...],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(words(tmp_path / "run", *options), match, monkeypatch, capsys)


@pytest.mark.parametrize("net", ["resnet", "odenet"])
def test_weights_that_go_bad_are_not_kept(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step of the second epoch spoils them: the loss of that epoch is still finite."""

    def spoil(self: Module, outputs: object, batch: object, batch_idx: int) -> None:
        if self.current_epoch == 1 and batch_idx == 3:
            next(self.net.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Module, "on_train_batch_end", spoil)
    refused(
        words(tmp_path, "--net", net, "--epochs", 2),
        "not finite any more: training diverged, lower --lr" if net == "resnet" else "training diverged",
        monkeypatch,
        capsys,
    )
    found = newest(tmp_path / "checkpoints")
    assert found is not None and found[1]["epoch"] == 0
    assert all(t.isfinite().all() for t in found[1]["state_dict"].values())
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_hints() -> None:
    net = torch.nn.Linear(1, 1)
    where = {"t": 0.0, "dt": 0.1, "sample": None, "component": "y[0]"}
    assert "--tolerance" in _hint(MaxStepsError("", **where), net)
    assert "--lr" in _hint(NonFiniteError("", **where), net)
    net.weight.data.fill_(float("inf"))
    assert "not finite any more" in _hint(MaxStepsError("", **where), net)


def test_a_solve_that_fails_in_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise MaxStepsError("too many", t=0.0, dt=0.1, sample=None, component="y[0]")

    monkeypatch.setattr("odenet.train.images.image_figures.trade_off", fails)
    assert call(monkeypatch, "compare", "digits", "--quick", "--out", tmp_path) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the nets are trained, but" in told and "too many" in told
    assert (tmp_path / "odenet" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--lr", "inf"), ("--lr", "nan"), ("--tolerance", "inf"), ("--seed", "99999999999999999999")]
)
def test_values_out_of_range(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    refused(words(tmp_path / "run", option, value), option, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()
