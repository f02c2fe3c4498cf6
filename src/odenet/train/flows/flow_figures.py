"""Figures of a trained flow: the density in the plane, marginals of a table, digits, and samples on their way."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from ..files import write
from .density_data import DensityData
from .flow_model import log_prob, paths, samples, units_of

_SHOWN = 2000  # points of a scatter plot
_MARGINALS = 4  # columns


def flow_figures(net: nn.Module, info: Mapping[str, Any], data: DensityData, quick: bool) -> dict[str, Figure]:
    """By name: "density" in two dimensions, "digits" of images, else "marginals". Random numbers follow the seed."""
    x = data.splits["test"][:_SHOWN]  # without noise, as the samples
    count = 64 if data.transform.levels else len(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        drawn = samples(net, info, count)
        if data.transform.levels:
            return {"digits": _digits(data.splits["test"], drawn)}
        if data.dim == 2:
            return {"density": _density(net, data, x, drawn, 60 if quick else 200)}
    return {"marginals": _marginals(data, x, drawn)}


def _limits(x: Tensor) -> tuple[float, float]:
    """The range of a column (N,) without its outermost values, and a margin."""
    low, high = x.quantile(torch.tensor([0.002, 0.998], dtype=x.dtype)).tolist()
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


def _density(net: nn.Module, data: DensityData, x: Tensor, drawn: Tensor, size: int) -> Figure:
    """The density on a grid, between the test data and samples, in the units of the data."""
    spans = [_limits(column) for column in x.T]
    across, up = (torch.linspace(*span, size, dtype=torch.float64) for span in spans)
    grid = torch.cartesian_prod(across, up)
    z = data.transform.to_model(grid).to(next(net.parameters()))
    density = data.nats(log_prob(net, z).double(), z.double()).exp().view(size, size).T
    figure = Figure(figsize=(11, 3.9))
    left, middle, right = figure.subplots(1, 3)
    _scatter(left, x, spans, f"test data ({len(x)})")
    middle.pcolormesh(across.numpy(), up.numpy(), density.numpy(), cmap="viridis", rasterized=True)
    middle.set_title("density of the flow", fontsize=10)
    _scatter(right, drawn, spans, f"samples ({len(drawn)})")
    for axes in (left, middle, right):
        axes.set(xlabel=data.columns[0], xlim=spans[0], ylim=spans[1])
    left.set(ylabel=data.columns[1])
    return figure


def _scatter(axes: Axes, x: Tensor, spans: list[tuple[float, float]], title: str, colour: str = "C0") -> None:
    axes.plot(*x.T.numpy(), ".", ms=3, alpha=0.6, mew=0, color=colour)
    axes.set(xlim=spans[0], ylim=spans[1])
    axes.set_title(title, fontsize=10)


def _digits(real: Tensor, drawn: Tensor) -> Figure:
    """Images of the test data beside samples, in a grid each."""
    figure = Figure(figsize=(8, 4.3))
    for axes, images, title in zip(figure.subplots(1, 2), (real, drawn), ("test data", "samples"), strict=True):
        side = 8
        tiles = torch.zeros(side * side, 10, 10, dtype=torch.float64)  # a margin of one pixel
        tiles[: len(images[: side**2]), 1:9, 1:9] = images[: side**2].view(-1, 8, 8)
        page = tiles.view(side, side, 10, 10).transpose(1, 2).reshape(side * 10, -1)
        axes.imshow(page.numpy(), cmap="gray", vmin=0, vmax=16)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def _marginals(data: DensityData, x: Tensor, drawn: Tensor) -> Figure:
    """Histograms of the first columns, and below them their pairs: test data against samples."""
    n = min(data.dim, _MARGINALS)
    figure = Figure(figsize=(2.3 * n + 1.2, 2.1 * n + 0.8))
    grid = figure.subplots(n, n, squeeze=False)
    for i in range(n):
        for j in range(n):
            axes, span = grid[i][j], _limits(x[:, j])
            if j > i:
                axes.set_axis_off()
            elif i == j:
                bins = _bins(span, float(data.quanta[i]), float(x[0, i]))
                for values, label in ((x[:, i], "test data"), (drawn[:, i], "samples")):
                    axes.hist(values.numpy(), bins, density=True, histtype="step", label=label)
                axes.set(xlim=span, yticks=[])
            else:
                for values in (x.numpy(), drawn.numpy()):
                    axes.plot(values[:, j], values[:, i], ".", ms=3, alpha=0.4, mew=0)
                axes.set(xlim=span, ylim=_limits(x[:, i]))
            if i == n - 1:
                axes.set_xlabel(data.columns[j], fontsize=8)
            if j == 0 and i:
                axes.set_ylabel(data.columns[i], fontsize=8)
            axes.tick_params(labelsize=7)
    grid[0][0].legend(fontsize=7)
    return figure


def _bins(span: tuple[float, float], quantum: float, value: float) -> list[float]:
    """Edges of some thirty bins; of a discrete column with the value in it, as many values in each."""
    width = (span[1] - span[0]) / 30
    if not quantum:
        return [span[0] + i * width for i in range(31)]
    width = quantum * max(round(width / quantum), 1)
    first = value - 0.5 * quantum - math.ceil((value - span[0]) / width) * width
    return [first + i * width for i in range(math.ceil((span[1] - first) / width) + 1)]


def write_animation(net: nn.Module, info: Mapping[str, Any], data: DensityData, path: Path, quick: bool) -> Path:
    """A GIF of samples in the plane that move from the noise to the data; it stays at the data for a second."""
    times, count = (9, 300) if quick else (41, 1500)
    generator = torch.Generator().manual_seed(data.seed)
    z0 = torch.randn(count, 2, generator=generator).to(next(net.parameters()))
    transform = units_of(info).transform
    x = torch.stack([transform.to_data(z.double().cpu()) for z in paths(net, z0, times)])
    spans = [_limits(torch.cat([x[0, :, i], data.in_data_units("test")[:, i]])) for i in range(2)]
    frames = [_frame(step, i / (times - 1), spans, data.columns) for i, step in enumerate(x)]
    buffer = io.BytesIO()
    durations = [60] * (times - 1) + [1500]  # milliseconds
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return write(path, buffer.getvalue())


def _frame(x: Tensor, part: float, spans: list[tuple[float, float]], columns: list[str]) -> Image.Image:
    figure = Figure(figsize=(4, 4), dpi=80)
    axes = figure.subplots()
    _scatter(axes, x, spans, f"from noise to data: {part:.0%} of the way")
    axes.set(xlabel=columns[0], ylabel=columns[1])
    canvas = FigureCanvasAgg(figure)
    figure.tight_layout()
    canvas.draw()
    # one palette of greys and blues for all frames keeps the file small
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64)
