"""Parts of figures."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TARGET_COLOUR = "#d1495b"
_SHADES = ("#9ecae1", "#00798c", "#1d3557")


def bars(axes: Axes, labels: Sequence[str], series: dict[str, list[float | None]], form: str) -> None:
    """Draw groups of horizontal bars, the first on top. A missing number is written where its bar would begin."""
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


def legend_above(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, columnspacing=1.2)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
