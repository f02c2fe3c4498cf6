"""The figure of the benchmark `gradients`: memory, and time by size."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..shared.plots import TARGET_COLOUR, bars, legend_above, png
from ..shared.tables import MIB
from .cost import Cost
from .gradient_options import BASE
from .memory import Memory


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
