"""Error, evaluations and time of a method over tolerances, or over step sizes."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

import odenet
from odenet.errors import ConvergenceWarning
from odenet.methods import METHODS, ImplicitRK, Method

from ..shared.errors import value_or_error
from .exact_problems import PROBLEMS, ExactProblem

TOLERANCES = tuple(10.0**-k for k in range(2, 10))
STEPS = tuple(2**k for k in range(3, 10))
LONG = 1.0  # seconds: a solve that takes longer is not repeated, and no finer one follows
_EXPLICIT_ON_STIFF = ("tsit5",)  # for contrast


@dataclass(frozen=True)
class Point:
    """One solve. setting: the tolerance (rtol = atol) or the number of steps. error: relative, at the end."""

    problem: str
    method: str
    setting: str
    error: float | None
    nfe: int | None
    seconds: float | None
    note: str = ""


def implicit(method: Method) -> bool:
    return isinstance(method, ImplicitRK) or method.name == "implicit_adams"


def suits(method: Method, problem: ExactProblem) -> bool:
    return not problem.stiff or implicit(method) or method.name in _EXPLICIT_ON_STIFF


def _settings(method: Method, problem: ExactProblem, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the options of each solve, by the setting's name."""
    if method.error_order is not None:
        tolerances = TOLERANCES[:4:3] if quick else TOLERANCES
        return {f"{x:.0e}": {"rtol": x, "atol": x, "max_steps": 4_000} for x in tolerances}
    return {f"{n} steps": {"step": problem.end / n} for n in (STEPS[2:4] if quick else STEPS)}


def measure_point(problem: ExactProblem, method: str, setting: str, options: dict[str, Any], repeats: int) -> Point:
    """Return the error of a solve and its median time. The first solve counts only where it is the only one."""
    how: dict[str, Any] = options | {"method": method}

    def solve() -> tuple[Any, float]:
        start = time.perf_counter()
        sol = odenet.solve(problem.f, problem.y0, [0.0, problem.end], **how)
        return sol, time.perf_counter() - start

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done, note = value_or_error(solve)
        if done is None:
            return Point(problem.name, method, setting, None, None, None, note)
        sol, first = done
        seconds = [solve()[1] for _ in range(repeats)] if first < LONG else []
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        note = "the Newton solve did not converge"
    error = float((sol.y1 - problem.solution).norm() / problem.solution.norm())
    return Point(problem.name, method, setting, error, int(sol.stats.nfe), statistics.median(seconds or [first]), note)


def sweep(problem: ExactProblem, method: Method, quick: bool) -> list[Point]:
    """Return the points from coarse to fine."""
    points = []
    for setting, options in _settings(method, problem, quick).items():
        points.append(measure_point(problem, method.name, setting, options, 0 if quick else 5))
        if (points[-1].seconds or 0.0) > LONG:
            break
    return points


def measure(quick: bool) -> list[Point]:
    jobs = [(p, m) for p in PROBLEMS for m in METHODS.values() if suits(m, p)]
    return [point for p, m in tqdm(jobs, "work and precision", disable=None) for point in sweep(p, m, quick)]
