"""The command line as a user meets it: runs, their files, and mistakes that end in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import odenet
import odenet.train
from command_line import call, default_dtype, refused
from odenet.train.images.data import Samples, load
from odenet.train.tasks.images import Images
from train.runs import Ended, run, table

__all__ = ["default_dtype"]


def test_train_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "images", "--quick", "--epochs", 3) == 0
    out = tmp_path / "runs" / "images"
    listed = [tmp_path / line.strip() for line in capsys.readouterr().out.split("Wrote:")[1].splitlines() if line]
    assert {path.name for path in listed} >= {"settings.json", "metrics.csv", "results.json", "model.safetensors"}
    assert all(path.is_file() for path in listed) and list((out / "tensorboard").glob("events.*"))
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["epoch=000001.ckpt", "epoch=000002.ckpt"]
    rows = table(out / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert float(row["nfe"]) > 5 and float(row["backward_nfe"]) > 5  # SolverStats
        assert 0 < float(row["val_loss"]) < 10 and 0 <= float(row["val_error"]) <= 100
    data = load("digits", "", 0, 0, True)
    net = odenet.train.load(out)
    images, labels = data.splits["test"]
    with torch.no_grad():
        wrong = (net(images).argmax(1) != labels).float().mean() * 100
    assert float(wrong) == pytest.approx(json.loads((out / "results.json").read_text())["test_error"])


@pytest.mark.slow
def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("compare", "digits", "--quick", "--out", tmp_path)
    assert call(monkeypatch, *words) == 0
    told = capsys.readouterr()
    for column in ("test error", "parameters", "block memory", "forward evaluations", "seconds a step"):
        assert column in told.out
    assert told.err.count(": trained in") == 3
    for name in ("training.png", "memory.png", "trade_off.png", "trajectories.png", "results.md", "results.csv"):
        assert f"{tmp_path}/{name}\n" in told.out and (tmp_path / name).is_file()
    rows = table(tmp_path / "results.csv")
    assert [row["net"] for row in rows] == ["resnet", "rknet", "odenet"]
    assert rows[1]["backward_nfe"] == "0" and int(rows[2]["backward_nfe"]) > 5 and rows[0]["nfe"] == "6"
    assert int(rows[1]["block_bytes"]) > int(rows[2]["block_bytes"])
    page = (tmp_path / "results.md").read_text()
    assert "odenet compare digits --quick" in page and "| ODE-Net |" in page and "![trade off](trade_off.png)" in page
    assert call(monkeypatch, *words, "--resume") == 0
    assert capsys.readouterr().err.count(": trained already") == 3
    assert table(tmp_path / "results.csv") == rows and "--resume" not in (tmp_path / "results.md").read_text()
    refused(["predict", str(tmp_path), __file__], "is a comparison: give one of its nets", monkeypatch, capsys)
    refused([*map(str, words), "--resume", "--lr", "0.1"], "lr=0.005 (now 0.1)", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["compare", "mnits"], "data 'mnits' is unknown"),
        (["compare", "mnist", "--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["compare", "digits", "--resume", "--out", "/no/such/run"], "holds no run"),
        (["compare", "digits", "--method", "euler"], "adaptive"),
        (["compare", "digits", "--device", "tpu"], "Known: cpu, cuda, mps, auto"),
        (["train", "imags"], "Did you mean 'images'"),
        (["train", "images", "--net", "odnet"], "resnet, rknet, odenet"),
        (["train", "images", "--method", "dopri"], "dopri5"),
        (["train", "images", "--epochs", "0"], "--epochs"),
        (["train", "images", "--nonsense"], "--nonsense"),
        (["train", "images", "--quick", "--data-dir", "x"], "--data-dir is for mnist"),
        (["bench", "gradients"], "in the source repository"),
        (["predict"], "argument"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(words, match, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


def test_out_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/inside"):
        words = ["train", "images", "--quick", "--out", str(tmp_path / name)]
        refused(words, str(tmp_path / "file"), monkeypatch, capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"odenet {odenet.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "odenet", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"odenet {odenet.__version__}\n"
    for words in (("compare",), ("train", "images")):
        assert call(monkeypatch, *words, "--help") == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Writes into --out" in shown and "--quick: " in shown and "mnist: " in shown
        for option in ("--seed", "--device", "--out", "--resume", "--channels", "--tolerance", "--devices"):
            assert option in shown
        assert "[default: 0.005]" in shown and "[default: bosh3]" in shown
    for words in (("predict",), ("export",), ("bench",), ("train",), ()):
        assert call(monkeypatch, *words, "--help") == 0
        assert "Usage" in capsys.readouterr().out


def test_mnist_has_defaults_of_its_own() -> None:
    from odenet.train.run import resolve_settings

    settings = resolve_settings(Images, {"data": "mnist", "lr": 0.1}, Path("nowhere"), False)
    assert (settings.epochs, settings.channels, settings.lr) == (8, 64, 0.1)
    assert resolve_settings(Images, {"data": "mnist", "quick": True}, Path("nowhere"), False).channels == 8


def test_bench_starts_the_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    ended = run("bench", "peers", "--only", "mlp", cwd=tmp_path)
    assert (ended.code, ended.out) == (3, "['peers', '--only', 'mlp']\n"), ended.err


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    out = tmp_path / "run"
    assert call(monkeypatch, "train", "images", "--quick", "--tolerance", "1e-3", "--out", out) == 0
    assert call(monkeypatch, "export", out) == 0
    shown = capsys.readouterr().out
    assert "model.pt2" in shown and "model.onnx" in shown
    about = json.loads((out / "model.json").read_text())
    assert about["classes"] == [str(i) for i in range(10)] and about["input_shape"] == ["batch", 1, 8, 8]
    assert all(0 <= value <= 1e-3 for value in about["difference"].values())
    image, _ = Samples(*load("digits", "", 0, 0, True).splits["test"])[0]
    images = torch.stack([image] * 5)
    with torch.no_grad():
        wanted = odenet.train.load(out)(images)
        given = torch.export.load(out / "model.pt2").module()(images)
    assert float((given - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())


def test_export_of_a_wrong_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    assert call(monkeypatch, "train", "images", "--quick", "--net", "resnet", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    monkeypatch.setattr("odenet.train.export._run_onnx", lambda model, x: torch.zeros(len(x), 10))
    refused(["export", str(tmp_path / "run")], "model.onnx differs from the network by 1.0e+00", monkeypatch, capsys)
    assert not (tmp_path / "run" / "model.pt2").exists()
    monkeypatch.setattr("odenet.train.export.find_spec", lambda name: None)
    refused(["export", str(tmp_path / "run")], 'pip install "torch-odenet[onnx]"', monkeypatch, capsys)


DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.slow
def test_the_task_of_the_page(tmp_path: Path) -> None:
    """It is one file and one line, trains, learns, resumes and exports."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "add_task.md").read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "(Task)" in block]
    (tmp_path / "oscillator.py").write_text(source)
    (tmp_path / "start.py").write_text(
        'from odenet.train.tasks import TASKS\nTASKS["oscillator"] = "oscillator:Oscillator"\n'
        "from odenet.train import cli\ncli.main()\n"
    )
    start = [sys.executable, "start.py"]

    def started(*words: str) -> Ended:
        done = subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    shown = started("train", "oscillator", "--help")
    assert "--hidden" in shown.out and "--quick" in shown.out, shown.err
    ended = started("train", "oscillator", "--epochs", "12", "--out", "run")
    assert ended.code == 0, ended.err
    rows = table(tmp_path / "run" / "metrics.csv")
    assert float(rows[-1]["val_loss"]) < 0.2 * float(rows[0]["val_loss"]) and float(rows[0]["nfe"]) > 0
    assert (tmp_path / "run" / "paths.png").is_file()
    assert started("train", "oscillator", "--out", "run", "--resume").code == 0
    started("predict", "run", "start.py").one_line("makes no predictions")


def test_the_page_loads_a_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "odenet.train.load" in block]
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "images", "--quick") == 0
    exec(compile(block, "docs/training.md", "exec"), {})


def test_interrupted_at_the_start() -> None:
    """Ctrl-C while torch is being imported."""
    # a process that was started in the background inherits that Ctrl-C is ignored
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{listen}; import odenet_command; print('ready', flush=True); odenet_command.main()"
    words = [sys.executable, "-c", start, "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.startswith("odenet: interrupted") and err.count("\n") == 1, err
