"""The first training step of a process, and the memory of a training step, each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..libraries.contender import Call
from ..libraries.contenders import by_label
from ..libraries.problems import build, choose
from ..shared.errors import NotApplicableError, value_or_error
from ..shared.peak_memory import GLIBC, RETURN_FREED_MEMORY, limit_memory, memory_growth
from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import Settings


def _empty_caches(folder: str) -> dict[str, str]:
    """Return the environment in which every compiler keeps all that it compiles in `folder`."""
    root = Path(folder)
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "XDG_CACHE_HOME": str(root / "xdg"),
        "JAX_COMPILATION_CACHE_DIR": str(root / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _train_call(field: str, label: str, seed: int, device: str, quick: bool) -> Call:
    solver = by_label(label).start(build(choose(quick, [field])[0], seed, device))
    if solver.train is None:
        raise NotApplicableError("no gradient")
    return solver.train


def first_step_seconds(*args: Any) -> float:
    """Return the seconds of the first training step of this process."""
    train = _train_call(*args)
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


def step_memory(field: str, label: str, seed: int, device: str, quick: bool) -> int:
    """Return the bytes by which the second training step raises the peak of this process."""
    torch.set_num_threads(1)
    limit_memory(device)
    train = _train_call(field, label, seed, device, quick)
    train()  # compiles
    gc.collect()
    value_or_error(lambda: ctypes.CDLL(None).malloc_trim(0))  # glibc gives freed memory back, to be allocated anew
    return memory_growth(train, device)


def measure_starts(field: str, label: str, settings: Settings) -> tuple[dict[str, Any], str]:
    """Return the fields of `Row` about the first step, with empty caches and once more, and an error message."""
    found: dict[str, Any] = {}
    args = (field, label, settings.seed, settings.device, settings.quick)
    with TemporaryDirectory() as folder:
        for name in ("cold", "again"):
            start = time.perf_counter()
            seconds, error = call_in_subprocess(first_step_seconds, *args, env=_empty_caches(folder))
            if error:
                return found, f"{name} start: {error}"
            found |= {name: seconds, f"{name}_process": time.perf_counter() - start}
    return found, ""


def measure_memory(field: str, label: str, settings: Settings) -> tuple[int | None, str]:
    """Return the memory of a training step in bytes, and an error message."""
    env = RETURN_FREED_MEMORY if settings.device == "cpu" and GLIBC else None
    args = (field, label, settings.seed, settings.device, settings.quick)
    growth, error = call_in_subprocess(step_memory, *args, env=env)
    return growth, f"memory: {error}" if error else ""
