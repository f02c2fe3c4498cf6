"""Growth of the peak memory during a call."""

from __future__ import annotations

import gc
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .errors import value_or_error

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MOST = 8 * 2**30  # bytes that a child process may take, at most half of what is free
GLIBC = platform.libc_ver()[0] == "glibc"
# glibc then maps every tensor of 64 KiB or more by itself, and gives it back to the system when it is freed
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_memory() -> int:
    """Return the most bytes that were resident in this process.

    On Linux the ru_maxrss of getrusage starts, in a child, with the peak of its parent; VmHWM starts anew.
    """
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_growth(work: Callable[[], object], device: str = "cpu") -> int:
    """Return the bytes by which `work` raises the peak of resident memory, on a GPU of what PyTorch has allocated.

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
        value_or_error(lambda: _CLEAR.write_text("5"))  # Linux resets the peak; elsewhere it stays
        before = peak_memory()
        kept = work()
        after = peak_memory()
    del kept
    return after - before


def limit_memory(device: str) -> int:
    """Limit the memory of this process on the CPU, so that the machine stays usable. Return the limit in bytes."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit = min([_MOST, *(f // 2 for f in free)])
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit
