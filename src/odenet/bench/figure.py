"""The figure of `odenet bench gradients`: memory by gradient, and time by gradient and size of the field."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .contenders import BASE
from .results import Cost, Memory

_SHADES = ("#9ecae1", "#00798c", "#1d3557")
_TARGET = "#d1495b"


def bars(axes: Axes, labels: Sequence[str], series: dict[str, list[float | None]], form: str) -> None:
    """Groups of horizontal bars, the first on top. A missing number is said, where its bar would begin."""
    height = 0.8 / max(1, len(series))
    for i, (name, values) in enumerate(series.items()):
        at = [row - 0.4 + (i + 0.5) * height for row in range(len(labels))]
        drawn = [(y, v) for y, v in zip(at, values, strict=True) if v is not None]
        axes.barh([y for y, _ in drawn], [v for _, v in drawn], height, color=_SHADES[i % 3], label=name)
        for y, v in zip(at, values, strict=True):
            x, text = (0.0, "no number") if v is None else (v, format(v, form))
            across = axes.get_yaxis_transform() if v is None else axes.transData  # x in parts of the axis, or in units
            axes.annotate(text, (x, y), (3, 0), xycoords=across, textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)


def legend(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, columnspacing=1.2)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _memory(axes: Axes, rows: Sequence[Memory]) -> None:
    rows = [r for r in rows if not r.tight]
    labels = list(dict.fromkeys(r.label for r in rows))
    found = {(r.label, r.steps): r.growth for r in rows}
    series: dict[str, list[float | None]] = {}
    for steps in sorted({r.steps for r in rows}):
        growths = [found.get((label, steps)) for label in labels]
        series[f"{steps} steps"] = [None if g is None else g / 2**20 for g in growths]
    axes.set(xscale="log", xlabel="growth of the peak memory (MiB)")
    bars(axes, labels, series, ".0f")
    targets = {r.target_mib for r in rows if r.target_mib is not None}
    if targets:
        axes.axvline(min(targets), color=_TARGET, lw=1, ls="--", label="target")
    axes.set_xlim(left=1)
    axes.xaxis.set_major_formatter("{x:g}")
    legend(axes)


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
        axes.plot([target, target], [row - 0.45, row + 0.45], color=_TARGET, lw=1, ls="--", label=name)
    axes.set(xlabel=f"time, forward and backward ({BASE}: 1)")
    legend(axes)


def draw(memory_rows: Sequence[Memory], cost_rows: Sequence[Cost]) -> bytes:
    """A PNG."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _memory(left, memory_rows)
    _time(right, cost_rows)
    return png(figure)
