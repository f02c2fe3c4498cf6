"""Draws docs/gradients.png and prints the report of docs/gradients.md: python tools/gradient_figures.py."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

import odenet
from odenet.methods import METHODS, StepInput
from odenet.methods.reversible_method import ReversibleMethod, split_carry

D = torch.float64
OUT = Path(__file__).parent.parent / "docs" / "gradients.png"
STEP = 0.01


def contracting(t: Tensor, y: Tensor) -> Tensor:
    """Fast towards sin(t): solved backwards, errors grow at the rate 10."""
    return -10 * (y - torch.sin(t)) * (1 + 0.2 * torch.tanh(y))


def report(length: float, gradients: list[Any]) -> odenet.GradientReport:
    y0 = torch.tensor([0.5, -0.2], dtype=D)
    return odenet.gradient_report(
        contracting, y0, [0.0, length], lambda sol: sol.y1.square().sum(), gradients=gradients, method="rk4",
        step=STEP, repeats=1,
    )  # fmt: skip


def coupling_errors(coupling: float, steps: int = 1000) -> tuple[float, float]:
    """For y' = -y on [0, 10]: the difference of y and z at the end, and of the reconstructed y0; relative."""
    method = ReversibleMethod(METHODS["rk4"], coupling)
    h = 10 / steps
    f = lambda t, y: tuple(-x for x in y)  # noqa: E731
    y = (torch.ones(1, dtype=D),)
    carry = method.init(f, y[0], y)
    ends = [torch.tensor(h * n, dtype=D) for n in range(steps + 1)]
    for a, b in pairwise(ends):
        step = method.step(StepInput(f, a, b, y, carry))
        y, carry = step.y, step.carry
    rise = lambda a, b, y: method.base.increment(StepInput(f, a, b, y))[0]  # noqa: E731
    y, z = split_carry(carry)
    apart = float((y[0] - z[0]).abs() / y[0].abs())
    for b, a in pairwise(reversed(ends)):
        z = tuple(u + v for u, v in zip(z, rise(b, a, y), strict=True))
        y = method.uncouple(y, z, rise(a, b, z))
    return apart, float((y[0] - 1).abs())


def main() -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    lengths = [0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    ways = ["adjoint", "gauss", "discrete", odenet.Reversible(0.87)]
    rows = [report(length, ways) for length in lengths]
    for i, name in enumerate(("adjoint", "gauss", "discrete", "reversible, coupling 0.87")):
        left.semilogy(lengths, [max(r[i].relative_error, 1e-17) for r in rows], marker="o", label=name)
    left.set(
        title="Gradients of a contracting ODE", xlabel="length of the solve", ylabel="relative error of the gradient"
    )
    left.set_ylim(1e-18, 1e9)
    left.legend(loc="upper left", ncol=2)
    couplings = [0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998, 1.0]
    found = [coupling_errors(c) for c in couplings]
    away = [1 - c + 1e-4 for c in couplings]
    right.loglog(away, [max(a, 1e-17) for a, _ in found], marker="o", label="y and z apart at the end")
    right.loglog(away, [min(max(b, 1e-17), 1e6) for _, b in found], marker="s", label="y0 reconstructed")
    right.axvline(1 - torch.exp(torch.tensor(-0.01)).item(), color="gray", linestyle=":", label="coupling = exp(-h a)")
    right.set(
        title="The coupling of the reversible method",
        xlabel="1 - coupling (+ 0.0001)",
        ylabel="relative error, 1000 steps of y' = -y",
    )
    right.legend()
    fig.tight_layout()
    fig.savefig(OUT, dpi=110)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = report(3.0, ["discrete", odenet.Discrete(checkpoints=8), "backprop", *ways[:2], ways[3], "forward"])
    print(odenet.GradientReport(replace(row, note="*" if row.note else "") for row in table))
    print(*(f"* {row.note.partition(', as')[0]}" for row in table if row.note), sep="\n")


if __name__ == "__main__":
    main()
