"""The results of the benchmark `stiff` as Markdown, CSV and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter

from ..shared.plots import png
from ..shared.tables import NONE, Settings, csv_text, markdown_table, number, page_head
from .stiff_solves import LOW_ORDER, SOLVERS, Row, tolerances

SHOWN = (1e-4, 1e-7)  # the tolerances whose rows the page has
_COUNTS = {"evaluations": "evaluations", "njev": "Jacobians", "work": "evaluations with Jacobians", "steps": "steps"}
_RATIOS = (
    ("odenet radauIIA5", "SciPy Radau", ("evaluations", "njev", "work")),
    ("odenet esdirk54", "odenet kvaerno5", ("evaluations", "njev", "work")),
    ("odenet kvaerno5", "diffrax Kvaerno5", ("steps",)),
)
_CHEAPEST = (
    ("odenet", "SciPy", 4, "evaluations"),
    ("odenet", "SciPy", 6, "evaluations"),
    ("odenet kvaerno5", "diffrax Kvaerno5", 6, "steps"),
)

_HOW = f"""The problems of tests/stiff_problems.py, float64, rtol 1e-3 to 1e-8 by decades, atol of each problem's own
size times rtol. odenet with `max_steps=200_000` under `no_grad`, SciPy with its own differences for Jacobians, diffrax
with `PIDController(pcoeff=0.3, icoeff=0.4)`; everything else as the library has it. The one-step methods of order 3 and
less stop at {min(LOW_ORDER.values()):.0e}."""
_CONVENTIONS = """Steps are accepted and rejected ones together. SciPy does not report rejections: `SciPy Radau`'s are
counted from the times at which it evaluated f (three new ones for each attempt), those of BDF and LSODA are not known,
and their steps are accepted ones alone. Evaluations of f are those outside Jacobians, which every library counts in a
way of its own: odenet's nfe has one for each Jacobian (forward mode, of all components at once), the nfev of SciPy's
Radau and BDF none and LSODA's as many as there are components (differences), and that much is taken off. stiff.csv has
nfe as the library says it, too. In evaluations with Jacobians each Jacobian counts as one for each component, whatever
it costs the library. diffrax does not report evaluations. Digits: `scd`, -log10 of the largest relative error of a
component at the end. Counts, not seconds, are what is compared: the machine need not have been idle, and the seconds
in stiff.csv are rough."""


def _names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the problems and the solvers in their order."""
    there = {r.solver for r in rows}
    return list(dict.fromkeys(r.problem for r in rows)), [name for name in SOLVERS if name in there]


def _cell(row: Row | None) -> str:
    if row is None:
        return NONE
    if row.digits is None:
        return "failed"
    counts = [number(n, "d") for n in (row.steps, row.evaluations, row.njev)]
    return " / ".join([*counts, number(row.digits, ".1f")])


def _tolerance_section(rows: Sequence[Row], rtol: float) -> str:
    at = {(r.problem, r.solver): r for r in rows if r.rtol == rtol}
    problems, solvers = _names(list(at.values()))
    lines = [[solver, *(_cell(at.get((p, solver))) for p in problems)] for solver in solvers]
    title = f"## rtol {rtol:.0e}\n\nSteps / evaluations of f / Jacobians / digits.\n\n"
    return title + markdown_table(["solver", *problems], lines)


def cheapest(rows: Sequence[Row], family: str, digits: int, count: str) -> Row | None:
    """Return the run of a family with the least count among those with that many digits or more."""
    good = [r for r in rows if r.solver.startswith(family) and r.digits is not None and r.digits >= digits]
    return min((r for r in good if getattr(r, count) is not None), key=lambda r: getattr(r, count), default=None)


def _cheapest_section(rows: Sequence[Row]) -> str:
    problems, solvers = _names(rows)
    columns = [
        (family, digits, count)
        for *both, digits, count in _CHEAPEST
        if all(any(s.startswith(f) for s in solvers) for f in both)
        for family in both
    ]
    lines = []
    for p in problems:
        found = [cheapest([r for r in rows if r.problem == p], *column) for column in columns]
        cells = [
            f"{r.solver.split()[1]} {getattr(r, count)} ({r.digits:.1f})" if r else NONE
            for r, (_, _, count) in zip(found, columns, strict=True)
        ]
        lines.append([p, *cells])
    heads = [f"{family}, {digits} digits: {count}" for family, digits, count in columns]
    text = "## The cheapest runs with so many digits\n\nOver all tolerances; in brackets the run's digits.\n\n"
    return text + markdown_table(["problem", *heads], lines)


def _digits_section(rows: Sequence[Row]) -> str:
    lines = []
    for solver in _names(rows)[1]:
        margins = [r.digits + math.log10(r.rtol) for r in rows if r.solver == solver and r.digits is not None]
        if margins:
            lines.append([solver, str(len(margins)), str(sum(x < 0 for x in margins)), f"{min(margins):+.1f}"])
    columns = ["solver", "runs", "runs with fewer digits than rtol", "digits beyond rtol's, at worst"]
    return f"## Digits and tolerance\n\nrtol has -log10(rtol) digits.\n\n{markdown_table(columns, lines)}"


def _ratio_lines(rows: Sequence[Row], one: str, other: str, counts: Sequence[str]) -> list[list[str]]:
    """Return a table row for each count of a solver, in units of another's at the same problem and tolerance."""
    theirs = {(r.problem, r.rtol): r for r in rows if r.solver == other and r.digits is not None}
    mine = [r for r in rows if r.solver == one and r.digits is not None and (r.problem, r.rtol) in theirs]
    pairs = [(r, theirs[r.problem, r.rtol]) for r in mine]
    values = {count: [getattr(a, count) / getattr(b, count) for a, b in pairs] for count in counts}
    lines = []
    for count, ratios in values.items():
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            numbers = [f"{x:.2f}" for x in (min(ratios), mean, max(ratios))]
            lines.append([one, other, _COUNTS[count], *numbers, f"{sum(x < 1 for x in ratios)} of {len(ratios)}"])
    gains = [(a.digits or 0.0) - (b.digits or 0.0) for a, b in pairs]
    if gains:
        numbers = [f"{x:+.1f}" for x in (min(gains), sum(gains) / len(gains), max(gains))]
        lines.append([one, other, "digits: difference", *numbers, f"{sum(x < 0 for x in gains)} of {len(gains)}"])
    return lines


def _ratios_section(rows: Sequence[Row]) -> str:
    lines = [line for one, other, counts in _RATIOS for line in _ratio_lines(rows, one, other, counts)]
    text = "## Ratios at the same tolerance\n\nMeans are geometric, those of differences of digits arithmetic.\n\n"
    return text + markdown_table(["solver", "over", "quantity", "least", "mean", "most", "fewer in"], lines)


def _notes(rows: Sequence[Row]) -> str:
    """Return the runs that failed, or needed something."""
    noted: dict[tuple[str, str, str], list[float]] = {}
    for r in rows:
        if r.note:
            noted.setdefault((r.solver, r.problem, r.note), []).append(r.rtol)
    parts = [f"{sum(r.digits is None for r in rows)} of {len(rows)} runs failed."]
    for (solver, problem, note), rtols in noted.items():
        where = "every rtol" if len(rtols) == len(tolerances(solver)) else ", ".join(f"{x:.0e}" for x in rtols)
        parts.append(f"- {solver} on {problem} at {where}: {note}")
    return "## Notes\n\n" + "\n".join(parts) + "\n"


def page(rows: Sequence[Row], settings: Settings, missing: str) -> str:
    """Return the Markdown page. missing: why diffrax has no rows."""
    head = page_head("Stiff problems", settings, "stiff.png", "work and precision")
    texts = [f"diffrax is left out: {missing}."] * bool(missing)
    texts += [" ".join(text.split()) for text in (_HOW, _CONVENTIONS)]
    sections = [f"{text}\n" for text in texts] + [_tolerance_section(rows, rtol) for rtol in SHOWN]
    sections += [_cheapest_section(rows), _digits_section(rows), _ratios_section(rows), _notes(rows)]
    return "\n".join([head, *sections])


def numbers(rows: Sequence[Row]) -> str:
    """Return the CSV, one solve a line."""
    forms = {"rtol": "{:.0e}", "digits": "{:.3f}", "seconds": "{:.4f}"}
    lines = [["" if v is None else forms.get(k, "{}").format(v) for k, v in asdict(row).items()] for row in rows]
    return csv_text([field.name for field in fields(Row)], lines)


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
