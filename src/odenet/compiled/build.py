"""From a graph to machine code: Inductor writes C++, the compiler makes a library of it, and a library is kept on disk.

The library runs a whole loop without Python. It is loaded without Inductor, so a second process pays neither for
recording and compiling nor for importing the compiler.
"""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .capture import quietly
from .loops import Recorded


@dataclass(frozen=True)
class Library:
    """A loaded graph. calls: evaluations of f outside the loop, and in each of its turns."""

    run: Callable[[list[Tensor]], list[Tensor]]
    calls: tuple[int, int]


def folder() -> Path:
    """Beside Inductor's own cache, so that whoever empties that empties this."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return base / "odenet"


def library(key: str | None, make: Callable[[], Recorded], threads: int) -> Library:
    """The compiled graph. key: of what it computes; None: it is not found again by another process."""
    kept = sorted(folder().glob(f"{key}.*.so")) if key is not None else []
    if kept:
        outside, inside = kept[0].name.split(".")[1:3]
        return Library(_runner(kept[0]), (int(outside), int(inside)))
    recorded = make()
    made = Path(compiled(recorded, threads))
    if key is not None:
        folder().mkdir(parents=True, exist_ok=True)
        whole = folder() / f"{key}.{recorded.calls[0]}.{recorded.calls[1]}.so"
        part = whole.with_suffix(f".{os.getpid()}")
        shutil.copy(made, part)
        part.replace(whole)  # whole or not at all, also where two processes do the same
        made = whole
    return Library(_runner(made), recorded.calls)


def _runner(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run  # pyright: ignore


def compiled(recorded: Recorded, threads: int) -> str:
    """The path of the library that Inductor and the compiler make."""
    quietly("torch._inductor.compile_fx")
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.virtualized import V

    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "cpp.vec_isa_ok": True,
        "cpp.threads": threads,
        "aot_inductor.precompile_headers": False,
    }
    with torch.no_grad(), V.set_aot_compilation(True), V.set_fake_mode(recorded.mode), config.patch(options):
        made = compile_fx_inner(recorded.module, recorded.fakes, aot_mode=True, cpp_wrapper=True)  # pyright: ignore
    return made.filename  # pyright: ignore
