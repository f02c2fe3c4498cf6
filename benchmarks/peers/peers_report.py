"""The results of the benchmark `peers` as Markdown, CSV and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..libraries.contender import METHOD
from ..libraries.problems import Field
from ..shared.plots import TARGET_COLOUR, bars, legend_above, png
from ..shared.tables import MIB, NONE, Settings, csv_text, markdown_table, number, page_head
from .peer_rows import EvaluationCost, Row, Times
from .targets import Target

CSV_COLUMNS = ("field", "contender", "quantity", "value", "unit", "note")

_HOW = (
    f"Method {METHOD} in every library, from the same weights, float32 (SciPy: float64), rtol = atol as said with each "
    "field. Each library chooses its steps by its own defaults: an integral controller in all of them, with safety "
    "factors, norms and first steps of their own. `per_sample`, torchode and diffrax's vmap choose steps for each "
    "sample, the others for the whole batch. A training step is a forward pass and a backward pass to y0 and all "
    "weights; the loss is the sum of the squares of y at the output times after the first. Median and range, in ms, "
    "of turns that the contenders take one after the other (seven, or fewer where they take over 25 seconds); "
    "compiling and the first calls are not in them.\n\n"
    "Cost of the evaluations: nfe times one evaluation of f for a forward pass; for a training step accepted steps "
    "times stages times f and its vector-Jacobian product on top. Both evaluated eagerly in the same turns; counts of "
    "`odenet, eager` (means, where each sample has steps of its own), for all contenders. Errors are relative 2-norms, "
    "from a float64 solve at a thousandth of the tolerance; difference: of the gradient, from `odenet, eager`'s. Cold: "
    "seconds of the first gradient of a process, imports not counted, with empty compile caches; again: in a second "
    "process, with the caches that the first one left; each with the whole process, imports too, behind it. Memory: "
    "growth of the peak, in MiB, by one training step after another one, in a process of its own whose allocator gives "
    "freed memory back; on a GPU, of what PyTorch allocates."
)
_COLUMNS = (
    *("contender", "forward", "range", "over evaluations", "training step", "range", "over evaluations"),
    *("evaluations", "accepted", "error of y", "error of gradient", "difference", "cold", "again", "memory", "note"),
)


def _times(t: Times | None) -> list[str]:
    if t is None:
        return [NONE] * 3
    digits = 1 if t.seconds > 0.01 else 2
    median, fastest, slowest = (format(s * 1e3, f".{digits}f") for s in (t.seconds, t.fastest, t.slowest))
    return [median, f"{fastest} to {slowest}", number(t.over, ".2f")]


def _start(seconds: float | None, process: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.1f} ({number(process, '.1f')})"


def _line(r: Row) -> list[str]:
    errors = [number(e, ".0e") for e in (r.y_error, r.gradient_error, r.difference)]
    starts = [_start(r.cold, r.cold_process), _start(r.again, r.again_process)]
    memory = number(None if r.memory is None else r.memory / MIB, ".1f")
    counts = [number(r.nfe, ".0f"), number(r.accepted, ".0f")]
    return [r.label, *_times(r.forward), *_times(r.train), *counts, *errors, *starts, memory, r.note]


def _targets_section(targets: Sequence[Target]) -> str:
    verdict = {True: "yes", False: "no", None: NONE}
    lines = [
        [t.what, t.over, number(t.value, ".2f"), f"{'>=' if t.least else '<='} {t.target:g}", verdict[t.met]]
        for t in targets
    ]
    return f"## Targets\n\n{markdown_table(['quantity', 'over', 'value', 'target', 'met'], lines)}"


def _field_section(field: Field, rows: Sequence[Row], cost: EvaluationCost | None) -> str:
    facts = f"rtol = atol = {field.tolerance:g}."
    if cost is not None:
        facts += f" One f: {cost.f * 1e3:.3f} ms; f and its VJP: {cost.vjp * 1e3:.3f} ms. Cost of the evaluations: "
        facts += f"forward {cost.forward * 1e3:.2f} ms, training step {cost.train * 1e3:.2f} ms."
    table = markdown_table(_COLUMNS, [_line(r) for r in rows if r.field == field.name])
    return f"### {field.name}: {field.text}\n\n{facts}\n\n{table}"


def page(
    rows: Sequence[Row],
    fields: Sequence[Field],
    costs: Mapping[str, EvaluationCost | None],
    targets: Sequence[Target],
    settings: Settings,
    name: str,
) -> str:
    """Return the Markdown page. name: of the files, peers or gpu."""
    title = "Side by side on a GPU" if settings.device == "cuda" else "Side by side"
    head = page_head(title, settings, f"{name}.png", "time of each contender on each field")
    sections = [_field_section(field, rows, costs.get(field.name)) for field in fields]
    return "\n".join([head, _targets_section(targets), f"## Fields\n\n{_HOW}\n", *sections])


def numbers(rows: Sequence[Row], costs: Mapping[str, EvaluationCost | None]) -> str:
    """Return the CSV, one number a line."""
    return csv_text(CSV_COLUMNS, _quantities(rows, costs))


def _quantities(rows: Sequence[Row], costs: Mapping[str, EvaluationCost | None]) -> Iterator[list[Any]]:
    for field, cost in costs.items():
        for quantity, seconds in asdict(cost).items() if cost else ():
            yield [field, "cost of the evaluations", quantity, seconds, "s", ""]
    units = {"nfe": "evaluations", "accepted": "steps"} | dict.fromkeys(("y_error", "gradient_error"), "relative")
    units |= {"difference": "relative"} | dict.fromkeys(("cold", "again", "cold_process", "again_process"), "s")
    units |= {"memory": "bytes"}
    for r in rows:
        for part in ("forward", "train"):
            for name in ("seconds", "fastest", "slowest", "over"):
                unit = "of the cost of the evaluations" if name == "over" else "s"
                yield [r.field, r.label, f"{part}, {name}", getattr(getattr(r, part), name, None), unit, r.note]
        for quantity, unit in units.items():
            yield [r.field, r.label, quantity, getattr(r, quantity), unit, r.note]


def _panel(axes: Axes, field: Field, rows: Sequence[Row], cost: EvaluationCost | None) -> None:
    series: dict[str, list[float | None]] = {
        "forward": [r.forward.seconds * 1e3 if r.forward else None for r in rows],
        "training step": [r.train.seconds * 1e3 if r.train else None for r in rows],
    }
    axes.set(xscale="log", xlabel="ms")
    bars(axes, [r.label for r in rows], series, ".3g")
    if cost is not None:
        for seconds, style, name in ((cost.forward, ":", "forward"), (cost.train, "--", "training step")):
            axes.axvline(seconds * 1e3, color=TARGET_COLOUR, lw=1, ls=style, label=f"evaluations, {name}")
    drawn = [v for values in series.values() for v in values if v is not None]
    if drawn:
        axes.set_xlim(min(drawn) / 2, max(drawn) * 2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title(field.name, loc="right", fontsize=10)
    legend_above(axes)


def draw(rows: Sequence[Row], fields: Sequence[Field], costs: Mapping[str, EvaluationCost | None]) -> bytes:
    """Return a PNG."""
    across = 2 if len(fields) > 1 else 1
    down = max(1, math.ceil(len(fields) / across))
    figure = Figure(figsize=(8 * across, 4.2 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for field, axes in zip(fields, panels, strict=False):
        _panel(axes, field, [r for r in rows if r.field == field.name], costs.get(field.name))
    for axes in panels[len(fields) :]:
        axes.set_axis_off()
    return png(figure)
