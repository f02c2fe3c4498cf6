"""The figures of a comparison."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator
from torch import Tensor

from ..api.solve import solve
from ..nn import Classifier, NeuralODE, classifier
from ..nn.classifier import KINDS
from .data import ImageData
from .files import write
from .measure import block_memory

mpl.use("Agg")
_COLOURS = {"resnet": "#444444", "rknet": "#d1495b", "odenet": "#00798c"}
_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
History = Mapping[str, list[dict[str, float]]]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=120)
    write(path, buffer.getvalue())
    return path


def training(histories: History, path: Path) -> Path:
    """Validation error, and evaluations of f a training step, by epoch."""
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    for kind, rows in histories.items():
        epochs = [r["epoch"] + 1 for r in rows]
        left.plot(epochs, [r["val_error"] for r in rows], marker=".", color=_COLOURS[kind], label=KINDS[kind])
        if rows and "nfe" in rows[0]:
            right.plot(epochs, [r["nfe"] for r in rows], color=_COLOURS[kind], label=f"{KINDS[kind]}, forward")
            if kind == "odenet":
                backward = [r["backward_nfe"] for r in rows]
                right.plot(epochs, backward, "--", color=_COLOURS[kind], label=f"{KINDS[kind]}, backward")
    left.set(xlabel="epoch", ylabel="validation error (%)", ylim=(0, None))
    left.set_yscale("symlog", linthresh=0.1)  # an error of zero has a place
    left.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1, subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    right.set(xlabel="epoch", ylabel="evaluations of f a step", ylim=(0, None))
    for axes in (left, right):
        if axes.lines:  # a residual net has no evaluations to show
            axes.legend()
    return save(figure, path)


def memory(net: Classifier, data: ImageData, channels: int, batch: int, path: Path, quick: bool) -> Path:
    """Peak training memory of the block against its depth: residual blocks, or constant steps (midpoint) of the ODE."""
    depths = (1, 2, 4) if quick else (1, 2, 4, 8, 16, 32)
    with torch.no_grad():
        h = net.down(data.train.images[:batch])
    image = data.train.images.shape[-1]
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    for kind in KINDS:
        peaks = []
        for depth in depths:
            options: dict[str, Any] = {} if kind == "resnet" else {"method": "midpoint", "step": 1.0 / depth}
            block = classifier(kind, image_size=image, channels=channels, depth=depth, **options).block
            peaks.append(block_memory(block, h) / 2**20)
        axes.plot(depths, peaks, marker="o", color=_COLOURS[kind], label=KINDS[kind])
    axes.set(xlabel="residual blocks, or steps of the solver", ylabel="peak training memory of the block (MiB)")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.legend()
    return save(figure, path)


@dataclass
class Point:
    """One tolerance of the trade-off."""

    error: float
    seconds: float
    nfe: int
    backward_nfe: int


def _trade_off(net: Classifier, h: Tensor, tolerance: float, method: str, exact: Tensor) -> Point:
    block = net.block
    assert isinstance(block, NeuralODE)
    h = h.detach().requires_grad_()
    solve(block.field, h, torch.tensor([0.0, 1.0]), method=method, rtol=tolerance, atol=tolerance)  # warm up
    start = time.perf_counter()
    sol = solve(
        block.field, h, torch.tensor([0.0, 1.0]), method=method, rtol=tolerance, atol=tolerance, gradient="adjoint"
    )
    seconds = time.perf_counter() - start
    sol.y1.square().mean().backward()
    block.zero_grad(set_to_none=True)
    error = float((sol.y1.detach().double() - exact).norm() / exact.norm())
    return Point(error, seconds, sol.stats.nfe, sol.stats.backward_nfe)


def trade_off(net: Classifier, data: ImageData, batch: int, method: str, path: Path, quick: bool) -> Path:
    """Figure 3 of the paper on the trained ODE-Net: error and evaluations by tolerance, time by evaluations."""
    with torch.no_grad():
        h = net.down(data.test.images[:batch])
        block = net.block
        assert isinstance(block, NeuralODE)
        field = block.field
        assert isinstance(field, torch.nn.Module)
        precise = copy.deepcopy(field).double()
        # f has kinks (ReLU): a method of higher order, or a tighter tolerance, costs more and gives no more
        exact = solve(precise, h.double(), [0.0, 1.0], method="tsit5", rtol=1e-8, atol=1e-8).y1
    tolerances = _TOLERANCES[1:3] if quick else _TOLERANCES
    points = [_trade_off(net, h, tol, method, exact) for tol in tolerances]
    figure = Figure(figsize=(12, 3.4))
    a, b, c = figure.subplots(1, 3)
    colour = _COLOURS["odenet"]
    nfe = [p.nfe for p in points]
    a.loglog(tolerances, [p.error for p in points], "o-", color=colour, label="ODE-Net")
    a.loglog(tolerances, tolerances, color="#bbbbbb", lw=1, label="error = tolerance")
    a.set(xlabel=f"tolerance ({method})", ylabel="relative error of the end state")
    b.semilogx(tolerances, nfe, "o-", color=colour, label="forward")
    b.semilogx(tolerances, [p.backward_nfe for p in points], "o--", color=colour, label="backward (adjoint)")
    b.set(xlabel=f"tolerance ({method})", ylabel="evaluations of f", ylim=(0, None))
    c.plot(nfe, [p.seconds * 1e3 for p in points], "o", color=colour)
    for p, tolerance in zip(points, tolerances, strict=True):
        c.annotate(f"{tolerance:.0e}", (p.nfe, p.seconds * 1e3), textcoords="offset points", xytext=(5, -9), fontsize=7)
    c.set(xlabel="forward evaluations", ylabel="forward time (ms)", xlim=(0, 1.18 * max(nfe)), ylim=(0, None))
    for axes in (a, b):
        axes.invert_xaxis()
        axes.legend()
    return save(figure, path)


def trajectories(net: Classifier, data: ImageData, path: Path, samples: int = 60) -> Path:
    """The hidden state of some test images along t, on the two main axes of its variation (PCA of the pooled maps)."""
    block = net.block
    assert isinstance(block, NeuralODE)
    images, labels = data.test.images[:samples], data.test.labels[:samples]
    ts = torch.linspace(0, 1, 21)
    with torch.no_grad():
        ys = block(net.down(images), ts=ts).mean((-1, -2))
    if block.solve_options.get("per_sample"):
        ys = ys.transpose(0, 1)  # (T, B, channels), as of a joint solve
    flat = ys.flatten(0, 1)
    centred = ys - flat.mean(0)
    _, _, axes_of_variation = torch.linalg.svd(centred.flatten(0, 1), full_matrices=False)
    plane = centred @ axes_of_variation[:2].T
    figure = Figure(figsize=(5.4, 4.6))
    axes = figure.subplots()
    colours = mpl.colormaps["tab10"]
    for i, label in enumerate(labels.tolist()):
        axes.plot(plane[:, i, 0], plane[:, i, 1], lw=0.9, color=colours(label))
        axes.plot(plane[-1, i, 0], plane[-1, i, 1], ".", color=colours(label))
        axes.annotate(str(label), (float(plane[-1, i, 0]), float(plane[-1, i, 1])), fontsize=7, color=colours(label))
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    axes.set_title("hidden state from t = 0 to t = 1 (dot: end, label: class)", fontsize=9)
    return save(figure, path)
