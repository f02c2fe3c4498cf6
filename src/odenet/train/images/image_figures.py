"""Figures of trained image networks."""

from __future__ import annotations

import copy
import time
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...api.solve import solve
from ...nn import Classifier, NeuralODE, classifier
from ...nn.classifier import KINDS
from .costs import block_memory
from .data import ImageData, scaled

_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def block_input(net: Classifier, data: ImageData, split: str, batch: int) -> Tensor:
    """What the block of the network sees of the first images of a split."""
    with torch.no_grad():
        return net.down(scaled(data.splits[split][0][:batch]))


def trajectories(net: nn.Module, data: ImageData, samples: int = 60) -> dict[str, Figure]:
    """The hidden state of some test images along t, on the two main axes of its variation (PCA of the pooled maps).

    None of a residual network.
    """
    assert isinstance(net, Classifier)
    block = net.block
    if not isinstance(block, NeuralODE):
        return {}
    labels = data.splits["test"][1][:samples]
    with torch.no_grad():
        ys = block(block_input(net, data, "test", samples), ts=torch.linspace(0, 1, 21)).mean((-1, -2))
    if block.solve_options.get("per_sample"):
        ys = ys.transpose(0, 1)  # (T, B, channels), as of a joint solve
    centred = ys - ys.flatten(0, 1).mean(0)
    _, _, principal = torch.linalg.svd(centred.flatten(0, 1), full_matrices=False)
    plane = (centred @ principal[:2].T).numpy()
    if plane.shape[-1] == 1:  # one channel has one axis
        return {}
    figure = Figure(figsize=(5.4, 4.6))
    axes = figure.subplots()
    for i, label in enumerate(labels.tolist()):
        colour = f"C{label % 10}"
        axes.plot(plane[:, i, 0], plane[:, i, 1], lw=0.9, color=colour)
        axes.plot(plane[-1, i, 0], plane[-1, i, 1], ".", color=colour)
        axes.annotate(data.classes[label], (plane[-1, i, 0], plane[-1, i, 1]), fontsize=7, color=colour)
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    axes.set_title("hidden state from t = 0 to t = 1 (dot: end, label: class)", fontsize=9)
    return {"trajectories": figure}


def memory(net: Classifier, data: ImageData, channels: int, batch: int, quick: bool) -> Figure:
    """Peak training memory of the block by its depth: residual blocks, or constant steps (midpoint) of the ODE."""
    depths = (1, 2, 4) if quick else (1, 2, 4, 8, 16, 32)
    h = block_input(net, data, "train", batch)
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    for kind, label in KINDS.items():
        peaks = []
        for depth in depths:
            constant: dict[str, Any] = {} if kind == "resnet" else {"method": "midpoint", "step": 1.0 / depth}
            block = classifier(cast(Any, kind), image_size=data.size, channels=channels, depth=depth, **constant).block
            peaks.append(block_memory(block, h) / 2**20)
        axes.plot(depths, peaks, marker="o", label=label)
    axes.set(xlabel="residual blocks, or steps of the solver", ylabel="peak training memory of the block (MiB)")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.legend()
    return figure


def trade_off(net: Classifier, data: ImageData, batch: int, method: str, quick: bool) -> Figure:
    """Figure 3 of the paper on the trained ODE-Net: error and evaluations by tolerance, time by evaluations."""
    h = block_input(net, data, "test", batch)
    field: Any = net.block.field
    with torch.no_grad():
        # f has kinks (ReLU): a method of higher order, or a tighter tolerance, costs more and gives no more
        exact = solve(copy.deepcopy(field).double(), h.double(), [0.0, 1.0], method="tsit5", rtol=1e-8, atol=1e-8).y1
    tolerances = _TOLERANCES[1:3] if quick else _TOLERANCES
    errors, times, nfe, backward = [], [], [], []
    for tolerance in tolerances[:1] + tolerances:  # the first warms up
        start = time.perf_counter()
        sol = solve(
            field,
            h.requires_grad_(),
            [0.0, 1.0],
            method=cast(Any, method),
            rtol=tolerance,
            atol=tolerance,
            gradient="adjoint",
        )
        times.append(1e3 * (time.perf_counter() - start))
        sol.y1.square().mean().backward()
        errors.append(float((sol.y1.detach().double() - exact).norm() / exact.norm()))
        nfe.append(sol.stats.nfe)
        backward.append(sol.stats.backward_nfe)
    field.zero_grad(set_to_none=True)
    errors, times, nfe, backward = (values[1:] for values in (errors, times, nfe, backward))
    figure = Figure(figsize=(12, 3.4))
    a, b, c = figure.subplots(1, 3)
    a.loglog(tolerances, errors, "o-", label="ODE-Net")
    a.loglog(tolerances, tolerances, color="#bbbbbb", lw=1, label="error = tolerance")
    a.set(xlabel=f"tolerance ({method})", ylabel="relative error of the end state")
    b.semilogx(tolerances, nfe, "o-", label="forward")
    b.semilogx(tolerances, backward, "o--", label="backward (adjoint)")
    b.set(xlabel=f"tolerance ({method})", ylabel="evaluations of f", ylim=(0, None))
    c.plot(nfe, times, "o")
    for tolerance, *where in zip(tolerances, nfe, times, strict=True):
        c.annotate(f"{tolerance:.0e}", where, textcoords="offset points", xytext=(5, -9), fontsize=7)
    c.set(xlabel="forward evaluations", ylabel="forward time (ms)", xlim=(0, 1.18 * max(nfe)), ylim=(0, None))
    for axes in (a, b):
        axes.invert_xaxis()
        axes.legend()
    return figure
