"""The part `speed` of the benchmark `series`: its peers, tables and figure, and a smoke run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")

from benchmarks.__main__ import main
from benchmarks.series import cde_speed, latent_speed, path_memory, scan_speed, series_speed
from benchmarks.series.contender_table import FIRST, SECONDS, relative_difference, started, table
from benchmarks.series.random_paths import draw_weights, random_walks
from benchmarks.shared.measured_rows import Row
from benchmarks.shared.tables import Settings
from odenet.compat import torchcde as compat
from odenet.nn import NeuralCDE


def cde_task(length: int = 6) -> cde_speed.Task:
    model = NeuralCDE(3, 32, out=1)
    draw_weights(model, 0, 1.0)
    return cde_speed.Task(random_walks(4, length, 0), torch.ones(4, 1), model)


def test_random_walks_end_with_deviation_one() -> None:
    for length in (10, 200):
        series = random_walks(2000, length, 0)
        rise = series.x[:, -1] - series.x[:, 0]
        assert series.t[0, [0, -1]].tolist() == [0.0, 1.0] and rise.std() == pytest.approx(1.0, rel=0.05)


def test_weights_are_drawn_in_place_and_again_the_same() -> None:
    field = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    kept = list(field.parameters())
    draw_weights(field, 1, 1.0)
    one = [p.detach().clone() for p in field.parameters()]
    draw_weights(field, 1, 2.0)
    assert all(a is b for a, b in zip(kept, field.parameters(), strict=True))
    for a, b in zip(one, field.parameters(), strict=True):
        torch.testing.assert_close(2 * a, b.detach())


def test_contenders_solve_the_same_controlled_equation() -> None:
    task = cde_task()
    (output, *gradient), largest = task.exact()
    steps = {"model": task.odenet(rtol=1e-6, atol=1e-8), "cdeint": task.cdeint(compat, rtol=1e-6, atol=1e-8)}
    for step in steps.values():
        mine, *slopes = step()
        assert len(slopes) == len(gradient) and relative_difference([mine], [output]) < 1e-4
        assert relative_difference(slopes, gradient) < 0.02  # the field has kinks
    assert 0.1 < largest < 10.0


def test_a_contender_sees_new_weights() -> None:
    task = cde_task()
    step = task.odenet()
    before = step()[0]
    draw_weights(task.model, 1, 2.0)
    assert relative_difference([step()[0]], [before]) > 0.1
    assert relative_difference([step()[0]], [task.exact()[0][0]]) < 1e-2


def test_peer_that_is_not_installed() -> None:
    def missing() -> Any:
        raise ImportError("no", name="torchcde")

    steps, rows = started("controlled", "T = 5", {"theirs": missing, "ours": lambda: lambda: ()})
    assert list(steps) == ["ours"]
    assert rows[0] == ("controlled", "T = 5", "theirs", FIRST, None, "not installed: torchcde")
    assert "| theirs | - | - | not installed: torchcde |" in table(rows, "controlled", ["T = 5"], "ours", ())


def test_table_of_contenders() -> None:
    def rows(label: str, times: Sequence[float], error: float) -> list[Row]:
        errors: list[Row] = [("p", case, label, "error", error, "") for case in "ab"]
        return [*errors, *(("p", c, label, SECONDS, s, "") for c, s in zip("ab", times, strict=True))]

    text = table([*rows("ours", (0.1, 0.2), 1e-3), *rows("theirs", (0.4, 0.2), 1e-4)], "p", "ab", "ours", ("error",))
    assert "| theirs | 283 (200 to 400) | 2.00 (1.00 to 4.00) | 1e-04 |" in text


def test_latent_contenders_have_one_field() -> None:
    task = latent_speed.new_task(5, 6)
    draw_weights(task.field, 0, 2.0)
    z0 = torch.randn(5, latent_speed.LATENT, generator=torch.Generator().manual_seed(0))
    step, path = task.odenet(**latent_speed.SAME)
    found = path(z0)
    assert found.shape == (6, 5, latent_speed.LATENT) and len(step())
    assert relative_difference([found], [latent_speed.tight_path(task, z0)]) < 1e-5


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in torchdiffeq
def test_example_of_torchdiffeq() -> None:
    pytest.importorskip("torchdiffeq")
    task = latent_speed.new_task(5, 6)
    step, path = task.torchdiffeq()
    z0 = torch.ones(5, latent_speed.LATENT)
    assert relative_difference([path(z0)], [latent_speed.tight_path(task, z0)]) < 1e-5
    assert all(bool(torch.isfinite(g).all()) for g in step())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot round them to zero")
def test_denormal_numbers_are_kept_in_one_step_alone() -> None:
    tiny = torch.tensor([1e-39])
    step, _ = latent_speed.keeping_denormals((lambda: [tiny * 0.5], lambda z0: z0))
    try:
        torch.set_flush_denormal(True)
        assert float(step()[0].view(torch.int32)) != 0.0  # its bits: a comparison would round it as well
        assert float((tiny * 0.5).view(torch.int32)) == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_scan_and_solve_have_the_same_output() -> None:
    models, series = scan_speed.same_equation(0), random_walks(3, 7, 0)
    scan, solve = (models[label](series) for label in (scan_speed.SCAN, scan_speed.SOLVE))
    torch.testing.assert_close(scan, solve, rtol=1e-3, atol=1e-4)


def memory_rows() -> list[Row]:
    found = {(path_memory.PATH, 10): 100, (path_memory.PATH, 20): 200, ("adjoint", 10): 1124, ("adjoint", 20): 11464}
    return [("memory", path_memory.case_name("linear", n), x, path_memory.GROWTH, v, "") for (x, n), v in found.items()]


def test_memory_beyond_the_path() -> None:
    assert path_memory.beyond_the_path(memory_rows(), "linear", "adjoint") == {10: 1024, 20: 11264}
    assert "| linear | adjoint | 0.0 | 0.0 | 1.00 |" in path_memory.section(memory_rows())


def test_page_and_figure_without_what_failed() -> None:
    rows: list[Row] = [(m.PART, "-", "-", "-", None, "ended with code 1") for m in series_speed.TIMED]
    rows += memory_rows()
    assert "- scan, -: ended with code 1" in series_speed.page(rows, Settings("run me"))
    assert series_speed.draw(rows).startswith(b"\x89PNG")


@pytest.mark.slow
def test_smoke_run_of_speed(tmp_path: Path) -> None:
    assert main(["series", "--only", "speed", "--quick", "--out", str(tmp_path)]) == 0
    with (tmp_path / "series_speed.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"controlled", "latent", "scan", "memory"}
    assert all(row["note"] == "" or "not installed" in row["note"] for row in rows)
    assert "smoke run" in (tmp_path / "series_speed.md").read_text(encoding="utf-8")
    assert (tmp_path / "series_speed.png").stat().st_size > 5000
