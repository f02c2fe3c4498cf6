"""A process of its own for one contender: the time of its first gradient, or the memory that a training step takes."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..apart import ask
from ..fields import Field, build, choose
from ..memory import TIGHT, allowance, growth
from ..results import DoesNotApplyError, attempt
from .contenders import by_label
from .runs import Contender


def _empty_caches(folder: str) -> dict[str, str]:
    """Settings by which every compiler here keeps what it makes in `folder`, however small."""
    root = Path(folder)
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "XDG_CACHE_HOME": str(root / "xdg"),
        "JAX_COMPILATION_CACHE_DIR": str(root / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _words(what: str, field: Field, contender: Contender, seed: int, device: str, quick: bool) -> list[str]:
    words = [f"--what={what}", f"--field={field.name}", f"--contender={contender.label}", f"--seed={seed}"]
    return [*words, f"--device={device}", *(["--quick"] if quick else [])]


def cold(field: Field, contender: Contender, seed: int, device: str, quick: bool) -> tuple[dict[str, Any], str]:
    """By Row's names: seconds of the first gradient and of the process, with empty caches and once more."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name in ("cold", "again"):
            start = time.perf_counter()
            answer, note = ask(__name__, _words("cold", field, contender, seed, device, quick), _empty_caches(folder))
            note = note or answer["note"]
            if note:
                return found, f"{name} start: {note}"
            found |= {name: answer["value"], f"{name}_process": time.perf_counter() - start}
    return found, ""


def memory(field: Field, contender: Contender, seed: int, device: str, quick: bool) -> tuple[int | None, str]:
    """Bytes by which a training step raises the peak, after one that compiled what there is to compile."""
    tight = TIGHT if device == "cpu" and platform.libc_ver()[0] == "glibc" else {}
    answer, note = ask(__name__, _words("memory", field, contender, seed, device, quick), tight)
    note = note or answer["note"]
    return answer.get("value"), f"memory: {note}" if note else ""


def _train(given: argparse.Namespace) -> Any:
    (field,) = choose(given.quick, [given.field])
    runs = by_label(given.contender).start(build(field, given.seed, given.device))
    if runs.train is None:
        raise DoesNotApplyError("no gradient")
    return runs.train


def _first_gradient(given: argparse.Namespace) -> float:
    train = _train(given)
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


def _step_memory(given: argparse.Namespace) -> int:
    train = _train(given)
    train()
    gc.collect()
    attempt(lambda: ctypes.CDLL(None).malloc_trim(0))  # glibc: freed memory goes back, so that the step takes it anew
    return growth(train, given.device)


def main() -> None:
    """The child process: one number, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", choices=("cold", "memory"), required=True)
    parser.add_argument("--field", required=True)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.what == "memory":
        torch.set_num_threads(1)
        if given.device == "cpu":
            limit = allowance()
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    work = _first_gradient if given.what == "cold" else _step_memory
    value, note = attempt(lambda: work(given))
    print(json.dumps({"value": value, "note": note}))


if __name__ == "__main__":
    main()
