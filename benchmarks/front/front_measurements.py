"""Times of a solve beside f, on random fields of small size."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn

import odenet
from odenet.compiled.plan_cache import PLAN_CACHE, PlanCache

from ..shared.timing import interleave

SPANS = (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_DOPRI5: dict[str, Any] = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}


class RandomField(nn.Module):
    """A linear map and tanh, of a random size."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = int(torch.randint(2, 9, (), generator=generator))
        self.batch = int(torch.randint(1, 65, (), generator=generator))
        self.weight = nn.Parameter(torch.randn(self.dim, self.dim, generator=generator) / self.dim**0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight) - 0.5 * y


def random_fields(count: int) -> list[tuple[RandomField, Tensor]]:
    """Return fields, each with an initial state."""
    generator = torch.Generator().manual_seed(2026)
    fields = [RandomField(generator) for _ in range(count)]
    return [(f, torch.randn(f.batch, f.dim, generator=generator)) for f in fields]


def fixed_part(f: RandomField, y0: Tensor, grad: bool, compile: bool) -> tuple[float, float]:
    """Return the milliseconds of a solve without evaluations, and the microseconds of each evaluation.

    They are the intercept and the slope of a line through the times over the evaluations of solves of ten spans.
    """

    def solve(end: float) -> Any:
        with torch.set_grad_enabled(grad):
            return odenet.solve(f, y0, [0.0, end], **_DOPRI5, compile=compile)

    evaluations = [solve(end).stats.nfe for end in SPANS]
    calls: dict[str, Callable[[], object]] = {str(end): lambda end=end: solve(end) for end in SPANS}
    seconds = interleave(calls, 15, shortest=0.02, pause=0.0)
    slope, fixed = np.polyfit(evaluations, [min(seconds[k]) for k in calls], 1)
    return 1e3 * fixed, 1e6 * slope


def machine_code_part(f: RandomField, y0: Tensor, grad: bool) -> float:
    """Return the milliseconds of the machine code of a compiled solve without evaluations."""
    seconds: list[float] = []

    def timed_library(*args: Any) -> Any:
        library = PlanCache.forward(PLAN_CACHE, *args)

        def run(tensors: list[Tensor], turns: int | None) -> list[Tensor]:
            start = time.perf_counter()
            out = library.run(tensors, turns)
            seconds.append(time.perf_counter() - start)
            return out

        return replace(library, run=run)

    least, evaluations = [], []
    PLAN_CACHE.forward = timed_library  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for end in SPANS:
            seconds.clear()
            with torch.set_grad_enabled(grad):
                solved = [odenet.solve(f, y0, [0.0, end], **_DOPRI5, compile=True) for _ in range(200)]
            least.append(min(seconds))
            evaluations.append(solved[0].stats.nfe)
    finally:
        del PLAN_CACHE.forward
    return 1e3 * float(np.polyfit(evaluations, least, 1)[1])


def constant_steps(f: RandomField, y0: Tensor, method: str, steps: int) -> tuple[float, float]:
    """Return the microseconds of a solve by odenet and by torchdiffeq, without gradients."""
    theirs = {"rk4_38": "rk4"}.get(method, method)
    ts, size = torch.tensor([0.0, 1.0]), 1.0 / steps
    options: dict[str, Any] = {"method": method, "step": size}
    calls: dict[str, Callable[[], object]] = {
        "odenet": lambda: odenet.solve(f, y0, ts, **options),
        "torchdiffeq": lambda: torchdiffeq.odeint(f, y0, ts, method=theirs, options={"step_size": size}),
    }
    with torch.no_grad():
        seconds = interleave(calls, 15, shortest=0.02, pause=0.0)
    return 1e6 * min(seconds["odenet"]), 1e6 * min(seconds["torchdiffeq"])


def python_calls(f: RandomField, y0: Tensor, grad: bool, end: float) -> tuple[int, int]:
    """Return the calls of Python functions of the package in a repeated solve, and the evaluations of f."""
    root, count = os.path.dirname(odenet.__file__), 0

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    with torch.set_grad_enabled(grad):
        odenet.solve(f, y0, [0.0, end], method="dopri5")
        sys.setprofile(profile)
        try:
            sol = odenet.solve(f, y0, [0.0, end], method="dopri5")
        finally:
            sys.setprofile(None)
    return count, sol.stats.nfe
