"""Where a factorised Newton matrix stops paying: seconds of a training step by the size of the system, both ways.

The field is a layer of width n with a stiffness of 1 and 100 in units of the step: nonstiff systems are easy for GMRES.
"""

from __future__ import annotations

import statistics
import time

import torch

import odenet
from odenet.methods import linear_solvers

SIZES = (100, 300, 500, 1000)
STIFFNESS = (1.0, 100.0)
REPEATS = 1


def seconds(n: int, stiffness: float, limit: int) -> float:
    linear_solvers.MAX_DENSE = limit
    generator = torch.Generator().manual_seed(0)
    W = (torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5).requires_grad_()
    rates = torch.logspace(0, torch.log10(torch.tensor(10 * stiffness)).item(), n, dtype=torch.float64)
    y0 = torch.randn(n, dtype=torch.float64, generator=generator)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        sol = odenet.solve(
            lambda t, y: torch.tanh(y @ W) - rates * y, y0, [0.0, 1.0], method="implicit_euler", step=0.1
        )
        torch.autograd.grad(sol.y1.sum(), W)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(2)
    print("| unknowns | stiffness | factorised (s) | matrix-free (s) |\n| --- | --- | --- | --- |")
    for n in SIZES:
        for stiffness in STIFFNESS:
            dense, free = seconds(n, stiffness, 10**9), seconds(n, stiffness, 0)
            print(f"| {n} | {stiffness:g} | {dense:.3f} | {free:.3f} |", flush=True)


if __name__ == "__main__":
    main()
