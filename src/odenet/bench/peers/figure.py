"""The figure of `odenet bench peers`: the time of every contender, a panel for each field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..fields import Field
from ..figure import bars, legend, png
from .floor import Floor
from .rows import Row, Times

_FLOOR = "#d1495b"


def _ms(times: Times | None) -> float | None:
    return None if times is None else times.seconds * 1e3


def _panel(axes: Axes, field: Field, rows: Sequence[Row], floor: Floor | None) -> None:
    series = {"forward": [_ms(r.forward) for r in rows], "training step": [_ms(r.train) for r in rows]}
    axes.set(xscale="log", xlabel="ms")
    bars(axes, [r.label for r in rows], series, ".3g")
    if floor is not None:
        for seconds, style in ((floor.forward, ":"), (floor.train, "--")):
            name = "floor, forward" if style == ":" else "floor, training step"
            axes.axvline(seconds * 1e3, color=_FLOOR, lw=1, ls=style, label=name)
    drawn = [v for values in series.values() for v in values if v is not None]
    if drawn:
        axes.set_xlim(min(drawn) / 2, max(drawn) * 2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title(field.name, loc="right", fontsize=10)
    legend(axes)


def draw(rows: Sequence[Row], fields: Sequence[Field], floors: Mapping[str, Floor | None]) -> bytes:
    """A PNG."""
    across = 2 if len(fields) > 1 else 1
    down = max(1, math.ceil(len(fields) / across))
    figure = Figure(figsize=(8 * across, 4.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for field, axes in zip(fields, panels, strict=False):  # in this order: none of the panels is lost
        _panel(axes, field, [r for r in rows if r.field == field.name], floors.get(field.name))
    for axes in panels:  # those that are left
        axes.set_axis_off()
    return png(figure)
