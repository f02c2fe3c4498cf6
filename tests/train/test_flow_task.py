"""The task `flow`: its numbers against closed forms, SciPy and scikit-learn; its files; its mistakes in one line."""

from __future__ import annotations

import csv
import json
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import odenet
import odenet.train
from command_line import call, default_dtype, refused
from odenet.train.flows import baselines as of_baselines
from odenet.train.flows import flow_model
from odenet.train.flows.baselines import NAMES, Rows, baselines, gaussian, kernel_density
from odenet.train.flows.density_data import load_density
from odenet.train.tasks.flow import Flow, FlowSettings
from train.runs import ForkServer, assert_same, table

__all__ = ["default_dtype"]

QUICK = FlowSettings(quick=True, hidden=8, depth=1, epochs=1, batch_size=64, baselines="none")
FLOW = ("train", "flow", "--quick", "--baselines", "none")


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as made:
        yield made


def rows_of(path: Path, name: str = "data.csv", n: int = 300) -> Path:
    """A table: two dependent columns far from standard, and one of whole numbers."""
    chance = np.random.default_rng(0)
    a = 100 + 7 * chance.standard_normal(n)
    columns = {"weight": a, "length": 0.02 * a + 0.3 * chance.standard_normal(n), "count": chance.poisson(4, n)}
    lines = [
        ",".join(columns),
        *(",".join(f"{value:.17g}" for value in row) for row in zip(*columns.values(), strict=True)),
    ]
    file = path / name
    file.write_text("\n".join(lines) + "\n")
    return file


def standard_normal(net: torch.nn.Module) -> None:
    """Weights of zero: the flow is the base distribution."""
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()


def test_what_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("zuko")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "flow", "--quick", "--data", "8gaussians") == 0
    shown = capsys.readouterr().out
    listed = [tmp_path / line.strip() for line in shown.split("Wrote:")[1].splitlines() if line]
    assert all(path.is_file() for path in listed)
    names = {path.name for path in listed}
    assert names >= {"density.png", "flow.gif", "comparison.md", "comparison.csv", "comparison.json"}
    with Image.open(tmp_path / "runs" / "flow" / "flow.gif") as animation:
        assert animation.n_frames == 9
    rows = table(tmp_path / "runs" / "flow" / "comparison.csv")
    models = ["continuous flow (CNF)", *NAMES.values(), "the density itself"]
    assert [row["model"] for row in rows] == models and all(model in shown for model in models)
    nll = {row["model"]: float(row["test_nll"]) for row in rows}
    assert nll["the density itself"] == min(nll.values())
    data = load_density("8gaussians", quick=True)
    assert data.toy is not None and data.toy.log_prob is not None
    assert nll["the density itself"] == pytest.approx(-float(data.toy.log_prob(data.splits["test"]).mean()))
    # the flow's number, by an accurate solve in float64 with a trace from autograd
    loaded: Any = odenet.train.load(tmp_path / "runs" / "flow")
    assert loaded.log_prob(data.splits["test"]).mean() == pytest.approx(-nll[models[0]], abs=1e-4)
    assert loaded.sample((2, 3)).shape == (2, 3, 2)
    net = loaded.flow.double()
    assert isinstance(net, odenet.nn.CNF)
    flow = odenet.nn.CNF(lambda t, x: net.field(t, x), event_shape=(2,), method="dopri8", rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        exact = -float(flow.log_prob(data.splits["test"]).mean())
    results = json.loads((tmp_path / "runs" / "flow" / "results.json").read_text())
    assert nll[models[0]] == pytest.approx(exact, abs=1e-4) and results["test_nll"] == pytest.approx(exact, abs=1e-4)
    errors = [float(row["standard_error"]) for row in rows]
    assert all(0.0 <= error < 1.0 for error in errors)
    page = (tmp_path / "runs" / "flow" / "comparison.md").read_text()
    assert f"| continuous flow (CNF) | {rows[0]['parameters']} | {exact:.3f} |" in page


@pytest.mark.parametrize("model", ["cnf", "matching"])
def test_units_of_a_flow_that_is_a_normal(model: str, tmp_path: Path) -> None:
    """With a field of zero, in the data's units: a normal of the mean and deviation of the rows to train on."""
    from scipy.stats import norm

    task = Flow(replace(QUICK, data=str(rows_of(tmp_path)), model=model))
    net = task.build(task.settings, task.info).eval()
    standard_normal(net)
    train, test = (task.density.in_data_units(split).numpy() for split in ("train", "test"))
    normal = norm(train.mean(0), train.std(0))
    metrics = task.metrics()
    task.loss(net, (task.density.samples("test"),), metrics)
    assert set(metrics) == {"nll"}
    assert float(metrics["nll"].compute()) == pytest.approx(-normal.logpdf(test).sum(1).mean(), rel=1e-5)
    rows = task.density.splits["test"]
    middle = rows.numpy() + np.array([0.0, 0.0, 0.5])  # of the interval of the noise
    np.testing.assert_allclose(flow_model.nats(net, task.info, rows), normal.logpdf(middle).sum(1), rtol=1e-5)
    drawn = flow_model.samples(net, task.info, 20_000).numpy()
    expected = train.mean(0) - [0.0, 0.0, 0.5]
    assert (np.abs(drawn.mean(0) - expected) < 4 * train.std(0) / math.sqrt(20_000)).all()
    np.testing.assert_allclose(drawn.std(0), train.std(0), rtol=0.03)
    assert (drawn[:, 2] == drawn[:, 2].round()).all() and (drawn[:, 0] != drawn[:, 0].round()).any()


def test_bits_and_pixels_of_digits() -> None:
    task = Flow(replace(QUICK, data="digits", model="matching"))
    torch.manual_seed(0)
    net, metrics = task.build(task.settings, task.info).eval(), task.metrics()
    z = task.density.samples("test")[:50]
    loss = task.loss(net, (z,), metrics)
    nll, bits = (float(metrics[name].compute()) for name in ("nll", "bits_per_dim"))
    assert bits == pytest.approx(nll / (64 * math.log(2)), rel=1e-5)  # a quantum is 1
    torch.rand(7)
    assert torch.equal(task.loss(net, (z,), metrics), loss)  # validation draws the same times and noise
    pixels = flow_model.samples(net, task.info, 100)
    assert pixels.shape == (100, 64) and set(pixels.unique().tolist()) <= set(range(17)) and pixels.max() == 16
    with pytest.raises(odenet.train.UserError, match="row 1 of column 'pixel 0,1' is 40: give it from 0 to 16"):
        flow_model.nats(net, task.info, torch.tensor([[0.0, 40.0] + [0.0] * 62]))


def test_regularisers_are_in_the_training_loss_alone() -> None:
    plain, weighted = (Flow(replace(QUICK, data="moons", kinetic=k)) for k in (0.0, 3.0))
    torch.manual_seed(0)
    net = weighted.build(weighted.settings, weighted.info)
    metrics, z = weighted.metrics(), (weighted.density.samples("test"),)
    assert isinstance(net, odenet.nn.CNF)
    kinetic = float(net.log_prob_and_penalties(*z)[1]["kinetic"].mean().detach())
    trained = float(weighted.loss(net.train(), z, metrics).detach())
    assert trained == pytest.approx(float(metrics["nll"].compute()) + 3.0 * kinetic, rel=1e-5) and kinetic > 1e-3
    assert float(weighted.loss(net.eval(), z, metrics)) == pytest.approx(trained - 3.0 * kinetic, abs=0.02)
    assert float(plain.loss(net, z, metrics)) == float(weighted.loss(net, z, metrics))


def gaussian_rows(test: Tensor | None = None) -> Rows:
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[3.0, 0.0], [1.0, 0.2]])
    train, val, held = (torch.randn(n, 2, generator=generator) @ mix.T + 5.0 for n in (1000, 400, 400))
    return Rows(lambda epoch: train, val, held if test is None else test, 100, 3, 0)


def test_gaussian_and_kernels_against_scipy_and_scikit_learn() -> None:
    from scipy.stats import multivariate_normal
    from sklearn.neighbors import KernelDensity

    rows = gaussian_rows()
    train, val, test = (x.double().numpy() for x in (rows.train(0), rows.val, rows.test))
    normal, kernels = baselines(["gaussian", "kde"], rows)
    wanted = multivariate_normal(train.mean(0), np.cov(train.T, bias=True)).logpdf(test)
    np.testing.assert_allclose(normal.log_prob, wanted, rtol=1e-4, atol=1e-4)
    assert normal.parameters == 5
    std = train.std(0)
    fits = [KernelDensity(bandwidth=h).fit(train / std) for h in np.logspace(-2.0, 0.4, 25)]
    best = max(fits, key=lambda fit: fit.score(val / std))
    np.testing.assert_allclose(kernels.log_prob, best.score_samples(test / std) - np.log(std).sum(), atol=2e-3)


def test_fitted_densities_are_those_of_a_normal() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 2) @ torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    train, val = rows[:3000], rows[3000:]
    entropy = 1 + math.log(2 * math.pi) + math.log(2.0)
    assert float(-gaussian(train)(val).mean()) == pytest.approx(entropy, abs=0.05)
    assert float(-kernel_density(train, val)(val).mean()) == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize("name", list(NAMES))
def test_baselines_are_densities(name: str) -> None:
    """They integrate to one in the units of the data, and learn what a Gaussian is."""
    if name in ("coupling", "spline"):
        pytest.importorskip("zuko")
    across, up = torch.linspace(-20, 30, 301), torch.linspace(-1, 11, 301)
    (on_grid,) = baselines([name], gaussian_rows(torch.cartesian_prod(across, up)))
    cell = float((across[1] - across[0]) * (up[1] - up[0]))
    assert float(on_grid.log_prob.exp().sum()) * cell == pytest.approx(1.0, abs=0.02)
    held = gaussian_rows()
    (again,) = baselines([name], held)
    independent = sum(0.5 * math.log(2 * math.pi * math.e * float(held.train(0)[:, i].var())) for i in (0, 1))
    assert -float(again.log_prob.mean()) < independent + 0.25
    (twice,) = baselines([name], held)
    assert torch.equal(again.log_prob, twice.log_prob)


def test_without_zuko(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(of_baselines, "find_spec", lambda name: None)
    words = ("train", "flow", "--quick", "--baselines", "gaussian,spline", "--out", tmp_path)
    assert call(monkeypatch, *words) == 0
    assert 'spline flow left out, zuko is missing: pip install "torch-odenet[flows]"\n' in capsys.readouterr().err
    assert len(table(tmp_path / "comparison.csv")) == 2


def test_sample_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file, run = rows_of(tmp_path), tmp_path / "run"
    assert call(monkeypatch, *FLOW, "--data", file, "--model", "matching", "--out", run) == 0
    assert (run / "marginals.png").is_file()
    for name in ("a.csv", "a.npy", "a.parquet"):
        assert call(monkeypatch, "sample", run, "--n", 30, "--out", tmp_path / name) == 0
    with (tmp_path / "a.csv").open(newline="") as text:
        header, *lines = csv.reader(text)
    array = np.load(tmp_path / "a.npy")
    assert header == ["weight", "length", "count"] and array.shape == (30, 3)
    np.testing.assert_allclose(np.array(lines, dtype=float), array, rtol=1e-9)
    stored: Any = parquet.read_table(tmp_path / "a.parquet")
    assert stored.column_names == header and (np.stack([c.to_numpy() for c in stored.columns], 1) == array).all()
    for name, words in {"b": ("--seed", 1), "c": ("--method", "dpmpp_2m", "--steps", 40)}.items():
        assert call(monkeypatch, "sample", run, "--n", 30, "--out", tmp_path / f"{name}.npy", *words) == 0
    b, c = (np.load(tmp_path / f"{name}.npy") for name in "bc")
    spread = array.std(0)
    assert (np.abs(c - array)[:, :2] < 0.2 * spread[:2]).all() and (np.abs(b - array).max(0) > spread).all()
    # one row with the columns in another order, and one that is far away
    (tmp_path / "few.csv").write_text("count,name,weight,length\n4,x,100,2\n4,y,160,2\n")
    capsys.readouterr()
    assert call(monkeypatch, "predict", run, tmp_path / "few.csv", "--out", tmp_path) == 0
    near, far = table(tmp_path / "predictions.csv")
    assert (near["row"], far["row"]) == ("1", "2") and float(far["nats"]) < float(near["nats"]) - 5
    known = load_density(str(file)).splits["test"][:3]
    np.savetxt(tmp_path / "same.csv", known.numpy(), header="weight,length,count", delimiter=",", comments="")
    assert call(monkeypatch, "predict", run, tmp_path / "same.csv", "--out", tmp_path) == 0
    task = Flow(replace(QUICK, data=str(file)))
    loaded: Any = odenet.train.load(run)
    wanted = flow_model.nats(loaded.flow, task.info, known)
    assert torch.equal(loaded(known), loaded.log_prob(known)) and torch.allclose(loaded(known), wanted)
    with pytest.raises(ValueError, match=r"x must be rows of the columns \['weight', 'length', 'count'\]; got shape"):
        loaded.log_prob(known[:, :2])
    given = [float(row["nats"]) for row in table(tmp_path / "predictions.csv")]
    assert given == pytest.approx(wanted.tolist(), rel=1e-5)
    capsys.readouterr()
    (tmp_path / "other.csv").write_text("weight,length\n100,2\n")
    np.save(tmp_path / "two.npy", known[:, :2].numpy())
    for words, match in {
        ("predict", run, tmp_path / "other.csv"): "no column 'count'",
        (
            "predict",
            run,
            tmp_path / "two.npy",
        ): "two.npy has 2 columns, and the run was trained on 3: weight, length, count",
        ("predict", run, tmp_path): "is a folder: give a file",
        ("sample", run, "--out", tmp_path / "a.txt"): "unknown suffix '.txt'. Known: .csv, .npy, .parquet",
        ("sample", run, "--out", tmp_path / "a.csv", "--method", "eulr"): "euler",
        ("sample", run, "--out", tmp_path / "a.csv", "--method", "euler"): "steps",
        ("sample", run, "--out", tmp_path / "a.csv", "--n", "0"): "--n",
        ("export", run): "no export",
        ("train", "flow", "--out", tmp_path / "other.csv"): "other.csv is a file: give a folder",
        ("train", "flow", "--baselines", "kde,none"): "all and none stand alone",
        ("train", "flow", "--model", "matching", "--coupling", "bridge"): "give --sigma",
    }.items():
        refused(list(map(str, words)), match, monkeypatch, capsys)


def test_a_cnf_has_no_sampler_of_flow_matching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *FLOW, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    words = ["sample", str(tmp_path / "run"), "--out", str(tmp_path / "a.npy")]
    refused([*words, "--method", "ddim", "--steps", "5"], "--method", monkeypatch, capsys)
    assert call(monkeypatch, *words) == 0
    exact = np.load(tmp_path / "a.npy")
    assert call(monkeypatch, *words, "--method", "rk4", "--steps", "20") == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), exact, atol=1e-3)


def test_other_runs_have_no_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "train", "images", "--quick", "--net", "resnet", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    words = ["sample", str(tmp_path / "run"), "--out", str(tmp_path / "a.csv")]
    refused(words, "give a run of `odenet train flow`", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--data", "moon"), "data 'moon' is unknown"),
        (("--data", "no.csv"), "no.csv is not there"),
        (("--data", "data.pdf"), "of no known form"),
        (("--model", "flow"), "--model 'flow' is unknown. Known: cnf, matching"),
        (("--trace", "exakt"), "exact"),
        (("--model", "matching", "--coupling", "optimal"), "sinkhorn"),
        (("--model", "matching", "--path", "straight"), "cond_ot"),
        (("--model", "matching", "--coupling", "bridge"), "sigma"),
        (("--model", "matching", "--kinetic", "0.1"), "--kinetic is for --model cnf alone"),
        (("--path", "vp"), "--path is for --model matching alone"),
        (("--baselines", "gauss"), "--baselines 'gauss' is unknown. Known: all, none, gaussian"),
        (("--kinetic", "-1"), "--kinetic"),
        (("--data", "missing.csv"), "row 3 of column 'b' is missing"),
        (("--data", "few.csv"), "at least 10"),
        (("--data", "collinear.csv"), "columns 'a', 'b' depend on each other linearly"),
        (("--data", "wide.csv"), "more rows than columns"),
    ],
)
def test_mistakes_end_in_one_line(
    words: tuple[str, ...],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    chance = np.random.default_rng(0)
    x = chance.standard_normal((40, 12))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.pdf").write_text("x")
    (tmp_path / "few.csv").write_text("a,b\n1.5,2\n3,4.5\n")
    (tmp_path / "missing.csv").write_text("a,b\n" + "".join(f"{i},{'' if i == 2 else i * i}\n" for i in range(20)))
    np.savetxt(tmp_path / "wide.csv", x[:12], header=",".join("abcdefghijkl"), delimiter=",", comments="")
    collinear = np.stack([x[:, 0], 3 - 2 * x[:, 0], x[:, 1]], 1)
    np.savetxt(tmp_path / "collinear.csv", collinear, header="a,b,c", delimiter=",", comments="")
    refused(["train", "flow", "--quick", "--out", "run", *words], match, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--data", "checkerboard"),
        pytest.param(("--data", "digits", "--model", "matching"), marks=pytest.mark.slow),
    ],
)
def test_resumed_bit_for_bit(words: tuple[str, ...], fork_server: ForkServer, tmp_path: Path) -> None:
    given = (*FLOW, "--epochs", 3, *words)
    whole = fork_server.run(tmp_path, *given, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    # in the middle, and where results are written
    for at in (9, whole.calls - 4) if "matching" in words else (9,):
        out = tmp_path / f"killed at {at}"
        assert fork_server.run(tmp_path, *given, "--out", out, fault="kill", at=at).code == -signal.SIGKILL
        ended = fork_server.run(tmp_path, "train", "flow", "--out", out, "--resume")
        assert ended.code == 0, ended.err
        assert_same(tmp_path / "whole", out)
        assert table(tmp_path / "whole" / "comparison.csv") == table(out / "comparison.csv")
