"""Growth of the peak memory by a forward and backward pass, each in a process of its own."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odenet

from ..errors import unknown_name
from .apart import ask
from .contenders import Contender, memory_contenders
from .results import Memory, Tell, attempt

STEPS = (50, 1000)
SIDE = 512  # a state of (512, 512) float32: 1 MiB
FURTHER_MIB = 30  # target: growth at the most steps less growth at the fewest
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# glibc's allocator then maps every tensor of 64 KiB or more by itself, and unmaps it when it is freed
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_MOST = 8 * 2**30  # bytes that a child may take, at most half of what is free


def peak() -> int:
    """Bytes: the most that was resident in this process.

    getrusage's ru_maxrss is the same on most systems, but on Linux a child starts with its parent's peak in it, which
    would hide what the child takes itself; VmHWM begins anew.
    """
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes by which `work` raises the peak: of resident memory, or of what PyTorch has allocated on the GPU.

    What `work` returns is still alive at the end.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = work()
        torch.cuda.synchronize()
        after = torch.cuda.max_memory_allocated()
    else:
        attempt(lambda: _CLEAR.write_text("5"))  # Linux: the peak is what is resident now; elsewhere it stays
        before = peak()
        kept = work()
        after = peak()
    del kept
    return after - before


def _field(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.sin(w * y)


def forward_and_backward(contender: Contender, steps: int, rows: int, device: str) -> Callable[[], Any]:
    """The pass to measure: rk4 on a state of (rows, SIDE); its inputs exist already."""
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(rows, SIDE, generator=generator).to(device).requires_grad_()
    w = torch.rand(SIDE, generator=generator).to(device).requires_grad_()
    gradient = contender.make()

    def work() -> Any:
        sol = odenet.solve(_field, y0, [0.0, 1.0], args=(w,), method="rk4", step=1.0 / steps, gradient=gradient)
        return sol, torch.autograd.grad(sol.y1.square().mean(), (y0, w))

    return work


def measure_here(label: str, steps: int, rows: int, device: str) -> int:
    """Bytes, in this process; a small problem comes first, so that loaded libraries do not count."""
    contenders = {c.label: c for c in memory_contenders()}
    if label not in contenders:
        raise unknown_name("gradient", label, contenders)
    forward_and_backward(contenders[label], 20, 8, device)()
    return growth(forward_and_backward(contenders[label], steps, rows, device), device)


def measure_apart(contender: Contender, steps: int, rows: int, device: str, tight: bool) -> Memory:
    """The same in a new process."""
    words = [f"--gradient={contender.label}", f"--steps={steps}", f"--rows={rows}", f"--device={device}"]
    found, note = ask(__name__, words, TIGHT if tight else {})
    return Memory(contender.label, steps, tight, found.get("growth"), contender.target, note or found["note"])


def measure(device: str, quick: bool, tell: Tell) -> list[Memory]:
    contenders = [c for c in memory_contenders() if not quick or c.label in ("adjoint", "discrete")]
    few, many = (5, 20) if quick else STEPS
    kinds = [(few, False), (many, False)]
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        kinds.append((few, True))  # at every free and allocation the system is asked: slow
    jobs = [(c, *kind) for c in contenders for kind in kinds]
    results = []
    for done, (contender, steps, tight) in enumerate(jobs):
        tell("memory", done, len(jobs))
        results.append(measure_apart(contender, steps, SIDE, device, tight))
    tell("memory", len(jobs), len(jobs))
    return results


def allowance() -> int:
    """Bytes that a measurement may take, so that the machine stays usable."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return min([_MOST, *(f // 2 for f in free)])


def main() -> None:
    """The child process: one measurement, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradient", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows", type=int, default=SIDE)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)  # memory is the question here, and on a busy machine threads that wait cost minutes
    limit = allowance()
    if given.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    found, note = attempt(lambda: measure_here(given.gradient, given.steps, given.rows, given.device))
    if "memory" in note and "alloc" in note:
        note = f"needs more than {limit / 2**30:.1f} GiB" if given.device == "cpu" else "needs more than the GPU has"
    print(json.dumps({"growth": found, "note": note}))


if __name__ == "__main__":
    main()
