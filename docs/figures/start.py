"""Draws docs/figures/start.png, the figure of the start page: python docs/figures/start.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import odenet
from odenet.nn import MLPField, NeuralODE

INK, BLUE, RED = "#444444", "#3f51b5", "#d9534f"


def pendulum(t: Tensor, y: Tensor, damping: Tensor) -> Tensor:
    angle, speed = y.unbind(-1)
    return torch.stack([speed, -torch.sin(angle) - damping * speed], -1)


def solved(ax: plt.Axes) -> None:
    """Three pendulums in one solve, each with steps of its own."""
    y0 = torch.tensor([[3.0, 0.0]], dtype=torch.float64).repeat(3, 1)
    damping = torch.tensor([0.05, 0.2, 0.8], dtype=torch.float64)
    sol = odenet.solve(
        pendulum, y0, [0.0, 30.0], args=(damping,), per_sample=True, dense=True, save_steps=True, rtol=1e-4, atol=1e-6
    )
    t = torch.linspace(0.0, 30.0, 600, dtype=torch.float64)
    for i, color in enumerate((BLUE, RED, INK)):
        ax.plot(t, sol(t)[i, :, 0], color=color, lw=1.2, label=f"damping {damping[i]:g}")
        n = int(sol.steps.count[i])
        ax.plot(sol.steps.t[i, :n], sol.steps.y[i, :n, 0], ".", color=color, ms=5)
    ax.set(title="One solve, each sample with its own steps", xlabel="t", ylabel="angle")
    ax.legend(frameon=False, fontsize=8)


def moons(n: int) -> tuple[Tensor, Tensor]:
    angle = torch.rand(n) * torch.pi
    label = torch.arange(n) % 2
    x = torch.where(label == 0, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin()) - 0.25
    return torch.stack([x, y], -1) + 0.08 * torch.randn(n, 2), label


def trained(ax: plt.Axes) -> None:
    """Two classes that no line separates are moved to where one does."""
    torch.manual_seed(0)
    layer, head = NeuralODE(MLPField(2, hidden=(32,)), rtol=1e-3, atol=1e-3), nn.Linear(2, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    x, label = moons(256)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(head(layer(x)).squeeze(-1), label.float()).backward()
        optimizer.step()
    x, label = moons(120)
    with torch.no_grad():
        path = layer(x, torch.linspace(0.0, 1.0, 40))
    for i in range(len(x)):
        color = RED if label[i] else BLUE
        ax.plot(path[:, i, 0], path[:, i, 1], color=color, lw=0.5, alpha=0.4)
        ax.plot(*path[0, i], "o", mfc="white", mec=color, ms=3, mew=0.7)
        ax.plot(*path[-1, i], "o", color=color, ms=3)
    ax.set(title="A solve as a layer: two classes, untangled", xlabel="$y_0$", ylabel="$y_1$")


def main() -> None:
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    solved(left)
    trained(right)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_size(10)
    fig.tight_layout()
    fig.savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
