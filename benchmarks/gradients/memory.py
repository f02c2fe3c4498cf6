"""Growth of the peak memory by a forward and a backward pass, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import odenet

from ..shared.errors import NotApplicableError
from ..shared.peak_memory import GLIBC, RETURN_FREED_MEMORY, limit_memory, memory_growth
from ..shared.subprocesses import call_in_subprocess
from .gradient_options import GradientOption, memory_options

STEPS = (50, 1000)
SIDE = 512  # a state of (512, 512) in float32 takes 1 MiB
DIFFERENCE_TARGET = 30  # MiB: growth at the most steps minus growth at the fewest


@dataclass(frozen=True)
class Memory:
    """Growth of the peak memory by one forward and one backward pass, in bytes; None with a note that says why.

    tight: the allocator returns freed memory at once, so that the number is what tensors need.
    """

    label: str
    steps: int
    tight: bool
    growth: int | None
    target_mib: float | None
    note: str = ""


def _field(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.sin(w * y)


def forward_and_backward(gradient: Any, steps: int, rows: int, device: str) -> Callable[[], Any]:
    """Return the call to measure: rk4 on a state of (rows, SIDE)."""
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(rows, SIDE, generator=generator).to(device).requires_grad_()
    w = torch.rand(SIDE, generator=generator).to(device).requires_grad_()

    def work() -> Any:
        sol = odenet.solve(_field, y0, [0.0, 1.0], args=(w,), method="rk4", step=1.0 / steps, gradient=gradient)
        return sol, torch.autograd.grad(sol.y1.square().mean(), (y0, w))

    return work


def growth_here(label: str, steps: int, rows: int, device: str) -> int:
    """Return the growth in this process, in bytes."""
    torch.set_num_threads(1)  # threads do not change the memory, and cost minutes on a busy machine
    limit = limit_memory(device)
    gradient = {option.label: option for option in memory_options()}[label].make()
    try:
        forward_and_backward(gradient, 20, 8, device)()  # loads libraries, whose memory does not count
        return memory_growth(forward_and_backward(gradient, steps, rows, device), device)
    except RuntimeError as error:
        if "memory" in str(error) and "alloc" in str(error):
            bound = f"{limit / 2**30:.1f} GiB" if device == "cpu" else "the GPU has"
            raise NotApplicableError(f"needs more than {bound}") from None
        raise


def measure_option(option: GradientOption, steps: int, rows: int, device: str, tight: bool) -> Memory:
    """Return the growth in a new process."""
    env = RETURN_FREED_MEMORY if tight else None
    growth, note = call_in_subprocess(growth_here, option.label, steps, rows, device, env=env)
    return Memory(option.label, steps, tight, growth, option.target, note)


def measure(device: str, quick: bool) -> list[Memory]:
    options = [o for o in memory_options() if not quick or o.label in ("adjoint", "discrete")]
    few, many = (5, 20) if quick else STEPS
    kinds = [(few, False), (many, False)]
    if device == "cpu" and GLIBC:
        kinds.append((few, True))  # not with many steps: each allocation is a system call, which is slow
    jobs = [(o, *kind) for o in options for kind in kinds]
    return [measure_option(o, n, SIDE, device, tight) for o, n, tight in tqdm(jobs, "memory", disable=None)]
