"""The figure of the benchmark `peers`: the time of every contender, a panel for each field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..libraries.problems import Field
from ..shared.plots import TARGET_COLOUR, bars, legend_above, png
from .peer_rows import EvaluationCost, Row


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
