"""The benchmark `stiff`: rows of each library, and the page."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from benchmarks.shared.subprocesses import call_in_subprocess
from benchmarks.shared.tables import Settings
from benchmarks.stiff import run_stiff, stiff_report, stiff_solves
from benchmarks.stiff.stiff_solves import Row, by_name

HIRES = by_name("HIRES")


def rows() -> list[Row]:
    mine = Row("HIRES", "odenet kvaerno5", 1e-4, 90, 10, 500, 400, 20, 30, 6.2, 0.1)
    radau = replace(mine, solver="odenet radauIIA5", evaluations=300, digits=4.5)
    theirs = replace(mine, solver="SciPy Radau", evaluations=600, digits=3.5)
    diffrax = replace(mine, solver="diffrax Kvaerno5", accepted=390, nfe=None, evaluations=None, njev=None, note="slow")
    failed = Row("HIRES", "SciPy BDF", 1e-4, note="failed: x")
    return [radau, mine, theirs, failed, diffrax]


def test_odenet_and_scipy_count_the_same_things() -> None:
    mine = stiff_solves.solve_with_odenet(HIRES, "odenet radauIIA5", 1e-3)
    theirs = stiff_solves.solve_with_scipy(HIRES, "SciPy Radau", 1e-3)
    assert mine.digits is not None and theirs.digits is not None and abs(mine.digits - theirs.digits) < 2
    for count in ("steps", "evaluations", "work"):
        assert 0.3 < getattr(mine, count) / getattr(theirs, count) < 3


def test_a_failed_solve_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiff_solves, "MAX_STEPS", 3)
    row = stiff_solves.solve_with_odenet(HIRES, "odenet trbdf2", 1e-3)
    assert row.digits is None and row.note.startswith("failed: MaxStepsError") and row.work is None


@pytest.mark.slow
def test_diffrax_runs_in_float64() -> None:
    pytest.importorskip("diffrax")
    args = (["HIRES"], ["diffrax Kvaerno3"])
    found, error = call_in_subprocess(stiff_solves.solve_with_diffrax, *args, env=run_stiff._FLOAT64_ON_CPU)
    assert error == "" and [one["rtol"] for one in found] == stiff_solves.tolerances("diffrax Kvaerno3")
    assert all(Row(**one).digits > 3 and Row(**one).steps > 50 for one in found)


def test_page_says_what_was_measured() -> None:
    text = stiff_report.page(rows(), Settings("python -m benchmarks stiff"), "")
    assert "| odenet kvaerno5 | 100 / 400 / 20 / 6.2 |" in text and "| SciPy BDF | failed |" in text
    assert "| diffrax Kvaerno5 | 400 / - / - / 6.2 |" in text and "left out" not in text
    assert (
        "| HIRES | radauIIA5 300 (4.5) | - | kvaerno5 400 (6.2) | - | kvaerno5 100 (6.2) | Kvaerno5 400 (6.2) |" in text
    )
    assert "| odenet radauIIA5 | SciPy Radau | evaluations | 0.50 | 0.50 | 0.50 | 1 of 1 |" in text
    assert "| SciPy Radau | 1 | 1 | -0.5 |" in text
    assert "1 of 5 runs failed." in text and "- SciPy BDF on HIRES at 1e-04: failed: x" in text
    assert "diffrax is left out: not installed: diffrax." in stiff_report.page(
        rows()[:-1], Settings("x"), "not installed: diffrax"
    )


def test_numbers_and_figure_take_missing_values() -> None:
    lines = list(csv.DictReader(io.StringIO(stiff_report.numbers(rows()))))
    assert lines[0]["rtol"] == "1e-04" and lines[0]["digits"] == "4.500" and lines[3]["digits"] == ""
    assert stiff_report.draw(rows()).startswith(b"\x89PNG")
