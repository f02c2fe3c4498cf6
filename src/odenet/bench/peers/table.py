"""The results of `odenet bench peers` as text: a page, and a table of single numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ..fields import Field
from ..markdown import NONE, head, number, table
from .floor import Floor
from .rows import Ratio, Row, Times
from .runs import METHOD

MIB = 2**20
CSV_COLUMNS = ("field", "contender", "quantity", "value", "unit", "note")

_HOW = (
    f"Method {METHOD} in every library, from the same weights, float32 (SciPy: float64), rtol = atol as said with each "
    "field. Each library chooses its steps by its own defaults: an integral controller in all of them, with safety "
    "factors, norms and first steps of their own. `per_sample`, torchode and diffrax's vmap choose steps for each "
    "sample, the others for the whole batch. A training step is a forward pass and a backward pass to y0 and all "
    "weights; the loss is the sum of the squares of y at the output times after the first. Median and range, in ms, "
    "of turns that the contenders take one after the other (seven, or fewer where they take over 25 seconds); "
    "compiling and the first calls are not in them.\n\n"
    "Floor: nfe times one evaluation of f for a forward pass; for a training step accepted steps times stages times "
    "f and its vector-Jacobian product on top. Both evaluated eagerly in the same turns; counts of `odenet, eager` "
    "(means, where each sample has steps of its own), for all contenders. Errors are relative 2-norms, from a float64 "
    "solve at a thousandth of the tolerance; difference: of the gradient, from `odenet, eager`'s. Cold: seconds of the "
    "first gradient of a process, imports not counted, with empty compile caches; again: in a second process, with the "
    "caches that the first one left; each with the whole process, imports too, behind it. Memory: growth of the peak, "
    "in MiB, by one training step after another one, in a process of its own whose allocator gives freed memory back; "
    "on a GPU, of what PyTorch allocates."
)
_COLUMNS = (
    *("contender", "forward", "range", "over floor", "training step", "range", "over floor", "evaluations"),
    *("accepted", "error of y", "error of gradient", "difference", "cold", "again", "memory", "note"),
)


def _times(t: Times | None) -> list[str]:
    if t is None:
        return [NONE] * 3
    digits = 1 if t.seconds > 0.01 else 2
    ms = [format(s * 1e3, f".{digits}f") for s in (t.seconds, t.fastest, t.slowest)]
    return [ms[0], f"{ms[1]} to {ms[2]}", number(t.over, ".2f")]


def _start(seconds: float | None, process: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.1f} ({number(process, '.1f')})"


def _line(r: Row) -> list[str]:
    errors = [number(e, ".0e") for e in (r.y_error, r.gradient_error, r.difference)]
    starts = [_start(r.cold, r.cold_process), _start(r.again, r.again_process)]
    memory = number(None if r.memory is None else r.memory / MIB, ".1f")
    counts = [number(r.nfe, ".0f"), number(r.accepted, ".0f")]
    return [r.label, *_times(r.forward), *_times(r.train), *counts, *errors, *starts, memory, r.note]


def targets_part(ratios: Sequence[Ratio]) -> str:
    verdict = {True: "yes", False: "no", None: NONE}
    lines = [
        [r.what, r.over, number(r.value, ".2f"), f"{'>=' if r.least else '<='} {r.target:g}", verdict[r.met]]
        for r in ratios
    ]
    return f"## Targets\n\n{table(['quantity', 'over', 'value', 'target', 'met'], lines)}"


def field_part(field: Field, rows: Sequence[Row], floor: Floor | None) -> str:
    facts = f"rtol = atol = {field.tolerance:g}."
    if floor is not None:
        facts += f" One f: {floor.f * 1e3:.3f} ms; f and its VJP: {floor.vjp * 1e3:.3f} ms."
        facts += f" Floor: forward {floor.forward * 1e3:.2f} ms, training step {floor.train * 1e3:.2f} ms."
    lines = [_line(r) for r in rows if r.field == field.name]
    return f"### {field.name}: {field.text}\n\n{facts}\n\n{table(_COLUMNS, lines)}"


def page(
    rows: Sequence[Row],
    fields: Sequence[Field],
    floors: Mapping[str, Floor | None],
    ratios: Sequence[Ratio],
    machine: Mapping[str, str | int],
    command: str,
    quick: bool,
    figure: str,
    title: str = "Side by side",
) -> str:
    """Markdown: the command, the machine, the figure, the targets and a table for each field."""
    top = head(title, command, machine, quick, "time of each contender on each field", figure)
    parts = [field_part(field, rows, floors.get(field.name)) for field in fields]
    return "\n".join([top, targets_part(ratios), f"## Fields\n\n{_HOW}\n", *parts])


def numbers(rows: Sequence[Row], floors: Mapping[str, Floor | None]) -> str:
    """CSV: one number a line."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(CSV_COLUMNS)
    for field, floor in floors.items():
        if floor is not None:
            for quantity in ("f", "vjp", "forward", "train"):
                out.writerow([field, "floor", quantity, getattr(floor, quantity), "s", ""])
    for r in rows:
        values: dict[str, tuple[float | None, str]] = {}
        for part, times in (("forward", r.forward), ("train", r.train)):
            for name in ("seconds", "fastest", "slowest", "over"):
                value = None if times is None else getattr(times, name)
                values[f"{part}, {name}"] = (value, "of the floor" if name == "over" else "s")
        values |= {"nfe": (r.nfe, "evaluations"), "accepted": (r.accepted, "steps")}
        values |= {name: (getattr(r, name), "relative") for name in ("y_error", "gradient_error", "difference")}
        values |= {name: (getattr(r, name), "s") for name in ("cold", "again", "cold_process", "again_process")}
        values["memory"] = (r.memory, "bytes")
        for quantity, (value, unit) in values.items():
            out.writerow([r.field, r.label, quantity, value, unit, r.note])
    return text.getvalue()
