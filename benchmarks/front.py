"""What a solve costs beside f: its fixed part, constant steps on small states, Python calls; results/front.md.

python benchmarks/front.py [--out DIR]

The fixed part is the intercept of a line through the times of solves of one field over ten spans, against the
evaluations that they took; that of the machine code of a compiled solve is told apart in the same way. Fields are
drawn at random. torchdiffeq is timed in the same run, by turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn

import odenet
from odenet.bench.markdown import NONE, number, table
from odenet.bench.timing import interleave
from odenet.compiled.build import Library
from odenet.compiled.plan_cache import PLAN_CACHE, PlanCache

SPANS = (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
STEPS = (1, 2, 5, 10, 40)


class Drawn(nn.Module):
    """A linear map and tanh, of a random size."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = int(torch.randint(2, 9, (), generator=generator))
        self.batch = int(torch.randint(1, 65, (), generator=generator))
        self.weight = nn.Parameter(torch.randn(self.dim, self.dim, generator=generator) / self.dim**0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight) - 0.5 * y


def drawn(count: int) -> list[tuple[Drawn, Tensor]]:
    generator = torch.Generator().manual_seed(2026)
    fields = [Drawn(generator) for _ in range(count)]
    return [(f, torch.randn(f.batch, f.dim, generator=generator)) for f in fields]


def fixed_part(f: Drawn, y0: Tensor, grad: bool, compile: bool) -> tuple[float, float]:
    """Milliseconds of a solve that evaluates nothing, and microseconds of each evaluation."""

    def solve(end: float) -> Any:
        with torch.set_grad_enabled(grad):
            return odenet.solve(f, y0, [0.0, end], method="dopri5", rtol=1e-5, atol=1e-5, compile=compile)

    evaluations = [solve(end).stats.nfe for end in SPANS]
    calls: dict[str, Callable[[], object]] = {str(end): lambda end=end: solve(end) for end in SPANS}
    seconds = interleave(calls, 15, shortest=0.02, pause=0.0)
    slope, fixed = np.polyfit(evaluations, [min(seconds[k]) for k in calls], 1)
    return 1e3 * fixed, 1e6 * slope


def machine_code(f: Drawn, y0: Tensor, grad: bool) -> float:
    """Milliseconds of the compiled library's own, in a solve that evaluates nothing."""
    seconds: list[float] = []

    def timed(*given: Any) -> Library:
        library = PlanCache.forward(PLAN_CACHE, *given)

        def run(tensors: list[Tensor], turns: int | None) -> list[Tensor]:
            start = time.perf_counter()
            out = library.run(tensors, turns)
            seconds.append(time.perf_counter() - start)
            return out

        return replace(library, run=run)

    least, evaluations = [], []
    PLAN_CACHE.forward = timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for end in SPANS:
            seconds.clear()
            with torch.set_grad_enabled(grad):
                options = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5, "compile": True}
                solved = [odenet.solve(f, y0, [0.0, end], **options) for _ in range(200)]
            least.append(min(seconds))
            evaluations.append(solved[0].stats.nfe)
    finally:
        del PLAN_CACHE.forward
    return 1e3 * float(np.polyfit(evaluations, least, 1)[1])


def constant_steps(f: Drawn, y0: Tensor, method: str, steps: int) -> tuple[float, float]:
    """Microseconds of odenet's solve and of torchdiffeq's, without gradients."""
    theirs = {"rk4_38": "rk4"}.get(method, method)
    ts, size = torch.tensor([0.0, 1.0]), 1.0 / steps
    calls: dict[str, Callable[[], object]] = {
        "odenet": lambda: odenet.solve(f, y0, ts, method=method, step=size),
        "torchdiffeq": lambda: torchdiffeq.odeint(f, y0, ts, method=theirs, options={"step_size": size}),
    }
    with torch.no_grad():
        seconds = interleave(calls, 15, shortest=0.02, pause=0.0)
    return 1e6 * min(seconds["odenet"]), 1e6 * min(seconds["torchdiffeq"])


def python_calls(f: Drawn, y0: Tensor, grad: bool, end: float) -> tuple[int, int]:
    """Calls of Python functions inside the package in a repeated solve, and evaluations of f."""
    root, count = os.path.dirname(odenet.__file__), 0

    def see(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    with torch.set_grad_enabled(grad):
        odenet.solve(f, y0, [0.0, end], method="dopri5")
        sys.setprofile(see)
        sol = odenet.solve(f, y0, [0.0, end], method="dopri5")
        sys.setprofile(None)
    return count, sol.stats.nfe


def spread(values: list[float], digits: int = 2) -> str:
    """Least, median and largest."""
    return " / ".join(number(x, f".{digits}f") for x in (min(values), float(np.median(values)), max(values)))


def report() -> str:
    fields = drawn(6)
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    parts = [
        "# What a solve costs beside f",
        f"`python benchmarks/front.py`: odenet {odenet.__version__}, PyTorch {torch.__version__}, torchdiffeq "
        f"{torchdiffeq.__version__}; {machine}. Least / median / largest of {len(fields)} random fields (batch 1 to "
        "64, dimension 2 to 8).",
        "## The fixed part of a repeated solve",
    ]
    rows = []
    for compile in (False, True):
        for grad in (False, True):
            found = [fixed_part(f, y0, grad, compile) for f, y0 in fields]
            code = spread([machine_code(f, y0, grad) for f, y0 in fields], 3) if compile else NONE
            rows.append(
                ["compiled" if compile else "eager", "with" if grad else "without",
                 spread([a for a, _ in found], 3), code, spread([b for _, b in found], 1)]
            )  # fmt: skip
    columns = ["", "gradients", "fixed part (ms)", "of it machine code (ms)", "an evaluation, f in it (us)"]
    parts.append(table(columns, rows))
    parts.append("## Constant steps, eager, without gradients: time over torchdiffeq's")
    rows = []
    for method in ("euler", "midpoint", "rk4_38"):
        for steps in STEPS:
            found = [constant_steps(f, y0, method, steps) for f, y0 in fields]
            rows.append(
                [method, str(steps), spread([a / b for a, b in found]), spread([a for a, _ in found], 0),
                 spread([b for _, b in found], 0)]
            )  # fmt: skip
    parts.append(table(["method", "steps", "ratio", "odenet (us)", "torchdiffeq (us)"], rows))
    parts.append("## Python calls inside the package for each evaluation of f, repeated solve")
    rows = []
    for grad in (False, True):
        counts = [python_calls(f, y0, grad, end) for f, y0 in fields for end in (1.0, 5.0, 20.0)]
        rows.append(
            ["with" if grad else "without",
             ", ".join(f"{c} for {n}" for c, n in counts[:3]), spread([c / n for c, n in counts], 1)]
        )  # fmt: skip
    parts.append(table(["gradients", "the first field, ends 1, 5, 20", "calls an evaluation"], rows))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    text = report()
    (out / "front.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
