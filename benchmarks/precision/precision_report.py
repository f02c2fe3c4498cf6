"""The results of the benchmark `precision` as Markdown, CSV and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..shared.plots import png
from ..shared.tables import NONE, Settings, csv_text, markdown_table, page_head
from .exact_problems import PROBLEMS, ExactProblem
from .sweep import METHODS, Point

ERRORS = (1e-3, 1e-6, 1e-9)
_HOW = (
    "Methods with an error estimate over tolerances (rtol = atol), the others over numbers of constant steps; float64, "
    "eager, no gradient; median of five solves, one where it takes a second, and then nothing finer. Error: relative "
    "(2-norm) at the end, from the exact solution. What an error costs is interpolated between the points on both "
    "sides of it, in logarithms; `-`: no point is that good, `<`: the worst point already is. Evaluations of an "
    "implicit method are those that its Newton solves make, without the products with Jacobians."
)


def cost_of_error(points: Sequence[Point], error: float, work: Callable[[Point], float]) -> tuple[float, bool] | None:
    """Return the least work for an error, and whether it is only an upper bound; None where no point is that good."""
    known = sorted((p for p in points if p.error is not None and math.isfinite(p.error)), key=work)
    before: Point | None = None
    for p in known:
        mine = max(p.error or 0.0, 1e-300)
        if mine <= error:
            if before is None or before.error is None:
                return work(p), True
            part = math.log(before.error / error) / math.log(before.error / mine)
            return math.exp(math.log(work(before)) * (1 - part) + math.log(work(p)) * part), False
        before = p
    return None


def _cell(cost: tuple[float, bool] | None, form: str) -> str:
    return NONE if cost is None else f"{'<' if cost[1] else ''}{cost[0]:{form}}"


def _section(problem: ExactProblem, points: Sequence[Point]) -> str:
    lines = []
    for method in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == method]
        evaluations = [_cell(cost_of_error(mine, e, lambda p: float(p.nfe or 1)), ".0f") for e in ERRORS]
        ms = [_cell(cost_of_error(mine, e, lambda p: (p.seconds or 1e-9) * 1e3), ".1f") for e in ERRORS]
        notes = [f"{p.setting}: {p.note}" for p in mine if p.note][:1]
        unstable = sum(p.error is not None and not p.error < 1 for p in mine)
        text = [f"{unstable} of {len(mine)} points are worse than no solution"] if unstable else []
        lines.append([method, *evaluations, *ms, "; ".join([*text, *notes])])
    columns = ["method", *(f"evaluations, {e:.0e}" for e in ERRORS), *(f"ms, {e:.0e}" for e in ERRORS), "note"]
    return f"## {problem.name}: {problem.text}\n\n{markdown_table(columns, lines)}"


def page(points: Sequence[Point], settings: Settings) -> str:
    """Return the Markdown page."""
    caption = "error against evaluations and against time"
    head = page_head("Work and precision", settings, "work_precision.png", caption)
    measured = {problem: [p for p in points if p.problem == problem.name] for problem in PROBLEMS}
    return "\n".join([head, f"{_HOW}\n", *(_section(problem, mine) for problem, mine in measured.items() if mine)])


def numbers(points: Sequence[Point]) -> str:
    """Return the CSV, one point a line."""
    return csv_text([f.name for f in fields(Point)], [astuple(p) for p in points])


_MARKS = "osv^D<>*"


def _style(method: str) -> dict[str, Any]:
    """Return the style of a method, the same in every panel. Methods with constant steps are dashed."""
    number = list(METHODS).index(method)
    style = "-" if METHODS[method].error_order is not None else "--"
    return {"color": colormaps["tab20"](number % 20), "marker": _MARKS[number % len(_MARKS)], "ls": style}


def _panel(axes: Axes, points: Sequence[Point], work: Callable[[Point], float | None], label: str) -> None:
    for method in dict.fromkeys(p.method for p in points):
        drawn = [(w, p.error) for p in points if p.method == method and p.error and p.error < 1 and (w := work(p))]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), label=method, lw=1, ms=4, **_style(method))
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="relative error at the end")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def draw(points: Sequence[Point]) -> bytes:
    """Return a PNG."""
    measured = [problem for problem in PROBLEMS if any(p.problem == problem.name for p in points)]
    figure = Figure(figsize=(13, 4.6 * len(measured)), layout="constrained")
    for (left, right), problem in zip(figure.subplots(len(measured), 2, squeeze=False), measured, strict=True):
        mine = [p for p in points if p.problem == problem.name]
        _panel(left, mine, lambda p: p.nfe, "evaluations of f")
        _panel(right, mine, lambda p: p.seconds and p.seconds * 1e3, "ms")
        left.set_title(f"{problem.name}: {problem.text}", loc="left", fontsize=10)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return png(figure)
