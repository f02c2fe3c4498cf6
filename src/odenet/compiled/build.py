"""From a recorded loop to machine code: Inductor writes C++, the C++ compiler makes a library, a folder keeps it.

The library runs a whole loop without Python. It is loaded without Inductor, so a second process neither records nor
compiles, and does not import the compiler.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.util
import json
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .compile_lock import compiling
from .graph_recording import RecordedLoop, input_fakes
from .loop_blocks import LoopBlocks
from .precompiled_headers import compiler_flags, precompiled_header
from .tape_pool import RowSpec
from .torch_private import import_quietly, inductor, runtime

_ENTRY = "inductor_entry_cpp"
# a typed setting in place of a trial that takes 2 s: whether the vector instructions that PyTorch found can be compiled
_OPTIONS: dict[str, Any] = {"compile_threads": 1, "cpp.vec_isa_ok": True}

LoopFunction = Callable[[list[Tensor], int | None], list[Tensor]]
"""Takes input tensors, and the number of iterations where it is known; returns output tensors."""


@dataclass(frozen=True)
class Library:
    """A loaded loop. evaluations, saved_rows: those of `RecordedLoop`."""

    run: LoopFunction
    evaluations: tuple[int, int]
    saved_rows: tuple[RowSpec, ...]


def folder() -> Path:
    """The folder of libraries, inside Inductor's cache folder, so that emptying that empties this."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return base / "odenet"


def library(key: str | None, record: Callable[[], RecordedLoop], threads: int, optimize: bool) -> Library:
    """The compiled loop. key: cache key; None turns the search on disk off. optimize: -O3 in place of -O1."""
    if key is not None and (found := find(key)) is not None:
        return found
    with compiling():
        precompiled_header(optimize)  # another process makes it meanwhile
        recorded = record()
    path = compile_loop(recorded, threads, optimize)
    if key is not None:
        _store(key, path, recorded)
    return Library(load(path), recorded.evaluations, recorded.saved_rows)


def block_library(record: Callable[[], RecordedLoop]) -> Library:
    """The loop for a device with a queue of kernels. Inductor's own cache serves other processes."""

    def compiler(part: GraphModule, fakes: Sequence[Tensor], mode: Any) -> Callable[[list[Tensor]], list[Tensor]]:
        if not any(n.op == "call_function" for n in part.graph.nodes):
            return lambda tensors: list(part(*tensors))
        i = inductor()
        with compiling(), i.config.patch(_OPTIONS), torch.no_grad(), i.V.set_fake_mode(mode):
            compiled = i.compile_fx_inner(part, fakes)
        return lambda tensors: list(compiled(tensors))

    with compiling():
        recorded = record()
    return Library(LoopBlocks(recorded, compiler).run, recorded.evaluations, recorded.saved_rows)


def find(key: str) -> Library | None:
    """A library that this or another process has stored."""
    facts = folder() / f"{key}.json"
    if not facts.exists():
        return None
    stored = json.loads(facts.read_text())
    rows = tuple(RowSpec(tuple(shape), getattr(torch, dtype), name) for shape, dtype, name in stored["saved_rows"])
    return Library(load(folder() / stored["library"]), tuple(stored["evaluations"]), rows)


def _store(key: str, path: Path, recorded: RecordedLoop) -> None:
    rows = [(x.shape, str(x.dtype).removeprefix("torch."), x.operation) for x in recorded.saved_rows]
    facts = {"library": path.name, "evaluations": list(recorded.evaluations), "saved_rows": rows}
    with atomic_write(folder() / f"{key}.json") as part:
        part.write_text(json.dumps(facts))


@contextmanager
def atomic_write(file: Path) -> Generator[Path]:
    """A path to write to; the file there replaces `file` at the end, whole or not at all."""
    part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


class BackgroundBuild:
    """A library that another thread makes.

    While the C++ compiler, a process, works on one library, the next one is recorded and lowered. interrupted: Ctrl-C
    came in between.
    """

    interrupted = False

    def __init__(self, key: str | None, record: Callable[[], RecordedLoop], threads: int, optimize: bool) -> None:
        self._library: Future[Library] = Future()
        if key is not None and (found := find(key)) is not None:
            self._library.set_result(found)
            return
        import_quietly("torch._inductor.compile_fx")
        executor = ThreadPoolExecutor(1)  # the interpreter waits for its thread at exit, and would abort otherwise
        self._library = executor.submit(library, key, record, threads, optimize)
        executor.shutdown(wait=False)

    def working(self) -> bool:
        return not self._library.done()

    def wait(self) -> Library:
        return self._library.result()


def load(path: Path) -> LoopFunction:
    """The library as a function. Its entry takes and returns handles; PyTorch converts tensors to handles."""
    convert = runtime()
    # Inductor's libraries read this address when they are loaded
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(convert._torchinductor_pyobject_tensor_data_ptr)
    spec = importlib.util.spec_from_file_location(f"{path.stem}.{_ENTRY}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = getattr(module, _ENTRY)

    def run(tensors: list[Tensor], iterations: int | None = None) -> list[Tensor]:  # the loop counts them itself
        handles = convert.unsafe_alloc_void_ptrs_from_tensors(tensors)
        return convert.alloc_tensors_by_stealing_from_void_ptrs(entry(handles))

    return run


def compile_loop(recorded: RecordedLoop, threads: int, optimize: bool) -> Path:
    """The path of the library of a recorded loop."""
    options: dict[str, Any] = _OPTIONS | {
        "cpp_wrapper": True,
        "cpp.threads": threads,
        "cpp_wrapper_build_separate": False,
        "fx_graph_cache": False,  # the library is found without Inductor
    }
    i = inductor()
    with compiling():
        from .loop_invariants import cpp_source

        whole = recorded.whole()
        source = cpp_source(whole, input_fakes(whole), recorded.mode, options)
        with i.config.patch(options):
            # a joint step is written with vector instructions already, and -O3 takes half as long again as -O1;
            # a step of each sample has loops that -O3 makes twice as fast (10,000 samples)
            flags = compiler_flags(optimize)
            key = i.CppBuilder(name="o", sources="i", BuildOption=flags).get_command_line()
            flags.precompiled_header = precompiled_header(optimize)
    name = hashlib.sha256(f"{torch.__version__}{key}{source}".encode()).hexdigest()
    return _compile_cpp(source, flags, folder() / f"{name}.so")


def _compile_cpp(source: str, flags: Any, target: Path) -> Path:
    """Run the C++ compiler in a folder of its own, and move the library to its place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        file = Path(place) / "loop.cpp"
        file.write_text(source)
        builder = inductor().CppBuilder(name="loop", sources=str(file), BuildOption=flags, output_dir=place)
        builder.build()
        os.replace(builder.get_target_file_path(), target)
    return target
