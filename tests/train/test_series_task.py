"""The task `series`: its data against closed forms, scores against integrals, its files, mistakes in one line."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import integrate, stats

import odenet.train
from command_line import call, default_dtype, refused
from odenet.nn import LastValue
from odenet.series import Series
from odenet.train import UserError
from odenet.train.series import hopper as of_hopper
from odenet.train.series.gaussian_scores import Gaussian, covered, crps, nll
from odenet.train.series.hopper import CHANNELS, ROWS, hopper
from odenet.train.series.model_table import BASELINES, known_models
from odenet.train.series.predictors import BaselinePredictor, ClassPredictor, ValuePredictor
from odenet.train.series.series_data import LABELLED, TIMED, load_series
from odenet.train.series.series_figures import attribution, series_figures
from odenet.train.series.series_metrics import new_metrics
from odenet.train.series.series_samples import given_of, samples, unpacked
from odenet.train.series.series_table import Layout, read_series
from odenet.train.series.spirals import spirals
from odenet.train.tasks.series_task import SeriesSettings, SeriesTask
from train.runs import ForkServer, assert_same, environment, table

__all__ = ["default_dtype"]

QUICK = SeriesSettings(quick=True, hidden=4, epochs=1, batch_size=32, points=12, count=40)
SPIRALS = ("train", "series", "--quick", "--count", 30, "--points", 8, "--hidden", 4)


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as made:
        yield made


def wide(path: Path, count: int = 24, name: str = "wide.csv") -> Path:
    """Series of 6 to 9 rows of channels a and b; `size` is static, `kind` a class and `speed` a number, by id."""
    generator = torch.Generator().manual_seed(0)
    lines = ["id,time,a,b,size,kind,speed"]
    for i in range(count):
        speed = float(torch.rand((), generator=generator))
        for row in range(6 + i % 4):
            t = row + float(torch.rand((), generator=generator)) / 2
            b = "" if row % 3 == 1 else f"{math.sin(t):.6f}"
            lines.append(
                f"s{i},{t:.4f},{10 + speed * t:.6f},{b},{i % 5},{'fast' if speed > 0.5 else 'slow'},{speed:.4f}"
            )
    file = path / name
    file.write_text("\n".join(lines) + "\n")
    return file


def long(path: Path, count: int = 12) -> Path:
    """The same channel `a` as one value a row, in another order of rows."""
    lines = [
        f"{i},{t},{c},{i + t if c == 'a' else -t}" for i in range(count) for c in "ba" for t in (3.5, 1.0, 2.25, 4.0)
    ]
    file = path / "long.csv"
    file.write_text("\n".join(["id,time,channel,value", *lines]) + "\n")
    return file


# ---- scores


@pytest.mark.parametrize(
    ("mean", "std", "value"), [(0.0, 1.0, 0.3), (2.0, 0.5, 0.9), (-1.0, 3.0, 8.0), (0.0, 1e-3, 0.0)]
)
def test_scores_against_integrals_and_scipy(mean: float, std: float, value: float) -> None:
    forecast = Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    x, normal = torch.tensor(value, dtype=torch.float64), stats.norm(mean, std)
    low, high = min(value, mean - 12 * std), max(value, mean + 12 * std)
    below, _ = integrate.quad(lambda y: normal.cdf(y) ** 2, low, value, points=[mean] if low < mean < value else None)
    above, _ = integrate.quad(lambda y: normal.sf(y) ** 2, value, high, points=[mean] if value < mean < high else None)
    assert float(crps(forecast, x)) == pytest.approx(below + above, rel=1e-6)
    assert float(nll(forecast, x)) == pytest.approx(-normal.logpdf(value), rel=1e-10)
    assert bool(covered(forecast, x)) == (normal.ppf(0.05) <= value <= normal.ppf(0.95))


def test_coverage_of_the_truth_is_nine_in_ten() -> None:
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    assert float(covered(Gaussian(torch.zeros(()), torch.ones(())), x).float().mean()) == pytest.approx(0.9, abs=0.01)


def test_a_fitted_baseline_has_the_deviations_of_its_errors() -> None:
    task = SeriesTask(replace(QUICK, task="forecast", observed=1.0))
    baseline = BaselinePredictor(LastValue(2))
    batch = task.data("train", 0).tensors
    given, target = given_of(batch), unpacked(batch, "target")
    assert target is not None
    baseline.fit([(given, target)])
    error = torch.where(target.mask, LastValue(2)(given, target.t) - target.x, 0.0)
    wanted = (error.square().sum((0, 1)) / target.mask.sum((0, 1))).sqrt()
    torch.testing.assert_close(baseline(given, target.t).std[0, 0], wanted)


def test_auroc_is_of_the_classes_that_are_there() -> None:
    from sklearn.metrics import roc_auc_score

    p = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    label = torch.arange(50) % 3
    metric = new_metrics("classify", 4, False)["auroc"]
    metric.update(p, label)
    with pytest.warns(UserWarning, match="No positive samples"):
        found = float(metric.compute())
    wanted = sum(roc_auc_score((label == k).numpy(), p[:, k].numpy()) for k in range(3)) / 3
    assert found == pytest.approx(wanted, rel=1e-5)


# ---- data


def test_spirals_are_those_of_the_paper() -> None:
    seen, truth, direction = spirals(41, 30, 5)
    assert direction.bincount().tolist() == [21, 20] and seen.length.tolist() == [30] * 41
    assert truth.x.shape == (41, 200, 2) and float(truth.t[0, 1]) == pytest.approx(6 * math.pi / 999, rel=1e-4)
    centre = torch.where(direction == 1, -5.0, 5.0)
    x, y = truth.x[..., 0] - centre[:, None], truth.x[..., 1]
    area = x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]  # twice that of the triangle with the centre
    assert ((area > 0) == (direction == 0)[:, None]).all()
    radius = x.hypot(y)
    step = 6 * math.pi / 999
    torch.testing.assert_close(radius[direction == 0].diff(dim=1), torch.full((21, 199), 0.3 * step), atol=1e-4, rtol=0)
    inverse = (15 / radius[direction == 1]).diff(dim=1)
    torch.testing.assert_close(inverse, torch.full((20, 199), -step), atol=2e-3, rtol=0)
    at = torch.searchsorted(truth.t[:, :100].contiguous(), seen.t.contiguous())
    assert (truth.t.gather(1, at) == seen.t).all() and (at.diff(dim=1) > 0).all()
    noise = seen.x - truth.x.gather(1, at[..., None].expand(-1, -1, 2))
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05) and abs(float(noise.mean())) < 0.03
    again = spirals(41, 30, 5)[0]
    assert torch.equal(again.x, seen.x) and not torch.equal(spirals(41, 30, 6)[0].x, seen.x)


def test_what_a_model_is_given(tmp_path: Path) -> None:
    """Of a table: every row is given or asked for, never both; by the seed, and in training by the epoch."""
    s = replace(QUICK, data=str(wide(tmp_path)), label="kind", static="size", points=50, count=0, observed=0.6)
    data = load_series(replace(s, channels="a,b"))
    parts = {name: part.tolist() for name, part in data.splits.items()}
    assert sorted(i for part in parts.values() for i in part) == list(range(24)) and all(parts.values())
    given, target = (unpacked(samples(data, "train", s, 0).tensors, part) for part in ("", "target"))
    assert given is not None and target is not None and given.static is not None
    own = data.series[data.splits["train"]]
    assert torch.equal(given.length + target.length, own.length) and (target.length >= 1).all()
    assert given.length.tolist() == [round(0.6 * n) for n in own.length.tolist()]
    for i in range(len(own)):
        times = torch.cat([part.t[i, part.rows[i]] for part in (given, target)])
        assert torch.equal(times.sort().values, own.t[i, own.rows[i]])
    assert int(given.mask.sum() + target.mask.sum()) == int(own.mask.sum())
    first, again, later = (samples(data, "train", s, epoch).tensors["t"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and (first.shape != later.shape or not torch.equal(first, later))
    assert torch.equal(samples(data, "val", s, 0).tensors["t"], samples(data, "val", s, 9).tensors["t"])
    future = replace(s, task="forecast", horizon=3.0, observed=1.0)
    given, target = (unpacked(samples(data, "train", future, 0).tensors, part) for part in ("", "target"))
    assert given is not None and target is not None
    ends = own.t[:, -1] - 3.0
    assert (given.t[:, -1] <= ends + 1e-3).all() and (target.t[:, 0] >= ends).all()


def test_a_test_of_spirals_is_against_the_true_ones() -> None:
    task = SeriesTask(QUICK)
    truth, test = task.series.truth, task.series.splits["test"]
    assert truth is not None
    batch = task.data("test", 0).tensors
    assert torch.equal(batch["target_x"], truth.x[test, :100]) and torch.equal(batch["beyond_x"], truth.x[test, 100:])
    assert batch["length"].tolist() == [12] * len(test)
    train = task.data("train", 0).tensors
    assert train["length"].tolist() == [6] * len(train["length"]) and "beyond_x" not in train
    assert (train["target_length"] == 12).all()


def test_tables_are_read_as_they_stand(tmp_path: Path) -> None:
    series, labels = read_series(long(tmp_path), Layout())
    assert series.channels == ("a", "b") and series.ids == tuple(map(str, range(12))) and labels == [None] * 12
    assert series.t[4].tolist() == [1.0, 2.25, 3.5, 4.0]
    assert series.x[4].tolist() == [[5.0, -1.0], [6.25, -2.25], [7.5, -3.5], [8.0, -4.0]]
    file = wide(tmp_path)
    series, labels = read_series(file, Layout(static="size", label="kind", channels="b,a"))
    assert (
        series.channels == ("b", "a")
        and series.static is not None
        and series.static[:7, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]
    )
    assert not series.mask[:, 1, 0].any() and series.mask[:, 0].all() and set(labels) == {"fast", "slow"}
    (tmp_path / "labels.csv").write_text("id;kind\n" + "".join(f"{i};{i % 3}\n" for i in range(12)))
    _, labels = read_series(tmp_path / "long.csv", Layout(labels=str(tmp_path / "labels.csv"), label="kind"))
    assert labels == [str(i % 3) for i in range(12)]


def test_parquet_is_as_csv(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = wide(tmp_path)
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    for name in ("time", "a", "b", "size"):
        columns[name] = [float(entry) if entry else None for entry in columns[name]]
    parquet.write_table(arrow.table(columns), tmp_path / "wide.parquet")
    layout = Layout(static="size", label="kind", channels="a,b")
    one, other = read_series(file, layout), read_series(tmp_path / "wide.parquet", layout)
    for name in ("t", "x", "mask", "length", "static"):
        assert torch.equal(getattr(one.series, name), getattr(other.series, name))
    assert one.labels == other.labels and one.series.ids == other.series.ids


def ts_files(folder: Path, name: str) -> None:
    """Files in the form of the archive: 3 classes of 20 and 4 series, of 5 to 8 rows of two channels."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("TRAIN", 60), ("TEST", 12)):
        lines = [
            "@problemName x",
            "@timeStamps false",
            "@univariate false",
            "@dimensions 2",
            "@classLabel true u v w",
            "@data",
        ]
        for i in range(count):
            rows = 5 + i % 4
            x = torch.randn(2, rows, generator=generator) + 3.0 * (i % 3)
            lines.append(":".join([*(",".join(f"{v:.5f}" for v in channel.tolist()) for channel in x), "uvw"[i % 3]]))
        (folder / f"{name}_{part}.ts").write_text("\n".join(lines) + "\n")


def test_the_archive_keeps_its_split(tmp_path: Path) -> None:
    ts_files(tmp_path, "JapaneseVowels")
    s = replace(QUICK, data="japanese-vowels", data_dir=str(tmp_path), task="classify", points=50, count=0, quick=False)
    data = load_series(s)
    assert data.classes == ("u", "v", "w") and data.labels is not None
    sizes = {name: len(part) for name, part in data.splits.items()}
    assert sizes == {"train": 48, "val": 12, "test": 12} and data.splits["test"].tolist() == list(range(60, 72))
    assert data.labels[data.splits["val"]].bincount().tolist() == [4, 4, 4]
    kept = load_series(replace(s, dropped=0.5)).series
    assert kept.length.tolist() == [n - round(0.5 * n) for n in data.series.length.tolist()]


def test_hopper_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    with pytest.raises(UserError, match=r'pip install "torch-odenet\[hopper\]"'):
        hopper(20, str(tmp_path))
    x = torch.randn(20, ROWS, CHANNELS)
    torch.save(x, tmp_path / "hopper-20.pt")
    assert torch.equal(hopper(20, str(tmp_path)).x, x)
    task = SeriesTask(replace(QUICK, data="hopper", data_dir=str(tmp_path), count=20, points=50, observed=0.1))
    batch = task.data("test", 0).tensors
    assert (batch["length"] == 20).all() and (batch["target_length"] == ROWS).all()
    task = SeriesTask(replace(task.settings, task="forecast", observed=0.3))
    batch = task.data("test", 0).tensors
    assert (batch["length"] == 30).all() and (batch["target_length"] == 100).all() and (batch["target_t"] >= 100).all()
    (tmp_path / "hopper-20.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it, it is made again"):
        hopper(20, str(tmp_path))


def test_hopper_is_generated() -> None:
    pytest.importorskip("dm_control")
    x = of_hopper.generate(3)
    assert x.shape == (3, ROWS, CHANNELS) and torch.isfinite(x).all()
    assert ((x[:, 0, :2] >= 0) & (x[:, 0, :2] <= 0.5)).all() and (x[:, 0, 2:7].abs() <= 2).all()
    assert (x[:, 0, 7:].abs() <= 5).all() and torch.equal(of_hopper.generate(2), x[:2])


# ---- models


@pytest.mark.parametrize("task", [*LABELLED, *TIMED])
@pytest.mark.parametrize("model", known_models())
def test_every_model_learns_on_its_tasks(model: str, task: str, tmp_path: Path) -> None:
    """Gradients are finite; a loss after a training step is another; padding changes nothing; times may be any."""
    tasks = TIMED if model in BASELINES else (*LABELLED, *TIMED)
    s = replace(QUICK, data=str(wide(tmp_path)), static="size", channels="a,b", model=model, task=task, count=0)
    s = replace(s, label={"classify": "kind", "regress": "speed"}.get(task, ""), points=50)
    if task not in tasks:
        with pytest.raises(UserError, match=f"--model {model} is for --task"):
            SeriesTask(s)
        return
    made = SeriesTask(s)
    torch.manual_seed(0)
    net = made.build(made.settings, made.info)
    tensors = made.data("train", 0).tensors
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(2):
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = made.loss(net.train(), tensors, made.metrics())
        loss.backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] != losses[0] and all(map(math.isfinite, losses))
    given, net = given_of(tensors), net.eval()
    ts = (torch.tensor([12.0, -1.0, 3.0]),) if isinstance(net, ValuePredictor) else ()
    with torch.no_grad():
        first, second = net(given, *ts), net(given.padded(given.t.shape[1] + 3), *ts)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    if ts:
        assert first.mean.shape == (len(given), 3, 2) and bool((first.std > 0).all())


def test_the_scales_are_those_of_the_data_to_train_on(tmp_path: Path) -> None:
    s = replace(QUICK, data=str(wide(tmp_path)), channels="a,b", label="speed", task="regress", points=50, count=0)
    task = SeriesTask(s)
    net: Any = task.build(task.settings, task.info)
    trained = task.series.series[task.series.splits["train"]]
    values = trained.x[..., 0][trained.mask[..., 0]]
    torch.testing.assert_close(net.model.normalizer.mean[0], values.mean())
    torch.testing.assert_close(net.model.normalizer.std[0], values.std(correction=0))
    assert task.series.labels is not None
    labels = task.series.labels[task.series.splits["train"]]
    torch.testing.assert_close(net.mean, labels.mean())
    torch.testing.assert_close(net.std, labels.std(correction=0))


def test_attribution_against_finite_differences() -> None:
    task = SeriesTask(replace(QUICK, task="classify"))
    torch.manual_seed(0)
    net = task.build(task.settings, task.info).double()
    assert isinstance(net, ClassPredictor)
    series = task.series.series[[0, 1]].to(torch.float64)
    found = attribution(net, series)
    best = net(series).argmax(1)
    scale: Any = net.model.normalizer.std
    with torch.no_grad():
        for row in (0, 5):
            slopes = []
            for c in range(2):
                step = torch.zeros_like(series.x)
                step[:, row, c] = 1e-5
                above, below = (
                    net(series.with_values(series.t, series.x + sign * step, None)).gather(1, best[:, None])[:, 0]
                    for sign in (1, -1)
                )
                slopes.append((above - below) / 2e-5 * scale[c])
            torch.testing.assert_close(found[:, row], torch.stack(slopes, 1).norm(dim=1), rtol=1e-4, atol=1e-8)


def test_figures_say_what_they_show(tmp_path: Path) -> None:
    s = replace(QUICK, data=str(wide(tmp_path)), channels="a,b", points=50, count=0)
    s = replace(s, data=str(tmp_path / "hours.csv"), id="patient", time="hour")
    (tmp_path / "hours.csv").write_text((tmp_path / "wide.csv").read_text().replace("id,time", "patient,hour"))
    for more in ({"task": "interpolate"}, {"task": "classify", "label": "kind"}):
        task = SeriesTask(replace(s, **more))
        torch.manual_seed(0)
        figures = series_figures(task.build(task.settings, task.info).eval(), task.settings, task.info, task.series)
        test, ids = task.series.splits["test"].tolist(), task.series.series.ids
        assert ids is not None
        axes = figures["predictions" if more["task"] == "interpolate" else "attribution"].axes
        size = len(axes) // 2
        assert [each.get_xlabel() for each in axes] == [""] * size + ["hour"] * size
        titles = [each.get_title() for each in axes[:size]]
        if more["task"] == "interpolate":
            assert titles == [f"patient {ids[i]}" for i in test]
            continue
        labels = task.series.labels
        assert labels is not None
        for i, title in zip(test, titles, strict=True):
            assert title.startswith("predicted ") and title.endswith(f"), true {task.series.classes[int(labels[i])]}")
        counts = [int(text.get_text()) for text in figures["reliability"].axes[1].texts]
        assert sum(counts) == len(test) and all(counts)


# ---- the command


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--label", "kind"], "size, speed never change within a series"),
        (["--label", "kind"], "name the channels, as --channels a,b, and what else is known of a series by --static"),
        (["--label", "speed", "--task", "regress", "--static", "size"], "csv: kind never changes within a series"),
    ],
)
def test_labels_are_no_channels(
    more: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = wide(tmp_path)
    file.write_text(file.read_text().replace(",0,slow", ",0.0,slow", 1))  # the same number
    refused(["train", "series", "--data", str(file), "--out", str(tmp_path / "run"), *more], match, monkeypatch, capsys)


def test_a_run_says_what_it_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = replace(QUICK, data=str(wide(tmp_path)), label="kind", channels="b,a", static="size", points=50, count=0)
    SeriesTask(replace(s, task="classify"))
    line = "odenet: 24 series (20 train, 2 val, 2 test) of up to 9 rows; channels b, a; static size; label kind\n"
    assert capsys.readouterr().err == line


def test_what_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *SPIRALS) == 0
    shown = capsys.readouterr().out
    listed = [tmp_path / line.strip() for line in shown.split("Wrote:")[1].splitlines() if line]
    assert all(path.is_file() for path in listed)
    names = {path.name for path in listed}
    assert names >= {
        "predictions.png",
        "spirals.png",
        "training.png",
        "comparison.csv",
        "comparison.json",
        "splits.csv",
    }
    out = tmp_path / "runs" / "series"
    rows = table(out / "comparison.csv")
    assert [row["model"] for row in rows] == ["ode-rnn", "last-value", "mean"]
    results = json.loads((out / "results.json").read_text())
    for name in ("rmse", "mse", "nll", "crps", "coverage", "extrapolation_rmse"):
        column = f"{name} (scaled)" if name in ("mse", "nll", "crps") else name
        assert float(rows[0][column]) == pytest.approx(results[f"test_{name}"], rel=1e-4)
        assert f"test_{column} " in shown
    assert len(rows[0]) == 7
    # the error against the true spirals, from the loaded network
    net: Any = odenet.train.load(out)
    seen, truth, _ = spirals(30, 8, 0)
    test = [i for i in range(30) if i in SeriesTask(replace(QUICK, count=30, points=8)).series.splits["test"].tolist()]
    with torch.no_grad():
        mean, std = net(seen[test], truth.t[test])
    error = (mean - truth.x[test]).square()
    assert float(error[:, :100].mean().sqrt()) == pytest.approx(results["test_rmse"], rel=1e-4)
    assert float(error[:, 100:].mean().sqrt()) == pytest.approx(results["test_extrapolation_rmse"], rel=1e-4)
    assert mean.shape == (len(test), 200, 2) and bool((std > 0).all())
    baseline = LastValue(2)
    baseline.normalizer.load_state_dict(net.normalizer.state_dict())
    last = float((baseline(seen[test], truth.t[test, :100]) - truth.x[test, :100]).square().mean().sqrt())
    assert float(rows[1]["rmse"]) == pytest.approx(last, rel=1e-4)


def test_names_of_channels_that_settings_cannot_say_again(tmp_path: Path) -> None:
    file, rows = wide(tmp_path), long(tmp_path)
    text, refused = file.read_text(), "must have a name without commas: rename it"
    for name, shown in (('"sugar, mg"', "sugar, mg"), ("", "")):
        file.write_text(text.replace(",b,", f",{name},", 1))
        with pytest.raises(UserError, match=f"channel '{shown}' {refused}"):
            read_series(file, Layout(static="size,speed", label="kind"))
    rows.write_text(rows.read_text().replace(",b,", ',"sugar, mg",'))
    with pytest.raises(UserError, match=f"channel 'sugar, mg' {refused}"):
        read_series(rows, Layout())


def test_classify_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = wide(tmp_path), tmp_path / "run"
    words = ("train", "series", "--quick", "--data", file, "--label", "kind", "--channels", "a,b", "--static", "size")
    assert call(monkeypatch, *words, "--out", folder) == 0
    assert {"attribution.png", "reliability.png"} <= {path.name for path in folder.iterdir()}
    results = json.loads((folder / "results.json").read_text())
    assert {"test_accuracy", "test_auroc", "test_calibration_error"} <= set(results)
    assert call(monkeypatch, "predict", folder, file, "--out", tmp_path) == 0
    rows = table(tmp_path / "predictions.csv")
    assert [row["id"] for row in rows] == [f"s{i}" for i in range(24)]
    net: Any = odenet.train.load(folder)
    series, labels = read_series(file, Layout(static="size", channels="a,b", label="kind"))
    with torch.no_grad():
        p = net(series).softmax(1)
    turned, _ = read_series(file, Layout(static="size", channels="b,a", label="kind"))
    with pytest.raises(ValueError, match="channels b, a, and the run was trained on a, b: give these, in this order"):
        net(turned)
    with pytest.raises(TypeError, match=r"series must be an odenet.series.Series"):
        net(series.x)
    for row, each in zip(rows, p.tolist(), strict=True):
        assert [float(row["p(fast)"]), float(row["p(slow)"])] == pytest.approx(each, rel=1e-4)
        assert row["class"] == ("fast" if each[0] > each[1] else "slow")
    model, frequent = table(folder / "comparison.csv")
    assert model["model"] == "ode-rnn" and frequent["model"] == "most frequent class"
    for name in ("accuracy", "auroc", "calibration_error"):
        assert float(model[name]) == pytest.approx(results[f"test_{name}"], rel=1e-5)
    task = SeriesTask(
        replace(QUICK, data=str(file), task="classify", label="kind", channels="a,b", static="size", points=50, count=0)
    )
    test = task.series.splits["test"].tolist()
    splits = table(folder / "splits.csv")
    assert [row["id"] for row in splits] == [row["id"] for row in rows]
    assert [i for i, row in enumerate(splits) if row["split"] == "test"] == test
    assert {row["split"] for row in splits} == {"train", "val", "test"}
    right = sum(rows[i]["class"] == labels[i] for i in test) / len(test)
    assert results["test_accuracy"] == pytest.approx(right)
    of_train = [labels[i] for i in task.series.splits["train"].tolist()]
    most = max(("fast", "slow"), key=of_train.count)
    assert float(frequent["accuracy"]) == sum(labels[i] == most for i in test) / len(test)
    assert float(frequent["auroc"]) == 0.5 and "most frequent class" in capsys.readouterr().out
    capsys.readouterr()
    (tmp_path / "other.csv").write_text("id,time,a\nq,1,2\n")
    (tmp_path / "no_size.csv").write_text("id,time,a,b\nq,1,2,3\n")
    for wrong, match in {
        (
            folder,
            tmp_path / "other.csv",
        ): "the run was trained on a table with id, time, size, a, b, or channel and value",
        (folder, tmp_path / "no_size.csv"): "no column 'size'",
        (folder, tmp_path): "is a folder",
        (folder, file, "--times", "1"): "--times is for runs that interpolate or forecast",
    }.items():
        refused(["predict", *map(str, wrong)], match, monkeypatch, capsys)
    refused(["export", str(folder)], "no export", monkeypatch, capsys)


def test_numbers_stand_beside_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = wide(tmp_path)
    words = ("--data", file, "--label", "speed", "--task", "regress", "--channels", "a", "--out", tmp_path / "run")
    assert call(monkeypatch, "train", "series", "--quick", *words) == 0
    _, labels = read_series(file, Layout(channels="a", label="speed"))
    splits = [row["split"] for row in table(tmp_path / "run" / "splits.csv")]
    number = {
        split: torch.tensor([float(label) for label, own in zip(labels, splits, strict=True) if own == split])
        for split in ("train", "test")
    }
    error = number["test"] - number["train"].mean()
    model, mean = table(tmp_path / "run" / "comparison.csv")
    assert mean["model"] == "mean of the training targets"
    assert float(mean["rmse"]) == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    assert float(mean["mae"]) == pytest.approx(float(error.abs().mean()), rel=1e-5)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert float(model["rmse"]) == pytest.approx(results["test_rmse"], rel=1e-5)


def test_forecast_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = long(tmp_path), tmp_path / "run"
    words = ("train", "series", "--quick", "--data", file, "--task", "forecast", "--horizon", 1, "--out", folder)
    assert call(monkeypatch, *words) == 0
    (tmp_path / "new.csv").write_text("time,id,value,channel\n1,x,2,a\n2,x,3,a\n1,x,4,b\n5,x,,a\n0,y,1,a\n0,y,1,b\n")
    net: Any = odenet.train.load(folder)
    given = Series(torch.tensor([[1.0, 2.0]]), torch.tensor([[[2.0, 4.0], [3.0, math.nan]]]))
    for more, times in (((), [1.0, 2.0, 5.0]), (("--times", "7,-1"), [7.0, -1.0])):
        assert call(monkeypatch, "predict", folder, tmp_path / "new.csv", "--out", tmp_path, *more) == 0
        rows = [row for row in table(tmp_path / "predictions.csv") if row["id"] == "x"]
        assert [float(row["time"]) for row in rows] == times
        with torch.no_grad():
            mean, std = net(given, torch.tensor(times))
        for name, wanted in (("a mean", mean[0, :, 0]), ("b mean", mean[0, :, 1]), ("b std", std[0, :, 1])):
            assert [float(row[name]) for row in rows] == pytest.approx(wanted.tolist(), rel=1e-4)
    capsys.readouterr()
    refused(["predict", str(folder), str(file), "--times", "1,x"], "give numbers with commas", monkeypatch, capsys)
    refused(["predict", str(folder), str(file), "--times", "nan"], "finite", monkeypatch, capsys)


def test_predictions_have_the_times_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = long(tmp_path), tmp_path / "run"
    words = ("train", "series", "--quick", "--data", file, "--model", "last-value", "--out", folder)
    assert call(monkeypatch, *words) == 0
    new, times = tmp_path / "new.csv", ["0.07", "1.1", "1700000.123"]  # none of which is a float32
    new.write_text("id,time,a,b\n" + "".join(f"x,{t},1,2\n" for t in times))
    for more in ((), ("--times", ",".join(times))):
        assert call(monkeypatch, "predict", folder, new, "--out", tmp_path, *more) == 0
        assert [row["time"] for row in table(tmp_path / "predictions.csv")] == times
    capsys.readouterr()
    new.write_text("id,time,a,b\nx,1.1,1,2\nx,1.10000000001,1,2\n")
    refused(["predict", str(folder), str(new)], "float32", monkeypatch, capsys)


def test_times_beyond_those_of_training_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = long(tmp_path)  # times 1, 2.25, 3.5, 4
    beyond = f"odenet: {file}: times to 9 are beyond those of training, which end at 4: do not trust them\n"
    ahead = (
        f"odenet: {file}: times to 5 behind the last row with a value are further ahead than the 1.75 of training: "
        "do not trust them\n"
    )
    for task, wanted in (("interpolate", beyond), ("forecast", beyond + ahead)):
        folder = tmp_path / task
        words = ("--data", file, "--model", "last-value", "--task", task, "--out", folder)
        assert call(monkeypatch, "train", "series", "--quick", *words) == 0
        capsys.readouterr()
        assert call(monkeypatch, "predict", folder, file, "--times", "2,9,4") == 0
        assert capsys.readouterr().err == wanted
        for more in ((), ("--times", "4,1")):
            assert call(monkeypatch, "predict", folder, file, *more) == 0
            assert capsys.readouterr().err == ""


def test_series_without_a_value_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, new = tmp_path / "run", tmp_path / "new.csv"
    words = ("train", "series", "--quick", "--data", wide(tmp_path), "--label", "kind", "--channels", "a,b")
    assert call(monkeypatch, *words, "--out", folder) == 0
    capsys.readouterr()
    new.write_text("id,time,a,b\nx,1,2,3\ny,1,,\ny,2,,\nz,1,,\n")
    assert call(monkeypatch, "predict", folder, new, "--out", tmp_path) == 0
    line = f"odenet: {new}: 2 series without any value, such as 'y': what is said of it is a guess\n"
    assert capsys.readouterr().err == line
    assert [row["id"] for row in table(tmp_path / "predictions.csv")] == ["x", "y", "z"]


@pytest.mark.slow
def test_resumed_as_undisturbed(fork_server: ForkServer, tmp_path: Path) -> None:
    """Killed as an epoch is saved, and taken up again: what rows are hidden in an epoch is the same."""
    words = (
        "train",
        "series",
        "--quick",
        "--epochs",
        3,
        "--count",
        40,
        "--points",
        6,
        "--hidden",
        4,
        "--device",
        "cpu",
    )
    assert fork_server.run(tmp_path, *words, "--out", tmp_path / "a").code == 0
    ended = fork_server.run(tmp_path, *words, "--out", tmp_path / "b", fault="kill", at=6)
    assert ended.code == -9 and not (tmp_path / "b" / "model.safetensors").exists()
    done = fork_server.run(tmp_path, "train", "series", "--resume", "--device", "cpu", "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert_same(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "comparison.csv").read_text() == (tmp_path / "b" / "comparison.csv").read_text()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    words = map(str, (*SPIRALS, "--devices", 2, "--device", "cpu", "--out", tmp_path))
    command = [sys.executable, "-m", "odenet.train.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    results, (row, *_) = json.loads((tmp_path / "results.json").read_text()), table(tmp_path / "comparison.csv")
    for name in ("rmse", "mse", "nll", "crps", "coverage", "extrapolation_rmse"):
        column = f"{name} (scaled)" if name in ("mse", "nll", "crps") else name
        assert float(row[column]) == pytest.approx(results[f"test_{name}"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--task", "segment"], "Known: classify, regress, interpolate, forecast"),
        (["--model", "lstm"], "Known: "),
        (["--model", "mean", "--task", "classify"], "is for --task interpolate and forecast"),
        (["--data", "spiral"], "--data 'spiral' is unknown. Known: spirals, hopper"),
        (["--data", "none.csv"], "none.csv is not there"),
        (["--data", "japanese-vowels", "--data-dir", "/no/such"], "has no JapaneseVowels_TRAIN.ts"),
        (["--task", "regress"], "are classes: take --task classify"),
        (["--label", "kind", "--task", "classify"], "--label is for a table"),
        (["--horizon", "3"], "--horizon is for --task forecast"),
        (["--task", "classify", "--observed", "0.3"], "--observed is for --task interpolate or forecast"),
        (["--method", "tsit5"], "need a --tolerance"),
        (["--model", "mean", "--tolerance", "0.1"], "has none: leave it out"),
        (["--points", "101"], "--points"),
        (["--task", "forecast", "--horizon", "100"], "no row to forecast from: lower it"),
        (["--dropped", "1"], "--dropped"),
        (["--duplicates", "mean"], "--duplicates is for a table"),
        (["--duplicates", "sum"], "Known: error, mean, first, last"),
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
    refused(["train", "series", "--quick", *words], match, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words", "match"),
    [
        (("id,time", "series,time"), [], "has no column 'id'"),
        (("s3,0.", "s3,2020-01-01 00:"), ["--channels", "a,b"], "dates are not taken: give numbers"),
        (("time,a", "a,a"), [], "twice"),
        (("x", "x"), ["--label", "speed", "--channels", "a"], "has 1 series, and a class needs 3"),
        (("s5,", "s6,"), ["--label", "speed", "--channels", "a"], "has two entries of 'speed'"),
        (("s7,", ","), [], "has no 'id'"),
        (("a,b", "a,c"), ["--channels", "a,b"], "has no column 'b'"),
        (
            (",slow,", ",fast,"),
            ["--label", "kind", "--channels", "a"],
            "label of every series is 'fast', and a classifier",
        ),
        ((",slow,", ",,"), ["--label", "kind", "--channels", "a"], "has no label"),
        (("x", "x"), ["--label", "kind", "--task", "regress", "--channels", "a"], "is no number: take --task classify"),
        (("x", "x"), ["--task", "classify", "--channels", "a"], "has no labels: name them by --label"),
        (("x", "x"), ["--static", "time", "--channels", "a"], "has two entries of 'time'"),
        (("s1", "t"), ["--channels", "kind"], "'slow'"),
    ],
)
def test_wrong_tables_end_in_one_line(
    change: tuple[str, str],
    words: list[str],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = wide(tmp_path)
    file.write_text(file.read_text().replace(*change))
    refused(["train", "series", "--quick", "--data", str(file), *words], match, monkeypatch, capsys)


def test_duplicates_are_merged_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, again = long(tmp_path), tmp_path / "again.csv"
    again.write_text(file.read_text() + "3,2.25,a,100\n")
    words = ["train", "series", "--quick", "--data", str(again), "--model", "mean", "--out", str(tmp_path / "run")]
    refused(words, "at the time 2.25: leave one out, or train with --duplicates mean, first", monkeypatch, capsys)
    for duplicates, wanted in (("mean", 52.625), ("first", 5.25), ("last", 100.0)):
        series, _ = read_series(again, Layout(duplicates=duplicates))
        assert series.x[3, :, 0].tolist() == [4.0, wanted, 6.5, 7.0]
    assert call(monkeypatch, *words, "--duplicates", "last") == 0
    assert call(monkeypatch, "predict", tmp_path / "run", again) == 0  # as the run does


def test_names_are_listed_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "series", "--quick", "--data", str(long(tmp_path))]
    refused([*words, "--channels", "c"], "has no channel 'c'; it has a, b", monkeypatch, capsys)
    (tmp_path / "labels.csv").write_text("patient,label\n1,2\n")
    words += ["--labels", str(tmp_path / "labels.csv"), "--task", "regress"]
    line = "has no column 'id', as the table; it has patient, label: rename that of ids"
    refused(words, line, monkeypatch, capsys)


def test_few_series_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 series: a training needs at least 10"):
        load_series(replace(QUICK, data=str(wide(tmp_path, 3)), channels="a", points=50, count=0))
    (tmp_path / "empty.csv").write_text("id,time,a\n")
    with pytest.raises(UserError, match="has no rows"):
        load_series(replace(QUICK, data=str(tmp_path / "empty.csv"), points=50, count=0))
