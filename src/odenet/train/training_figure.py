"""The figure that each run has, training.png; a task's own figures are `Task.figures`."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from .files import write
from .task import History


def write_png(figure: Figure, path: Path) -> Path:
    """Write the figure, whole or not at all."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of names of classes
        figure.tight_layout()
        figure.savefig(buffer, format="png", dpi=120)
    return write(path, buffer.getvalue())


def training_figure(histories: Mapping[str, History], metric: str) -> Figure:
    """By epoch: the metric that ends a run, and evaluations of f in a training step. histories: by label."""
    solved = any(row.get("nfe") for rows in histories.values() for row in rows)  # flow matching trains without a solve
    figure = Figure(figsize=(9 if solved else 4.8, 3.6))
    left, *others = figure.subplots(1, 1 + solved, squeeze=False)[0]
    for i, (label, rows) in enumerate(histories.items()):
        epochs = [row["epoch"] + 1 for row in rows]
        left.plot(epochs, [row[metric] for row in rows], marker=".", label=label, color=f"C{i}")
        for right, (name, line) in itertools.product(others, (("nfe", "-"), ("backward_nfe", "--"))):
            if any(row.get(name) for row in rows):
                legend = f"{label} {name}".strip().replace("_nfe", "").replace("nfe", "forward")
                right.plot(epochs, [row[name] for row in rows], line, marker=".", label=legend, color=f"C{i}")
    left.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    if all(row[metric] > 0 for rows in histories.values() for row in rows):
        left.set_yscale("log")
    for right in others:
        right.set(xlabel="epoch", ylabel="evaluations of f a step", ylim=(0, None))
    for axes in (left, *others):
        if axes.get_legend_handles_labels()[1]:  # a net without a solve has no evaluations to show
            axes.legend()
    return figure
