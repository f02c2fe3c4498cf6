"""Runs the benchmark `stiff`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import Settings
from . import stiff_report
from .stiff_solves import (
    PROBLEMS,
    SOLVERS,
    Row,
    by_name,
    solve_with_diffrax,
    solve_with_odenet,
    solve_with_scipy,
    tolerances,
)

NAMES = tuple(p.name for p in PROBLEMS)
_FLOAT64_ON_CPU = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}


def measure(problems: Sequence[str]) -> tuple[list[Row], str]:
    """Return the rows in the order of the tables, and "" or why diffrax has none.

    Each method of odenet and of SciPy has a first solve that does not count.
    """
    theirs = [s for s in SOLVERS if s.startswith("diffrax")]
    found, missing = call_in_subprocess(solve_with_diffrax, list(problems), theirs, env=_FLOAT64_ON_CPU)
    rows = [Row(**one) for one in found or ()]
    for name, solver in tqdm([(p, s) for p in problems for s in SOLVERS if s not in theirs], "stiff", disable=None):
        solve = solve_with_odenet if solver.startswith("odenet") else solve_with_scipy
        solve(by_name(name), solver, 1e-2)
        rows += [solve(by_name(name), solver, rtol) for rtol in tolerances(solver)]
    return sorted(rows, key=lambda r: (problems.index(r.problem), SOLVERS.index(r.solver), -r.rtol)), missing


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    rows, missing = measure(settings.only or NAMES)
    yield "stiff.csv", stiff_report.numbers(rows)
    yield "stiff.md", stiff_report.page(rows, settings, missing)
    yield "stiff.png", stiff_report.draw(rows)
