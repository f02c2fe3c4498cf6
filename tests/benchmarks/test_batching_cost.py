"""The part `batching` of the benchmark `series`: its data, its page, and a smoke run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.series import latent_batching
from benchmarks.series.batching_cost import OWN, UNION, Cost, page, series_with_common_times
from benchmarks.series.latent_batching import COMMON, FlowCost, times_of_samples
from benchmarks.shared.tables import Settings


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_times_in_common(share: float) -> None:
    series = series_with_common_times(share, 6, 10, torch.Generator().manual_seed(0))
    common = set(series.t[0].tolist()).intersection(*series.t.tolist())
    assert len(common) == max(1, round(10 * share))
    assert series.union().t.shape[1] == len(common) + 6 * (10 - len(common))


def test_page_of_batching() -> None:
    cost = Cost(0.5, {OWN: 10, UNION: 20}, {OWN: [0.1, 0.2, 0.3], UNION: [0.5, 0.4, 0.3]})
    flow = FlowCost(64, 30, 1920, {COMMON: [0.2], latent_batching.OWN: [0.1]})
    text = page([cost], [flow], Settings("run me"))
    assert "| 50% | 10 | 20 | 200.0 | 400.0 | 2.0 |" in text
    assert "| 64 | 30 | 1,920 | 200.0 | 100.0 |" in text


@pytest.mark.parametrize(("union", "least"), [(5, 5), (12, 9), (30, 30)])
def test_times_of_samples(union: int, least: int) -> None:
    ts = times_of_samples(6, 5, union, torch.Generator().manual_seed(0))
    assert ts.shape == (6, 5) and bool((ts.diff(dim=1) > 0).all()) and least <= len(ts.unique()) <= union


def test_smoke_run_of_batching(tmp_path: Path) -> None:
    assert main(["series", "--only", "batching", "--quick", "--out", str(tmp_path)]) == 0
    with (tmp_path / "series_batching.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["batch"] for row in rows} == {OWN, UNION} and all(float(row["seconds"]) > 0 for row in rows)
    with (tmp_path / "series_latent_batching.csv").open(encoding="utf-8") as file:
        assert all(float(row["seconds"]) > 0 for row in csv.DictReader(file))
    assert "smoke run" in (tmp_path / "series_batching.md").read_text(encoding="utf-8")
