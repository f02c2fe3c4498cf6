"""Speed and memory of models of series: beside torchcde and torchdiffeq's example, and by the length of the series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ..shared.measured_rows import COLUMNS, Row, note_lines
from ..shared.plots import png
from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import Settings, csv_text, page_head
from . import cde_speed, latent_speed, path_memory, scan_speed

TIMED = (cde_speed, latent_speed, scan_speed)
FIGURE = "series_speed.png"


def measure(quick: bool) -> list[Row]:
    """The timed parts have a process each, one after the other, on one thread: tensors are small."""
    rows: list[Row] = []
    for module in TIMED:
        found, note = call_in_subprocess(module.measure, quick, env={"OMP_NUM_THREADS": "1"})
        rows += [tuple(row) for row in found] if found else [(module.PART, "-", "-", "-", None, note)]
    return rows + path_memory.measure(quick)


def page(rows: Sequence[Row], settings: Settings, figure: str = "") -> str:
    caption = "seconds of a training step of LinearCDE and NeuralCDE, and memory of a gradient, by the length"
    head = page_head("Speed of models of series", settings, figure, caption)
    sections = [module.section([r for r in rows if r[0] == module.PART]) for module in (*TIMED, path_memory)]
    return "\n".join([head, "Each library on one thread.\n", *sections, *note_lines(rows)]) + "\n"


def draw(rows: Sequence[Row]) -> bytes:
    """Seconds of scan and solve, and memory beyond the path, by the length."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    for label, colour in ((scan_speed.SCAN, "#00798c"), (scan_speed.SOLVE, "#d1495b")):
        found = scan_speed.medians([r for r in rows if r[0] == scan_speed.PART], label)
        if found:
            axes[0].plot(list(found), list(found.values()), "o-", color=colour, label=label)
    for number, label in enumerate(path_memory.labels_of(rows)):
        for control, style in zip(path_memory.controls_of(rows), ("o-", "x--"), strict=False):
            found = path_memory.beyond_the_path(rows, control, label)
            axes[1].plot(
                list(found), [v / 2**20 for v in found.values()], style, color=f"C{number}", label=f"{label}, {control}"
            )
    for ax, title in zip(axes, ("training step, s", "memory beyond the path, MiB"), strict=True):
        ax.set(xlabel="rows T", title=title)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.set(xscale="log", yscale="log")
            ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[1].set_yscale("symlog", linthresh=0.1)  # nothing may come on top of the path
    return png(figure)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    rows = measure(settings.quick)
    return [
        ("series_speed.csv", csv_text(COLUMNS, rows)),
        (FIGURE, draw(rows)),
        ("series_speed.md", page(rows, settings, FIGURE)),
    ]
