"""From a graph to machine code: Inductor writes C++, the compiler makes a library of it, and a library is kept on disk.

The library runs a whole loop without Python. It is loaded without Inductor, so a second process pays neither for
recording and compiling nor for importing the compiler.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .capture import quietly, turn
from .compile_lock import Turns, replacing
from .graph_recording import Recorded, looks
from .loop_blocks import Blocks

_ENTRY = "inductor_entry_cpp"


@dataclass(frozen=True)
class Library:
    """A loaded graph; `calls` and `kept` are those of `Recorded`.

    run: takes tensors, and the number of turns where it is known.
    """

    run: Callable[[list[Tensor], int | None], list[Tensor]]
    calls: tuple[int, int]
    kept: tuple[tuple[tuple[int, ...], torch.dtype], ...]


def folder() -> Path:
    """Beside Inductor's own cache, so that whoever empties that empties this."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return base / "odenet"


def library(key: str | None, make: Callable[[], Recorded], threads: int, thorough: bool) -> Library:
    """The compiled graph. key: of what it computes; None: it is not found again by another process."""
    if key is not None and (found := _found(key)) is not None:
        return found
    with _turns.mine():
        recorded = make()
    path = compiled(recorded, threads, thorough)
    if key is not None:
        path = _keep(path, key, recorded)
    return Library(load(path), recorded.calls, recorded.kept)


def queued(make: Callable[[], Recorded]) -> Library:
    """The graph for a device that works through a queue. Inductor's own cache serves other processes."""

    def one(part: GraphModule, fakes: Sequence[Tensor], mode: Any) -> Callable[[list[Tensor]], list[Tensor]]:
        if not any(n.op == "call_function" for n in part.graph.nodes):
            return lambda tensors: list(part(*tensors))
        made = _by_inductor(part, fakes, mode, {"compile_threads": 1})
        return lambda tensors: list(made(tensors))

    with _turns.mine():
        recorded = make()
    return Library(Blocks(recorded, one).run, recorded.calls, recorded.kept)


def _found(key: str) -> Library | None:
    """A library that this or another process made."""
    facts, path = folder() / f"{key}.json", folder() / f"{key}.so"
    if not facts.exists():  # it is written last
        return None
    told = json.loads(facts.read_text())
    kept = tuple((tuple(shape), getattr(torch, dtype)) for shape, dtype in told["kept"])
    return Library(load(path), tuple(told["calls"]), kept)


def _keep(made: Path, key: str, recorded: Recorded) -> Path:
    folder().mkdir(parents=True, exist_ok=True)
    whole = folder() / f"{key}.so"
    kept = [(list(shape), str(dtype).removeprefix("torch.")) for shape, dtype in recorded.kept]
    with replacing(whole) as part:
        shutil.copy(made, part)
    with replacing(folder() / f"{key}.json") as part:
        Path(part).write_text(json.dumps({"calls": list(recorded.calls), "kept": kept}))
    return whole


class Beside:
    """Makes a library in a thread of its own, while this one makes another.

    While the C++ compiler, a process, works for one of them, the other is recorded and lowered. interrupted: Ctrl-C
    came meanwhile.
    """

    interrupted = False

    def __init__(self, key: str | None, make: Callable[[], Recorded], threads: int, thorough: bool) -> None:
        self.made: Future[Library] = Future()
        if key is not None and (found := _found(key)) is not None:
            self.made.set_result(found)
            return
        quietly("torch._inductor.compile_fx")
        thread = ThreadPoolExecutor(1)  # which a process that ends waits for: else it would abort
        self.made = thread.submit(library, key, make, threads, thorough)
        thread.shutdown(wait=False)

    def working(self) -> bool:
        return not self.made.done()

    def wait(self) -> Library:
        return self.made.result()


def load(path: Path) -> Callable[[list[Tensor], int | None], list[Tensor]]:
    """The library as a function. Its entry takes and gives handles of tensors; PyTorch turns tensors into those."""
    # where Inductor's libraries look for what they need of PyTorch's Python side
    pointer = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # pyright: ignore
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(pointer)
    spec = importlib.util.spec_from_file_location(f"{path.stem}.{_ENTRY}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = getattr(module, _ENTRY)

    def run(tensors: list[Tensor], turns: int | None = None) -> list[Tensor]:  # the loop counts them itself
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)  # pyright: ignore
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(entry(handles))  # pyright: ignore

    return run


_turns = Turns(turn)


def compiled(recorded: Recorded, threads: int, thorough: bool) -> Path:
    """The library that Inductor and the compiler make."""
    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "cpp.threads": threads,
        "cpp_cache_precompile_headers": False,  # takes longer than it saves a process with few libraries
        "fx_graph_cache": False,  # ours is found without Inductor
        "compile_threads": 1,  # one file: helpers would only have to be started
    }
    with _turns.mine():
        whole = recorded.whole()
    made = _by_inductor(whole, looks(whole), recorded.mode, options, thorough)
    return Path(made.current_callable.__globals__["inductor_entry"].__self__.__file__)


def _by_inductor(
    module: GraphModule, fakes: Sequence[Tensor], mode: Any, options: dict[str, Any], thorough: bool = False
) -> Any:
    quietly("torch._inductor.compile_fx")
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.virtualized import V

    with _turns.mine(thorough), config.patch(options), torch.no_grad(), V.set_fake_mode(mode):
        return compile_fx_inner(module, fakes, cpp_wrapper="cpp_wrapper" in options)
