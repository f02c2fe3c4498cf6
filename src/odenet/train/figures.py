"""Figures of a training, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .files import write
from .task import History


def write_png(figure: Figure, path: Path) -> Path:
    """Write the figure, whole or not at all."""
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=120)
    return write(path, buffer.getvalue())


def training(histories: Mapping[str, History], metric: str) -> Figure:
    """By epoch: the metric that ends a run, and evaluations of f in a training step. histories: by label."""
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    for number, (label, rows) in enumerate(histories.items()):
        epochs = [row["epoch"] + 1 for row in rows]
        style: dict[str, Any] = {"color": f"C{number}"}
        left.plot(epochs, [row[metric] for row in rows], marker=".", label=label, **style)
        for name, line in (("nfe", "-"), ("backward_nfe", "--")):
            counts = [row.get(name, 0.0) for row in rows]
            if any(counts):
                way = "forward" if name == "nfe" else "backward"
                right.plot(epochs, counts, line, label=", ".join(filter(None, (label, way))), **style)
    values = [row[metric] for rows in histories.values() for row in rows]
    positive = all(value > 0 for value in values)
    left.set(xlabel="epoch", ylabel=metric.replace("_", " "), yscale="log" if positive else "linear")
    right.set(xlabel="epoch", ylabel="evaluations of f a step", ylim=(0, None))
    for axes in (left, right):
        if axes.get_legend_handles_labels()[1]:  # a net without a solve has no evaluations to show
            axes.legend()
    return figure
