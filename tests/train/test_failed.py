"""A training that cannot go on ends in one line that names the option to change, and keeps its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import call, refused
from odenet.errors import MaxStepsError, NonFiniteError
from odenet.train import compare, runner
from odenet.train.data import ImageData, load
from odenet.train.failed import hint
from odenet.train.problems import UserError
from odenet.train.processes import Processes
from odenet.train.tasks import Settings, Task

SETTINGS = Settings("digits", 2, 32, 8, 5e-3, 1e-2, 1e-2, "bosh3", 0, True)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits", None).small()


@pytest.mark.parametrize(
    ("net", "change", "match"),
    [
        ("odenet", {"lr": 1e9}, r"^ODE-Net, epoch 1, \d training steps done: The solve failed .* lower --lr"),
        pytest.param(
            "odenet",
            {"rtol": 1e-12, "atol": 1e-12},
            r"^ODE-Net, epoch 1, .* max_steps=10000 .* Raise --tolerance",
            marks=pytest.mark.slow,
        ),
        ("resnet", {"lr": 1e9}, r"^ResNet, epoch 1, 4 .* loss is not finite \(nan\), training diverged: lower --lr"),
    ],
)
def test_what_is_said(net: str, change: dict[str, float], match: str, tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(UserError, match=match) as error:
        runner.train(net, data, replace(SETTINGS, **change), tmp_path, False, "cpu")
    assert str(error.value).endswith("no epoch was saved yet; start anew")


def test_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "resnet", "--quick", "--lr", "1e9", "--out", str(tmp_path)]
    refused(words, "training diverged: lower --lr", monkeypatch, capsys)


@pytest.mark.parametrize("net", ["resnet", "odenet"])
def test_weights_that_go_bad_are_not_kept(
    net: str, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of the second epoch spoils them: the loss of that epoch is still finite."""
    real = Task.on_train_batch_end

    def spoil(self: Task, outputs: object, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        real(self, outputs, batch, batch_idx)
        if self.trainer.current_epoch == 1 and batch_idx == 3:
            next(self.net.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Task, "on_train_batch_end", spoil)
    with pytest.raises(UserError, match=r"epoch 2, 8 .* not finite any more, training diverged: lower --lr") as error:
        runner.train(net, data, SETTINGS, tmp_path, False, "cpu")
    assert "last.ckpt, is intact; start anew with another --out" in str(error.value)
    monkeypatch.undo()
    found = runner.prepare(net, data, SETTINGS, tmp_path, True, Processes()).found
    assert found is not None and found.state["epoch"] == 0
    assert all(t.isfinite().all() for t in found.state["state_dict"].values() if t.is_floating_point())
    assert len(runner.history(tmp_path, net)) == 1


def test_hints() -> None:
    net = torch.nn.Linear(1, 1)
    where = {"t": 0.0, "dt": 0.1, "sample": None, "component": "y[0]"}
    assert "--tolerance" in hint(MaxStepsError("", **where), net)
    assert "diverged" in hint(NonFiniteError("", **where), net)
    net.weight.data.fill_(float("inf"))
    assert "not finite any more" in hint(MaxStepsError("", **where), net)


def test_a_solve_that_fails_in_the_figures(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MaxStepsError("too many", t=0.0, dt=0.1, sample=None, component="y[0]")

    monkeypatch.setattr(compare, "figures", fails)
    with pytest.raises(UserError, match=r"the nets are trained, but .* too many .*--tolerance"):
        compare.run(["resnet"], data, SETTINGS, tmp_path, False, Processes(), "odenet")


@pytest.mark.parametrize(
    ("option", "value"), [("--lr", "inf"), ("--lr", "nan"), ("--tolerance", "inf"), ("--seed", "99999999999999999999")]
)
def test_values_out_of_range(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "train", "resnet", "--quick", option, value) == 2
    message = capsys.readouterr().err
    assert option in message and "Traceback" not in message
