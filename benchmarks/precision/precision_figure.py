"""The work-precision diagram: a row for each problem, error against evaluations and against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..shared.plots import png
from .exact_problems import PROBLEMS
from .sweep import METHODS, Point

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
