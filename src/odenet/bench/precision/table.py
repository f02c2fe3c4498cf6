"""The work-precision points as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from ..markdown import NONE, head, table
from .measure import Point
from .problems import Exact

ERRORS = (1e-3, 1e-6, 1e-9)
_HOW = (
    "Methods with an error estimate over tolerances (rtol = atol), the others over numbers of constant steps; float64, "
    "eager, no gradient; median of five solves, one where it takes a second, and then nothing finer. Error: relative "
    "(2-norm) at the end, from the exact solution. What an error costs is interpolated between the points on both "
    "sides of it, in logarithms; `-`: no point is that good, `<`: the worst point already is. Evaluations of an "
    "implicit method are those that its Newton solves make, without the products with Jacobians."
)


def cost(points: Sequence[Point], error: float, work: Callable[[Point], float]) -> tuple[float, bool] | None:
    """Least work for an error, and whether even the least work measured was good enough; None where none was."""
    known = sorted((p for p in points if p.error is not None and math.isfinite(p.error)), key=work)
    before: Point | None = None
    for p in known:
        mine = max(p.error or 0.0, 1e-300)
        if mine <= error:
            if before is None or before.error is None:
                return work(p), True
            span = math.log(before.error) - math.log(mine)
            part = (math.log(before.error) - math.log(error)) / span
            return math.exp(math.log(work(before)) * (1 - part) + math.log(work(p)) * part), False
        before = p
    return None


def _cell(found: tuple[float, bool] | None, form: str) -> str:
    return NONE if found is None else f"{'<' if found[1] else ''}{found[0]:{form}}"


def problem_part(problem: Exact, points: Sequence[Point]) -> str:
    lines = []
    for method in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == method]
        evaluations = [_cell(cost(mine, e, lambda p: float(p.nfe or 1)), ".0f") for e in ERRORS]
        ms = [_cell(cost(mine, e, lambda p: (p.seconds or 1e-9) * 1e3), ".1f") for e in ERRORS]
        notes = dict.fromkeys(f"{p.setting}: {p.note}" for p in mine if p.note)
        unstable = sum(p.error is not None and not p.error < 1 for p in mine)
        text = [f"{unstable} of {len(mine)} points are worse than no solution"] if unstable else []
        lines.append([method, *evaluations, *ms, "; ".join([*text, *list(notes)[:1]])])
    columns = ["method", *(f"evaluations, {e:.0e}" for e in ERRORS), *(f"ms, {e:.0e}" for e in ERRORS), "note"]
    return f"## {problem.name}: {problem.text}\n\n{table(columns, lines)}"


def page(
    points: Sequence[Point],
    those: Sequence[Exact],
    machine: Mapping[str, str | int],
    command: str,
    quick: bool,
    figure: str,
) -> str:
    top = head("Work and precision", command, machine, quick, "error against evaluations and against time", figure)
    return "\n".join([top, f"{_HOW}\n", *(problem_part(p, [x for x in points if x.problem == p.name]) for p in those)])


def numbers(points: Sequence[Point]) -> str:
    """CSV: one point a line."""
    text = io.StringIO()
    out = csv.DictWriter(text, list(Point.__dataclass_fields__), lineterminator="\n")
    out.writeheader()
    out.writerows(map(asdict, points))
    return text.getvalue()
