"""The work-precision diagrams: exact solutions, points, costs, and the files."""

from __future__ import annotations

import pytest
import torch

import odenet
from benchmarks.precision import precision_report, sweep
from benchmarks.precision.exact_problems import PROBLEMS, ExactProblem
from benchmarks.precision.sweep import METHODS, Point
from benchmarks.shared.tables import Settings


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_solutions_are_exact(problem: ExactProblem) -> None:
    how = {"method": "radauIIA5", "step": problem.end / 64} if problem.stiff else {"method": "dopri8", "rtol": 1e-12}
    sol = odenet.solve(problem.f, problem.y0, [0.0, problem.end], atol=1e-12, **how)
    assert float((sol.y1 - problem.solution).norm()) < 1e-8


def test_every_method_is_measured() -> None:
    plain, stiff = (next(p for p in PROBLEMS if p.stiff == s) for s in (False, True))
    assert all(sweep.suits(m, plain) for m in METHODS.values())
    assert [m.name for m in METHODS.values() if sweep.suits(m, stiff) and not sweep.implicit(m)] == ["tsit5"]


def test_finer_points_are_better_and_dearer() -> None:
    problem = PROBLEMS[1]
    for name in ("tsit5", "rk4"):
        coarse, fine = sweep.sweep(problem, METHODS[name], quick=True)
        assert coarse.error and fine.error and coarse.nfe and fine.nfe
        assert fine.error < coarse.error and fine.nfe > coarse.nfe and fine.seconds


def test_a_failing_point_is_a_note() -> None:
    problem = PROBLEMS[1]
    found = sweep.measure_point(problem, "tsit5", "1e-09", {"rtol": 1e-9, "max_steps": 3}, 1)
    assert found.error is None and "max_steps" in found.note


def point(error: float | None, nfe: int) -> Point:
    return Point("orbit", "tsit5", str(nfe), error, nfe, nfe * 1e-4, "" if error is not None else "failed")


def test_costs_are_interpolated_in_logarithms() -> None:
    points = [point(1e-8, 1600), point(1e-2, 100), point(None, 50), point(1e-4, 400), point(3.0, 10)]

    def nfe(p: Point) -> float:
        return float(p.nfe or 1)

    assert precision_report.cost_of_error(points, 1e-3, nfe) == pytest.approx((200.0, False))
    assert precision_report.cost_of_error(points, 1e-6, nfe) == pytest.approx((800.0, False))
    assert precision_report.cost_of_error(points, 1e-9, nfe) is None
    assert precision_report.cost_of_error(points[:2], 0.1, nfe) == (100.0, True)


def test_files_say_what_was_measured() -> None:
    points = [point(1e-2, 100), point(1e-4, 400), point(None, 800), point(3.0, 10)]
    text = precision_report.page(points, Settings("python -m benchmarks precision", quick=True))
    assert f"torch: {torch.__version__}" in text and "smoke run" in text and "## Kaps" not in text
    assert "| tsit5 | 200 | - | - | 20.0 | - | - | 1 of 4 points are worse than no solution; 800: failed |" in text
    assert precision_report.numbers(points).splitlines()[1] == "orbit,tsit5,100,0.01,100,0.01,"
    assert precision_report.draw(points).startswith(b"\x89PNG")
