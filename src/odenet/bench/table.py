"""The results of `odenet bench gradients` as text: a page, and a table of single numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from . import cost, memory
from .contenders import AGAIN, BASE
from .markdown import NONE, head, met, number, table
from .results import Cost, Exactness, Memory, Recomputation, Results

MIB = 2**20
CSV_COLUMNS = ("part", "case", "gradient", "quantity", "value", "unit", "note")

_MEMORY = (
    "Growth of the peak resident memory of a process during one forward and one backward pass: method rk4, a state of "
    "1 MiB (float32), field sin(w y), one thread. A process for each number; a small solve of the same kind first, so "
    "that loaded libraries do not count. In MiB, as the targets are; that for the difference is {further} MiB. Tight: "
    "the allocator gives freed memory back at once, so this is what tensors need, without what fragments and stays."
)
_EXACTNESS = (
    "Relative error (2-norm) of the gradients to y0, args and ts, in float64. Constant steps: against central "
    "differences (order 4) of the same numerical solution. Adaptive steps: against the ODE's own gradient, from dopri8 "
    "at tolerance 1e-12, with a target of ten times the tolerance (rtol = atol) for the continuous gradients; there "
    "`discrete` is for contrast, exact for a solution that itself errs."
)
_COST = (
    "Wall time of one forward and one backward pass in ms, to y0 and all weights: {method} in constant steps in both "
    "libraries, float32, from the same weights. Median and range of turns that the contenders take one after the "
    "other. Difference: of the gradients, from those of `{base}`, relative. `{base}` keeps the graphs of its steps up "
    "to some bytes, and evaluates nothing again for those; with N checkpoints every step is taken again once. Ratio, "
    "with the target: to `{base}` in the same turn, the median; again: to `{again}`. odenet runs eagerly; diffrax is "
    "compiled (jit, compilation not counted) and does not count evaluations."
)
_RECOMPUTATION = (
    "rk4 in N constant steps with K checkpoints: evaluations of the backward pass in units of a step, less the N that "
    "the steps' own vector-Jacobian products take. Optimum: of the binomial schedule for a number of steps known "
    "beforehand, after the forward sweep."
)


def memory_part(rows: Sequence[Memory]) -> str:
    """One row a gradient, one column a number of steps."""
    kinds = sorted({(r.steps, r.tight) for r in rows})
    steps = [n for n, tight in kinds if not tight]
    lines = []
    for label in dict.fromkeys(r.label for r in rows):
        mine = {(r.steps, r.tight): r for r in rows if r.label == label}
        mib = {kind: None if (g := mine[kind].growth) is None else g / MIB for kind in kinds}
        few, many = mib[steps[0], False], mib[steps[-1], False]
        further = None if few is None or many is None else many - few
        target = mine[steps[0], False].target_mib
        kept = met(None if few is None or many is None else max(few, many), target)
        if kept == "yes":
            kept = met(further, memory.FURTHER_MIB)
        cells = [number(value, ".1f") for value in (few, many, further, *(mib[k] for k in kinds if k[1]))]
        notes = dict.fromkeys(f"{r.steps} steps: {r.note}" for r in mine.values() if r.note)
        lines.append([label, *cells, "" if target is None else f"{target:g}", kept, "; ".join(notes)])
    heads = [f"{steps[0]} steps", f"{steps[-1]} steps", "difference", *(f"{n} steps, tight" for n, t in kinds if t)]
    columns = ["gradient", *heads, "target", "met", "note"]
    return f"## Memory\n\n{_MEMORY.format(further=memory.FURTHER_MIB)}\n\n{table(columns, lines)}"


def exactness_part(rows: Sequence[Exactness]) -> str:
    lines = []
    for r in rows:
        cells = [NONE] * 3 if r.errors is None else [f"{e:.1e}" for e in r.errors]
        worst = None if r.errors is None else max(r.errors)
        target = "" if r.target is None else f"{r.target:.0e}"
        lines.append([r.case, r.label, *cells, target, met(worst, r.target), r.note])
    columns = ["solve", "gradient", "y0", "args", "ts", "target", "met", "note"]
    return f"## Exactness\n\n{_EXACTNESS}\n\n{table(columns, lines)}"


def cost_part(rows: Sequence[Cost], sizes: Sequence[cost.Size]) -> str:
    """One table a size."""
    columns = [
        "gradient",
        "ms",
        "range",
        "ratio",
        "target",
        "met",
        "again",
        "forward evaluations",
        "backward evaluations",
    ]
    columns += ["checkpoints", "difference", "note"]
    text = f"## Cost\n\n{_COST.format(method=cost.METHOD, base=BASE, again=AGAIN)}\n"
    for size in sizes:
        lines = []
        for r in (r for r in rows if r.size == size.name):
            ms = [None if s is None else s * 1e3 for s in (r.seconds, r.fastest, r.slowest)]
            span = NONE if ms[1] is None or ms[2] is None else f"{ms[1]:.1f} to {ms[2]:.1f}"
            target = "" if r.target is None else f"{r.target:g}"
            times = [number(ms[0], ".1f"), span, number(r.ratio, ".2f"), target, met(r.ratio, r.target)]
            times.append(number(r.ratio_again, ".2f"))
            counts = [NONE if n is None else str(n) for n in (r.nfe, r.backward_nfe, r.checkpoints)]
            lines.append([r.label, *times, *counts, number(r.difference, ".0e"), r.note])
        text += f"\n### {size.describe()}\n\n{table(columns, lines)}"
    return text


def recomputation_part(rows: Sequence[Recomputation]) -> str:
    lines = []
    for r in rows:
        over = "" if r.recomputed is None or not r.optimum else f"{r.recomputed / r.optimum:.2f}"
        counts = [number(r.recomputed, "g"), number(r.optimum, "d"), over]
        lines.append([str(r.steps), str(r.slots), *counts, r.note])
    columns = ["steps N", "checkpoints K", "recomputed steps", "optimum", "ratio", "note"]
    return f"## Recomputation\n\n{_RECOMPUTATION}\n\n{table(columns, lines)}"


def page(
    results: Results,
    sizes: Sequence[cost.Size],
    machine: Mapping[str, str | int],
    command: str,
    figure: str,
    quick: bool,
) -> str:
    """Markdown: the command, the machine, the figure and all tables."""
    parts = (
        memory_part(results.memory),
        exactness_part(results.exactness),
        cost_part(results.cost, sizes),
        recomputation_part(results.recomputation),
    )
    top = head("Gradients", command, machine, quick, "memory and time of the gradients", figure)
    return "\n".join([top, *parts])


def numbers(results: Results) -> str:
    """CSV: one number a line."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(CSV_COLUMNS)
    for m in results.memory:
        out.writerow(["memory", f"{m.steps} steps{', tight' * m.tight}", m.label, "growth", m.growth, "bytes", m.note])
    for e in results.exactness:
        for to, error in zip(("y0", "args", "ts"), e.errors or (None, None, None), strict=True):
            out.writerow(["exactness", e.case, e.label, f"error to {to}", error, "relative", e.note])
    for c in results.cost:
        values = {
            "median": (c.seconds, "s"),
            "fastest": (c.fastest, "s"),
            "slowest": (c.slowest, "s"),
            "ratio": (c.ratio, f"of {BASE}"),
            "ratio, again": (c.ratio_again, f"of {AGAIN}"),
            "nfe": (c.nfe, "evaluations"),
            "backward_nfe": (c.backward_nfe, "evaluations"),
            "checkpoints": (c.checkpoints, "states"),
            "difference": (c.difference, "relative"),
        }
        for quantity, (value, unit) in values.items():
            out.writerow(["cost", c.size, c.label, quantity, value, unit, c.note])
    for r in results.recomputation:
        case = f"{r.steps} steps, {r.slots} checkpoints"
        for quantity, value in (("recomputed", r.recomputed), ("optimum", r.optimum)):
            out.writerow(["recomputation", case, BASE, quantity, value, "steps", r.note])
    return text.getvalue()
