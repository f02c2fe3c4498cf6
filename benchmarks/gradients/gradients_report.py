"""The results of the benchmark `gradients` as Markdown, CSV and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..shared.plots import TARGET_COLOUR, bars, legend_above, png
from ..shared.tables import MIB, NONE, Settings, csv_text, markdown_table, number, page_head, target_met
from . import cost, memory
from .cost import Cost
from .exactness import Exactness
from .gradient_options import AGAIN, BASE
from .memory import Memory
from .recomputation import Recomputation

CSV_COLUMNS = ("part", "case", "gradient", "quantity", "value", "unit", "note")
_COST_QUANTITIES = {
    "median": ("seconds", "s"),
    **{name: (name, "s") for name in ("fastest", "slowest")},
    **{"ratio": ("ratio", f"of {BASE}"), "ratio, again": ("ratio_again", f"of {AGAIN}")},
    **{name: (name, "evaluations") for name in ("nfe", "backward_nfe")},
    **{"checkpoints": ("checkpoints", "states"), "difference": ("difference", "relative")},
}

_MEMORY = (
    "Growth of the peak resident memory of a process during one forward and one backward pass: method rk4, a state of "
    "1 MiB (float32), field sin(w y), one thread. A process for each number; a small solve of the same kind first, so "
    f"that loaded libraries do not count. In MiB, as the targets are; that for the difference is "
    f"{memory.DIFFERENCE_TARGET} MiB. Tight: the allocator gives freed memory back at once, so this is what tensors "
    "need, without what fragments and stays."
)
_EXACTNESS = (
    "Relative error (2-norm) of the gradients to y0, args and ts, in float64. Constant steps: against central "
    "differences (order 4) of the same numerical solution. Adaptive steps: against the ODE's own gradient, from dopri8 "
    "at tolerance 1e-12, with a target of ten times the tolerance (rtol = atol) for the continuous gradients; there "
    "`discrete` is for contrast, exact for a solution that itself errs."
)
_COST = (
    f"Wall time of one forward and one backward pass in ms, to y0 and all weights: {cost.METHOD} in constant steps in "
    "both libraries, float32, from the same weights. Median and range of turns that the contenders take one after the "
    f"other. Difference: of the gradients, from those of `{BASE}`, relative. `{BASE}` keeps the graphs of its steps up "
    "to some bytes, and evaluates nothing again for those; with N checkpoints every step is taken again once. Ratio, "
    f"with the target: to `{BASE}` in the same turn, the median; again: to `{AGAIN}`. odenet runs eagerly; diffrax is "
    "compiled (jit, compilation not counted) and does not count evaluations."
)
_RECOMPUTATION = (
    "rk4 in N constant steps with K checkpoints: evaluations of the backward pass in units of a step, less the N that "
    "the steps' own vector-Jacobian products take. Optimum: of the binomial schedule for a number of steps known "
    "beforehand, after the forward sweep."
)


@dataclass(frozen=True)
class Results:
    """The rows of all parts."""

    memory: list[Memory]
    exactness: list[Exactness]
    cost: list[Cost]
    recomputation: list[Recomputation]


def memory_section(rows: Sequence[Memory]) -> str:
    """Return a table with a row for each gradient and a column for each number of steps."""
    kinds = sorted({(r.steps, r.tight) for r in rows})
    steps = [n for n, tight in kinds if not tight]
    lines = []
    for label in dict.fromkeys(r.label for r in rows):
        mine = {(r.steps, r.tight): r for r in rows if r.label == label}
        mib = {kind: None if (g := mine[kind].growth) is None else g / MIB for kind in kinds}
        few, many = mib[steps[0], False], mib[steps[-1], False]
        difference = None if few is None or many is None else many - few
        target = mine[steps[0], False].target_mib
        met = target_met(None if few is None or many is None else max(few, many), target)
        if met == "yes":
            met = target_met(difference, memory.DIFFERENCE_TARGET)
        cells = [number(value, ".1f") for value in (few, many, difference, *(mib[k] for k in kinds if k[1]))]
        notes = dict.fromkeys(f"{r.steps} steps: {r.note}" for r in mine.values() if r.note)
        lines.append([label, *cells, "" if target is None else f"{target:g}", met, "; ".join(notes)])
    heads = [f"{steps[0]} steps", f"{steps[-1]} steps", "difference", *(f"{n} steps, tight" for n, t in kinds if t)]
    return f"## Memory\n\n{_MEMORY}\n\n{markdown_table(['gradient', *heads, 'target', 'met', 'note'], lines)}"


def exactness_section(rows: Sequence[Exactness]) -> str:
    lines = []
    for r in rows:
        cells = [f"{e:.1e}" for e in r.errors] if r.errors else [NONE] * 3
        target = "" if r.target is None else f"{r.target:.0e}"
        met = target_met(max(r.errors) if r.errors else None, r.target)
        lines.append([r.case, r.label, *cells, target, met, r.note])
    columns = ["solve", "gradient", "y0", "args", "ts", "target", "met", "note"]
    return f"## Exactness\n\n{_EXACTNESS}\n\n{markdown_table(columns, lines)}"


def _cost_line(r: Cost) -> list[str]:
    ms = [None if s is None else s * 1e3 for s in (r.seconds, r.fastest, r.slowest)]
    times = [number(s, ".1f") for s in ms]
    span = NONE if r.seconds is None else f"{times[1]} to {times[2]}"
    target = "" if r.target is None else f"{r.target:g}"
    ratios = [number(r.ratio, ".2f"), target, target_met(r.ratio, r.target), number(r.ratio_again, ".2f")]
    counts = [NONE if n is None else str(n) for n in (r.nfe, r.backward_nfe, r.checkpoints)]
    return [r.label, times[0], span, *ratios, *counts, number(r.difference, ".0e"), r.note]


def cost_section(rows: Sequence[Cost], sizes: Sequence[cost.Size]) -> str:
    """Return a table for each size."""
    columns = ["gradient", "ms", "range", "ratio", "target", "met", "again", "forward evaluations"]
    columns += ["backward evaluations", "checkpoints", "difference", "note"]
    text = f"## Cost\n\n{_COST}\n"
    for size in sizes:
        table = markdown_table(columns, [_cost_line(r) for r in rows if r.size == size.name])
        text += f"\n### {size.describe()}\n\n{table}"
    return text


def recomputation_section(rows: Sequence[Recomputation]) -> str:
    lines = []
    for r in rows:
        ratio = "" if r.recomputed is None or not r.optimum else f"{r.recomputed / r.optimum:.2f}"
        lines.append([str(r.steps), str(r.slots), number(r.recomputed, "g"), str(r.optimum), ratio, r.note])
    columns = ["steps N", "checkpoints K", "recomputed steps", "optimum", "ratio", "note"]
    return f"## Recomputation\n\n{_RECOMPUTATION}\n\n{markdown_table(columns, lines)}"


def page(results: Results, settings: Settings) -> str:
    """Return the Markdown page."""
    sections = (
        page_head("Gradients", settings, "gradients.png", "memory and time of the gradients"),
        memory_section(results.memory),
        exactness_section(results.exactness),
        cost_section(results.cost, cost.QUICK if settings.quick else cost.SIZES),
        recomputation_section(results.recomputation),
    )
    return "\n".join(sections)


def numbers(results: Results) -> str:
    """Return the CSV, one number a line."""
    return csv_text(CSV_COLUMNS, _quantities(results))


def _quantities(results: Results) -> Iterator[list[Any]]:
    for m in results.memory:
        yield ["memory", f"{m.steps} steps{', tight' * m.tight}", m.label, "growth", m.growth, "bytes", m.note]
    for e in results.exactness:
        for to, error in zip(("y0", "args", "ts"), e.errors or (None, None, None), strict=True):
            yield ["exactness", e.case, e.label, f"error to {to}", error, "relative", e.note]
    for c in results.cost:
        for quantity, (name, unit) in _COST_QUANTITIES.items():
            yield ["cost", c.size, c.label, quantity, getattr(c, name), unit, c.note]
    for r in results.recomputation:
        case = f"{r.steps} steps, {r.slots} checkpoints"
        for quantity, value in (("recomputed", r.recomputed), ("optimum", r.optimum)):
            yield ["recomputation", case, BASE, quantity, value, "steps", r.note]


def _memory(axes: Axes, rows: Sequence[Memory]) -> None:
    rows = [r for r in rows if not r.tight]
    labels = list(dict.fromkeys(r.label for r in rows))
    found = {(r.label, r.steps): r.growth for r in rows}
    series: dict[str, list[float | None]] = {}
    for steps in sorted({r.steps for r in rows}):
        growths = [found.get((label, steps)) for label in labels]
        series[f"{steps} steps"] = [None if g is None else g / MIB for g in growths]
    axes.set(xscale="log", xlabel="growth of the peak memory (MiB)")
    bars(axes, labels, series, ".0f")
    targets = {r.target_mib for r in rows if r.target_mib is not None}
    if targets:
        axes.axvline(min(targets), color=TARGET_COLOUR, lw=1, ls="--", label="target")
    axes.set_xlim(left=1)
    axes.xaxis.set_major_formatter("{x:g}")
    legend_above(axes)


def _time(axes: Axes, rows: Sequence[Cost]) -> None:
    labels = list(dict.fromkeys(r.label for r in rows))
    found = {(r.label, r.size): r.ratio for r in rows}
    series = {size: [found.get((label, size)) for label in labels] for size in dict.fromkeys(r.size for r in rows)}
    axes.axvline(1.0, color="#444444", lw=0.8, zorder=0)
    bars(axes, labels, series, ".2f")
    targets = {r.label: r.target for r in rows if r.target is not None}
    for i, (label, target) in enumerate(targets.items()):
        row = labels.index(label)
        name = "target" if i == 0 else None
        axes.plot([target, target], [row - 0.45, row + 0.45], color=TARGET_COLOUR, lw=1, ls="--", label=name)
    axes.set(xlabel=f"time, forward and backward ({BASE}: 1)")
    legend_above(axes)


def draw(memory_rows: Sequence[Memory], cost_rows: Sequence[Cost]) -> bytes:
    """Return a PNG."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _memory(left, memory_rows)
    _time(right, cost_rows)
    return png(figure)
