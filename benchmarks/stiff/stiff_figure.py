"""The figure of the benchmark `stiff`: a panel a problem; above, evaluations by digits; below, steps by digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter

from ..shared.plots import png
from .stiff_solves import Row

_STYLES = {
    "odenet radauIIA5": ("#0072b2", "-", "o"),
    "odenet esdirk54": ("#d55e00", "-", "s"),
    "odenet kvaerno5": ("#009e73", "-", "^"),
    "odenet kvaerno3": ("#56b4e9", "-", "v"),
    "odenet trbdf2": ("#e6a000", "-", "D"),
    "SciPy Radau": ("#8e24aa", "--", "o"),
    "SciPy BDF": ("#000000", "--", "P"),
    "SciPy LSODA": ("#8a8a8a", "--", "X"),
    "diffrax Kvaerno5": ("#7f0000", ":", "^"),
}
# one-step methods of order 5
_BY_STEPS = ("odenet radauIIA5", "odenet esdirk54", "odenet kvaerno5", "SciPy Radau", "diffrax Kvaerno5")


def _style(solver: str) -> dict[str, Any]:
    colour, line, marker = _STYLES[solver]
    hollow = {"mfc": "white", "zorder": 3} if solver.startswith("SciPy") else {}  # what lies below shows through
    return {"color": colour, "ls": line, "marker": marker, "ms": 5.5, "lw": 1.4, **hollow}


def _panel(axes: Axes, rows: Sequence[Row], solvers: Sequence[str], count: str) -> None:
    for solver in solvers:
        points = [(r.digits, getattr(r, count)) for r in rows if r.solver == solver and r.digits is not None]
        known = [(x, y) for x, y in points if y is not None]
        if known:
            axes.plot(*zip(*known, strict=True), **_style(solver))
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", alpha=0.4, lw=0.6)
    axes.grid(which="minor", alpha=0.15, lw=0.5)


def draw(rows: Sequence[Row]) -> bytes:
    """Return a PNG."""
    problems = list(dict.fromkeys(r.problem for r in rows))
    solvers = [s for s in _STYLES if s in {r.solver for r in rows}]
    figure = Figure(figsize=(max(9.0, 3.6 * len(problems)), 8.4), layout="constrained")
    panels = figure.subplots(2, len(problems), squeeze=False, sharex="col")
    for i, problem in enumerate(problems):
        mine = [r for r in rows if r.problem == problem]
        panels[0][i].set_title(problem)
        _panel(panels[0][i], mine, solvers, "evaluations")
        _panel(panels[1][i], mine, [s for s in solvers if s in _BY_STEPS], "steps")
        panels[1][i].set_xlabel("digits (scd)")
    panels[0][0].set_ylabel("evaluations of f, without Jacobians")
    panels[1][0].set_ylabel("steps, accepted and rejected")
    handles = [Line2D([], [], label=s, **_style(s)) for s in solvers]
    columns = min(len(solvers), 5 if len(problems) < 4 else 9)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return png(figure)
