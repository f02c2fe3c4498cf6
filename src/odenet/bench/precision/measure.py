"""Error, evaluations and time of a method over tolerances, or over step sizes."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass
from typing import Any

import odenet

from ...errors import ConvergenceWarning
from ...methods import METHODS, ImplicitRK, Method
from ..results import Tell, attempt
from .problems import Exact, problems

TOLERANCES = tuple(10.0**-k for k in range(2, 10))
STEPS = tuple(2**k for k in range(3, 10))
LONG = 1.0  # seconds
_STIFF_EXPLICIT = ("tsit5",)  # on a stiff problem, for contrast


@dataclass(frozen=True)
class Point:
    """setting: the tolerance (rtol = atol) or the number of steps. error: relative, at the end. seconds: median."""

    problem: str
    method: str
    setting: str
    error: float | None
    nfe: int | None
    seconds: float | None
    note: str = ""


def implicit(method: Method) -> bool:
    return isinstance(method, ImplicitRK) or method.name == "implicit_adams"


def suits(method: Method, problem: Exact) -> bool:
    return not problem.stiff or implicit(method) or method.name in _STIFF_EXPLICIT


def settings(method: Method, problem: Exact, quick: bool) -> dict[str, dict[str, Any]]:
    """Keyword arguments of a solve, by what the point is called."""
    if method.error_order is not None:
        tolerances = TOLERANCES[:4:3] if quick else TOLERANCES
        return {f"{x:.0e}": {"rtol": x, "atol": x, "max_steps": 4_000} for x in tolerances}
    return {f"{n} steps": {"step": problem.end / n} for n in (STEPS[2:4] if quick else STEPS)}


def point(problem: Exact, method: str, setting: str, options: dict[str, Any], repeats: int) -> Point:
    """The first solve warms up and is not counted, unless it is the only one: a long one is not repeated."""

    def solve() -> tuple[Any, float]:
        start = time.perf_counter()
        sol = odenet.solve(problem.f, problem.y0, [0.0, problem.end], method=method, **options)
        return sol, time.perf_counter() - start

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done, note = attempt(solve)
        if done is None:
            return Point(problem.name, method, setting, None, None, None, note)
        sol, first = done
        seconds = [solve()[1] for _ in range(repeats)] if first < LONG else []
    note = "the Newton solve did not converge" if any(issubclass(w.category, ConvergenceWarning) for w in said) else ""
    error = float((sol.y1 - problem.solution).norm() / problem.solution.norm())
    return Point(problem.name, method, setting, error, int(sol.stats.nfe), statistics.median(seconds or [first]), note)


def sweep(problem: Exact, method: Method, quick: bool) -> list[Point]:
    """From coarse to fine, and no further once a solve takes long."""
    found = []
    for setting, options in settings(method, problem, quick).items():
        found.append(point(problem, method.name, setting, options, 0 if quick else 5))
        if (found[-1].seconds or 0.0) > LONG:
            break
    return found


def measure(quick: bool, tell: Tell) -> list[Point]:
    jobs = [(p, m) for p in problems() for m in METHODS.values() if suits(m, p)]
    found = []
    for done, (problem, method) in enumerate(jobs):
        tell("work and precision", done, len(jobs))
        found += sweep(problem, method, quick)
    tell("work and precision", len(jobs), len(jobs))
    return found
