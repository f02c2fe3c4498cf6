"""Work and precision on five stiff problems, beside SciPy and diffrax: benchmarks/results/stiff.md.

python benchmarks/stiff.py [--out DIR] [--diffrax PYTHON] [--problems ROBER,HIRES,OREGO,VDPOL,POLLU]
"""

from __future__ import annotations

import argparse
import csv
import inspect
import io
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter
from scipy.integrate import solve_ivp

import odenet
from odenet.bench.figure import png
from odenet.bench.markdown import NONE, number, table

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from stiff_problems import PROBLEMS, RATES, StiffProblem

MAX_STEPS = 200_000
SIZES = {p.name: p.y0.numel() for p in PROBLEMS}
RTOLS = tuple(10.0**-k for k in range(3, 9))
SHOWN = (1e-4, 1e-7)
"""The tolerances whose rows stiff.md shows."""
LOW = {"odenet kvaerno3": 1e-6, "odenet trbdf2": 1e-6, "diffrax Kvaerno3": 1e-6}
"""The tightest tolerance for the methods of low order: beyond it they take more steps than anyone would."""
WORK = "evaluations with Jacobians"
SCIPY_STEPS = "SciPy Radau"
DIFFRAX = ("diffrax Kvaerno5", "diffrax Kvaerno3")
STYLES = {
    "odenet radauIIA5": ("#0072b2", "-", "o"),
    "odenet esdirk54": ("#d55e00", "-", "s"),
    "odenet kvaerno5": ("#009e73", "-", "^"),
    "odenet kvaerno3": ("#56b4e9", "-", "v"),
    "odenet trbdf2": ("#e6a000", "-", "D"),
    "SciPy Radau": ("#8e24aa", "--", "o"),
    "SciPy BDF": ("#000000", "--", "P"),
    "SciPy LSODA": ("#8a8a8a", "--", "X"),
    "diffrax Kvaerno5": ("#7f0000", ":", "^"),
    "diffrax Kvaerno3": ("#c08080", ":", "v"),
}
"""Each solver's colour, line and marker, in the order of the tables."""
BY_STEPS = ("odenet radauIIA5", "odenet esdirk54", "odenet kvaerno5", SCIPY_STEPS, "diffrax Kvaerno5")
"""The one-step methods of order 5 in the figure's second row."""

CONVENTIONS = f"""Steps are accepted and rejected ones together. SciPy does not report rejections: `{SCIPY_STEPS}`'s are
counted from the times at which it evaluated f (three new ones for each attempt), those of BDF and LSODA are not known,
and their steps are accepted ones alone. Evaluations of f are those outside Jacobians, which every library counts in a
way of its own: odenet's nfe has one for each Jacobian (forward mode, of all components at once), the nfev of SciPy's
Radau and BDF none and LSODA's as many as there are components (differences), and that much is taken off. stiff.csv has
nfe as the library says it, too. In {WORK} each Jacobian counts as one for each component, whatever it
costs the library. diffrax does not report evaluations. Digits: `scd`, -log10 of the largest relative error of a
component at the end. Counts, not seconds, are what is compared: the machine need not have been idle, and the seconds
in stiff.csv are rough. The one-step methods of order 3 and less stop at {min(LOW.values()):.0e}."""


@dataclass(frozen=True)
class Row:
    """One solve. Counts are None where the library does not give them; seconds are of wall time, without compiling.

    nfe: as the library counts it. evaluations: of f, without those for Jacobians. digits: `StiffProblem.scd`.
    """

    problem: str
    solver: str
    rtol: float
    accepted: int | None = None
    rejected: int | None = None
    nfe: int | None = None
    evaluations: int | None = None
    njev: int | None = None
    nlu: int | None = None
    digits: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def steps(self) -> int | None:
        """Attempted steps: accepted and, where they are known, rejected ones."""
        return None if self.accepted is None else self.accepted + (self.rejected or 0)

    @property
    def work(self) -> int | None:
        """Evaluations, with one for each component of each Jacobian, as by differences."""
        known = self.evaluations is not None and self.njev is not None
        return self.evaluations + SIZES[self.problem] * self.njev if known else None


def tolerances(solver: str) -> list[float]:
    return [rtol for rtol in RTOLS if rtol > 0.9 * LOW.get(solver, 0.0)]


def digits(problem: StiffProblem, y1: Any) -> float | None:
    found = problem.scd(y1)
    return found if math.isfinite(found) else None


def with_odenet(p: StiffProblem, solver: str, rtol: float) -> Row:
    row = Row(p.name, solver, rtol)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            sol = odenet.solve(
                p.f,
                p.y0,
                [0.0, p.t1],
                method=solver.split()[1],
                rtol=rtol,
                atol=rtol * p.atol_over_rtol,
                max_steps=MAX_STEPS,
            )
    except odenet.SolveError as e:
        return replace(row, seconds=time.perf_counter() - start, note=f"failed: {type(e).__name__}: {first_line(e)}")
    seconds = time.perf_counter() - start
    counts = {name: int(sol.stats[name]) for name in ("accepted", "rejected", "nfe", "njev", "nlu")}
    outside = counts["nfe"] - counts["njev"]
    return replace(row, **counts, evaluations=outside, digits=digits(p, sol.y1), seconds=seconds)


def with_scipy(p: StiffProblem, solver: str, rtol: float) -> Row:
    asked: set[float] = set()

    def f(t: float, y: np.ndarray) -> np.ndarray:
        asked.add(float(t))
        return p.numpy_f(t, y)

    start = time.perf_counter()
    atol = rtol * p.atol_over_rtol
    sol = solve_ivp(f, (0.0, p.t1), p.y0.numpy(), method=solver.split()[1], rtol=rtol, atol=atol)
    seconds = time.perf_counter() - start
    accepted = sol.t.size - 1
    # the start, the first step's trial, and then three stages for each attempt
    rejected = round((len(asked) - 2) / 3) - accepted if solver == SCIPY_STEPS else None
    within = p.y0.numel() * sol.njev if solver == "SciPy LSODA" else 0
    counts = {"nfe": int(sol.nfev), "njev": int(sol.njev), "nlu": int(sol.nlu), "evaluations": int(sol.nfev - within)}
    note = "" if sol.success else f"failed: {first_line(sol.message)}"
    found = digits(p, sol.y[:, -1]) if sol.success else None
    return Row(p.name, solver, rtol, accepted, rejected, **counts, digits=found, seconds=seconds, note=note)


def first_line(message: object) -> str:
    return (str(message).strip().splitlines() or [""])[0][:200]


# The next two run in a process of their own, from their source: the Python that has diffrax need not have PyTorch.


def answer() -> None:
    """Print a line of versions, and one for each solve, as JSON, for the problems that come as JSON on stdin."""
    import importlib.metadata
    import json
    import os
    import sys

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    print(json.dumps({name: importlib.metadata.version(name) for name in ("diffrax", "jax")}), flush=True)
    given = json.load(sys.stdin)
    for problem in given["problems"]:
        for name, rtols in given["rtols"].items():
            for found in solves(problem, name.split()[1], rtols, given["max_steps"], given["constants"]):
                print(json.dumps({"problem": problem["name"], "solver": name, **found}), flush=True)


def solves(problem: dict, name: str, rtols: list, max_steps: int, constants: dict):  # type: ignore[no-untyped-def]
    """The problem by a solver of diffrax at each tolerance; where it finds no first step, from a given one."""
    import time

    import diffrax
    import jax
    import jax.numpy as jnp

    scope = dict(constants)
    exec("from __future__ import annotations\n" + problem["source"], scope)
    term = diffrax.ODETerm(lambda t, y, args: jnp.stack(scope[problem["formulas"]](list(y))))

    @jax.jit
    def solve(y0, rtol, atol, dt0):
        sol = diffrax.diffeqsolve(
            term,
            getattr(diffrax, name)(),
            0.0,
            problem["t1"],
            dt0,
            y0,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=max_steps,
            throw=False,
        )
        return sol.ys[-1], sol.stats, sol.result == diffrax.RESULTS.successful, sol.ts[-1]

    y0 = jnp.array(problem["y0"])
    for rtol in rtols:
        notes = []
        for dt0 in (None, 1e-6):
            inputs = (y0, rtol, rtol * problem["atol_over_rtol"], dt0)
            jax.block_until_ready(solve(*inputs))  # compiles
            start = time.perf_counter()
            y1, stats, ok, t = jax.block_until_ready(solve(*inputs))
            seconds = time.perf_counter() - start
            if bool(ok):
                notes += [] if dt0 is None else [f"run with dt0={dt0:g}"]
                break
            notes.append(f"fails at t={float(t):.3g} with dt0={dt0}")
        counts = {k: int(stats[f"num_{k}_steps"]) for k in ("accepted", "rejected")}
        yield {"rtol": rtol, **counts, "y1": y1.tolist(), "ok": bool(ok), "seconds": seconds, "note": ", ".join(notes)}


def source(functions: Iterable[Callable[..., Any]]) -> str:
    return "\n\n".join(["from __future__ import annotations", *map(inspect.getsource, functions)])


def handed_over(p: StiffProblem) -> dict[str, Any]:
    """What diffrax's process has to know of a problem: numbers, and its formulas as source."""
    formulas = inspect.getclosurevars(p.numpy_f).nonlocals["formulas"]
    data = {"name": p.name, "y0": p.y0.tolist(), "t1": p.t1, "atol_over_rtol": p.atol_over_rtol}
    return {**data, "source": inspect.getsource(formulas), "formulas": formulas.__name__}


def with_diffrax(python: str, problems: Sequence[StiffProblem]) -> tuple[list[Row], dict[str, str], str]:
    """Rows and versions, and "" or why there are none."""
    try:
        able = subprocess.run([python, "-c", "import diffrax"], capture_output=True, text=True, check=False)
    except OSError as e:
        return [], {}, f"cannot be started ({e.strerror})"
    if able.returncode:
        return [], {}, f"cannot import diffrax ({(able.stderr.strip().splitlines() or [''])[-1]})"
    asked = {
        "problems": [handed_over(p) for p in problems],
        "rtols": {solver: tolerances(solver) for solver in DIFFRAX},
        "max_steps": MAX_STEPS,
        "constants": {"RATES": RATES},
    }
    code = source([solves, answer]) + "\n\nanswer()\n"
    done = subprocess.run([python, "-c", code], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    versions, *found = map(json.loads, done.stdout.splitlines())
    by_name = {p.name: p for p in problems}
    return [of_diffrax(by_name[one["problem"]], one) for one in found], versions, ""


def of_diffrax(p: StiffProblem, found: dict[str, Any]) -> Row:
    given = {name: found[name] for name in ("solver", "rtol", "accepted", "rejected", "seconds", "note")}
    if found["ok"]:
        return Row(p.name, **given, digits=digits(p, found["y1"]))
    return Row(p.name, **{**given, "note": f"failed: {found['note']}"})


def measure(problems: Sequence[StiffProblem]) -> Iterator[Row]:
    """odenet's and SciPy's rows; each method has one loose solve first, whose time is not kept."""
    for p in problems:
        for solver in (name for name in STYLES if name not in DIFFRAX):
            one = with_odenet if solver.startswith("odenet") else with_scipy
            one(p, solver, 1e-2)
            for rtol in tolerances(solver):
                row = one(p, solver, rtol)
                print(row, file=sys.stderr, flush=True)
                yield row


def as_csv(rows: Sequence[Row]) -> str:
    forms = {"rtol": "{:.0e}", "digits": "{:.3f}", "seconds": "{:.4f}"}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in rows:
        writer.writerow(["" if v is None else forms.get(k, "{}").format(v) for k, v in asdict(row).items()])
    return out.getvalue()


def cell(row: Row | None) -> str:
    """Steps / evaluations / Jacobians / digits."""
    if row is None:
        return NONE
    if row.digits is None:
        return "failed"
    counts = [number(n, "d") for n in (row.steps, row.evaluations, row.njev)]
    return " / ".join([*counts, number(row.digits, ".1f")])


def tables(rows: Sequence[Row]) -> str:
    at = {(r.problem, r.solver, r.rtol): r for r in rows}
    problems, solvers = names(rows)
    parts = []
    for rtol in SHOWN:
        lines = [[solver, *(cell(at.get((p, solver, rtol))) for p in problems)] for solver in solvers]
        kept = [line for line in lines if any(text != NONE for text in line[1:])]
        title = f"## rtol {rtol:.0e}\n\nSteps / evaluations of f / Jacobians / digits.\n\n"
        parts.append(title + table(["solver", *problems], kept))
    return "\n".join(parts)


def names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The problems in their order, and the solvers in that of STYLES."""
    there = {r.solver for r in rows}
    return list(dict.fromkeys(r.problem for r in rows)), [name for name in STYLES if name in there]


def pairs(rows: Sequence[Row], one: str, other: str) -> list[tuple[Row, Row]]:
    """The rows of two solvers at the same problem and tolerance, where both arrived."""
    done = {(r.problem, r.rtol): r for r in rows if r.solver == other and r.digits is not None}
    mine = [r for r in rows if r.solver == one and r.digits is not None]
    return [(r, done[r.problem, r.rtol]) for r in mine if (r.problem, r.rtol) in done]


def spread(both: Sequence[tuple[Row, Row]], count: str, what: str) -> str:
    """How many times as much of something the first of each pair takes."""
    ratios = [getattr(a, count) / getattr(b, count) for a, b in both]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    fewer = sum(x < 1 for x in ratios)
    times = f"{min(ratios):.2f} to {max(ratios):.2f} times the {what}"
    return f"{times} (geometric mean {mean:.2f}, fewer in {fewer} of {len(ratios)} pairs)"


def beside(rows: Sequence[Row], one: str, other: str, counts: dict[str, str]) -> str:
    """A sentence: counts of a solver's, in units of another's at the same tolerance, and digits more or less."""
    both = pairs(rows, one, other)
    if not both:
        return ""
    gains = [a.digits - b.digits for a, b in both if a.digits is not None and b.digits is not None]
    taken = ", ".join(spread(both, count, what) for count, what in counts.items())
    return (
        f"Beside {other} at the same tolerance, {one} takes {taken}; its digits differ by {min(gains):+.1f} to "
        f"{max(gains):+.1f} (mean {sum(gains) / len(gains):+.1f}, more in {sum(x > 0 for x in gains)} of {len(gains)})."
    )


def cheapest(rows: Sequence[Row], family: str, wanted: int, count: str) -> Row | None:
    """The run with the fewest of something among those of a family that have so many digits or more."""
    good = [r for r in rows if r.solver.startswith(family) and r.digits is not None and r.digits >= wanted]
    return min((r for r in good if getattr(r, count) is not None), key=lambda r: getattr(r, count), default=None)


def cheapest_of_both(rows: Sequence[Row], sought: tuple[str, str, int, str]) -> dict[str, list[Row | None]]:
    """For each problem the cheapest run of one family and of the other."""
    *families, wanted, count = sought
    of = {p: [r for r in rows if r.problem == p] for p in names(rows)[0]}
    return {p: [cheapest(mine, str(family), int(wanted), str(count)) for family in families] for p, mine in of.items()}


def wins(rows: Sequence[Row], sought: tuple[str, str, int, str]) -> str:
    """On how many problems the first family's cheapest run costs less than the other's."""
    count = sought[-1]
    found = [(a, b) for a, b in cheapest_of_both(rows, sought).values() if a and b]
    return f"{sum(getattr(a, count) < getattr(b, count) for a, b in found)} of {len(found)} problems"


def bargains(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """A table of the cheapest runs with so many digits, and what it comes to."""
    solvers = names(rows)[1]
    both, last = ("odenet", "SciPy"), ("odenet kvaerno5", "diffrax Kvaerno5", 6, "steps")
    columns = [(*both, 4, "evaluations"), (*both, 6, "evaluations")] + [last] * (last[1] in solvers)
    cells, sentences = {p: [p] for p in names(rows)[0]}, []
    for one, other, wanted, count in columns:
        for p, found in cheapest_of_both(rows, (one, other, wanted, count)).items():
            cells[p] += [f"{r.solver.split()[1]} {getattr(r, count)} ({r.digits:.1f})" if r else NONE for r in found]
        sentence = f"Of the runs with {wanted} digits or more, {one}'s cheapest takes fewer {count} than {other}'s on "
        sentence += wins(rows, (one, other, wanted, count))
        if count == "evaluations":
            sentence += f" (on {wins(rows, (one, other, wanted, 'work'))} by {WORK})"
        sentences.append(f"{sentence}.")
    head = [f"{family}, {wanted} digits: {count}" for *both, wanted, count in columns for family in both]
    return table(["problem", *head], cells.values()), sentences


def shortfall(rows: Sequence[Row]) -> tuple[str, str]:
    """A table: in how many runs of each solver the digits are fewer than the tolerance has, and a sentence on it."""
    lines, shares = [], {}
    for solver in names(rows)[1]:
        margins = [r.digits + math.log10(r.rtol) for r in rows if r.solver == solver and r.digits is not None]
        if margins:
            below = sum(x < 0 for x in margins)
            shares[solver] = below / len(margins)
            lines.append([solver, str(len(margins)), str(below), format(min(margins), "+.1f")])
    said = []
    for word, share in (("least", min(shares.values())), ("most", max(shares.values()))):
        alike = ", ".join(solver for solver, mine in shares.items() if mine == share)
        said.append(f"{word} often by {alike} (in {share:.0%} of runs)")
    sentence = f"Digits are fewer than those of rtol {' and '.join(said)}."
    return table(
        ["solver", "runs", "runs with fewer digits than rtol", "digits beyond rtol's, at worst"], lines
    ), sentence


def exceptions(rows: Sequence[Row]) -> str:
    """A sentence: the runs that failed, or that needed something."""
    noted: dict[tuple[str, str, str], list[float]] = {}
    for r in rows:
        if r.note:
            noted.setdefault((r.problem, r.solver, r.note), []).append(r.rtol)
    parts = []
    for (problem, solver, note), rtols in noted.items():
        where = "every rtol" if len(rtols) == len(tolerances(solver)) else ", ".join(f"{rtol:.0e}" for rtol in rtols)
        parts.append(f"{solver} on {problem} at {where}: {note}")
    failed = f"{sum(r.digits is None for r in rows)} of {len(rows)} runs failed."
    return f"{failed} Notes: {'; '.join(parts)}." if parts else failed


def reading(rows: Sequence[Row]) -> str:
    """Two tables made from all rows, and a paragraph on what they and the others say."""
    work = {"evaluations": "evaluations", "njev": "Jacobians", "work": WORK}
    cheap, sentences = bargains(rows)
    short, missed = shortfall(rows)
    said = [
        beside(rows, "odenet radauIIA5", "SciPy Radau", work),
        beside(rows, "odenet esdirk54", "odenet kvaerno5", work),
        beside(rows, "odenet kvaerno5", "diffrax Kvaerno5", {"steps": "steps"}),
        *sentences,
        missed,
        exceptions(rows),
    ]
    return (
        f"## The cheapest runs with so many digits\n\nOver all tolerances; in brackets the run's digits.\n\n{cheap}\n"
        f"## Digits and tolerance\n\nrtol has -log10(rtol) digits.\n\n{short}\n"
        f"## In words\n\n{' '.join(filter(None, said))}\n"
    )


def page(rows: Sequence[Row], command: str, versions: dict[str, str], missing: str) -> str:
    facts = ", ".join(f"{name} {version}" for name, version in versions.items())
    problems = names(rows)[0]
    left_out = f"diffrax is left out: the Python given for it {missing}.\n\n" if missing else ""
    settings = (
        f"{', '.join(problems)} of tests/stiff_problems.py, float64, rtol 1e-3 to 1e-8 by decades, atol of each "
        "problem's own size times rtol. odenet with `max_steps=200_000` under `no_grad`, SciPy with its own "
        "differences for Jacobians, diffrax with `PIDController(pcoeff=0.3, icoeff=0.4)`; everything else as the "
        "library has it."
    )
    return (
        f"# Stiff problems\n\n```\n{command}\n```\n\n{facts}.\n\n{left_out}![work and precision](stiff.png)\n\n"
        f"{settings}\n\n{' '.join(CONVENTIONS.split())}\n\n{tables(rows)}\n{reading(rows)}"
    )


def draw(rows: Sequence[Row]) -> Figure:
    """A panel a problem: above, evaluations by digits; below, steps by digits."""
    problems, solvers = names(rows)
    figure = Figure(figsize=(max(9.0, 3.6 * len(problems)), 8.4), layout="constrained")
    panels = figure.subplots(2, len(problems), squeeze=False, sharex="col")
    for i, problem in enumerate(problems):
        mine = [r for r in rows if r.problem == problem]
        panels[0][i].set_title(problem)
        lines(panels[0][i], mine, solvers, "evaluations")
        lines(panels[1][i], mine, [s for s in solvers if s in BY_STEPS], "steps")
        panels[1][i].set_xlabel("digits (scd)")
    panels[0][0].set_ylabel("evaluations of f, without Jacobians")
    panels[1][0].set_ylabel("steps, accepted and rejected")
    drawn = [s for s in solvers if s != "diffrax Kvaerno3"]
    handles = [Line2D([], [], label=s, **style(s)) for s in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(drawn), 5 if len(problems) < 4 else 9))
    return figure


def style(solver: str) -> dict[str, Any]:
    colour, line, marker = STYLES[solver]
    hollow = {"mfc": "white", "zorder": 3} if solver.startswith("SciPy") else {}  # what lies below shows through
    return {"color": colour, "ls": line, "marker": marker, "ms": 5.5, "lw": 1.4, **hollow}


def lines(axes: Axes, rows: Sequence[Row], solvers: Sequence[str], count: str) -> None:
    for solver in solvers:
        points = [(r.digits, getattr(r, count)) for r in rows if r.solver == solver and r.digits is not None]
        kept = [(x, y) for x, y in points if y is not None]
        if kept:
            axes.plot(*zip(*kept, strict=True), **style(solver))
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", alpha=0.4, lw=0.6)
    axes.grid(which="minor", alpha=0.15, lw=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--diffrax", metavar="PYTHON", help="a Python that has diffrax (default: this one)")
    parser.add_argument("--problems", default=",".join(p.name for p in PROBLEMS), help="names, with commas")
    given = parser.parse_args()
    by_name = {p.name: p for p in PROBLEMS}
    chosen = list(dict.fromkeys(given.problems.upper().split(",")))
    if unknown := [name for name in chosen if name not in by_name]:
        parser.error(f"no such problem: {', '.join(unknown)}; there are {', '.join(by_name)}")
    problems = [by_name[name] for name in chosen]
    theirs, versions, missing = with_diffrax(given.diffrax or sys.executable, problems)
    found = [*measure(problems), *theirs]
    order = list(STYLES)
    rows = sorted(found, key=lambda r: (chosen.index(r.problem), order.index(r.solver), -r.rtol))
    command = "python benchmarks/stiff.py" + (" --diffrax PYTHON" if given.diffrax else "")
    command += "" if len(problems) == len(PROBLEMS) else f" --problems {','.join(chosen)}"
    here = {"python": platform.python_version(), "odenet": odenet.__version__, "torch": torch.__version__}
    versions = {**here, "numpy": np.__version__, "scipy": scipy.__version__, **versions}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "stiff.csv").write_text(as_csv(rows))
    (given.out / "stiff.md").write_text(page(rows, command, versions, missing))
    (given.out / "stiff.png").write_bytes(png(draw(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
