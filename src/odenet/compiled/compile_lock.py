"""Lets several threads compile: what records and lowers works for one of them at a time, the C++ compiler for all.

Four things of Inductor's are changed while a thread compiles here. Loops are made lean (hoist.py). The C++ compiler is
asked for less optimisation unless a loop has much arithmetic on lanes, as with steps for each sample: a step of a joint
solve is written with vector instructions already, and -O3 takes half as long again as -O1 for code that is as fast
(with 10,000 samples it is twice as fast). And what the processor can do is not tried out by compiling and loading small
programs, which takes 2 s: PyTorch knows it. The fourth: Inductor locks the file of a library that it makes, against
other processes, and a turn is given up before that lock is waited for, and taken again after it is released. Otherwise
two processes that make the same two libraries, as those of one training do, would wait for each other.
"""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .capture import quietly
from .gc_pause import paused
from .loop_invariants import hoisted

SOON = 0.1  # seconds after which the C++ compiler is running


class Turns:
    """`mine()`: this thread's turn, but for the time that the C++ compiler takes. thorough: that does its best."""

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self.lock, self.users = lock or threading.Lock(), 0
        self.run: Callable[..., Any] | None = None
        self.make: Callable[..., Any] | None = None
        self.instructions: Callable[..., Any] | None = None
        self.load: Any = None
        self.waiting = 0  # for the C++ compiler
        self.own = threading.local()  # of a thread in its turn; another may compile for itself meanwhile

    @contextmanager
    def mine(self, thorough: bool = False) -> Iterator[None]:
        quietly("torch._inductor.compile_fx")
        import torch._inductor.cpp_builder as builder
        import torch._inductor.cpu_vec_isa as isa
        from torch._inductor import codecache

        cache: Any = codecache.CppPythonBindingsCodeCache
        with paused(), self.lock:
            counted = False
            try:
                if self.users == 0:
                    self.run, self.instructions = builder.run_compile_cmd, isa.valid_vec_isa_list
                    self.make = codecache._worker_compile_cpp
                    self.load = vars(cache)["load_pybinding_async"]
                self.users, counted = self.users + 1, True
                if self.users == 1:
                    builder.run_compile_cmd, isa.valid_vec_isa_list = self._command, _known_instructions(isa)
                    codecache._worker_compile_cpp = self._meanwhile
                    cache.load_pybinding_async = classmethod(_with_lean_loops(self.load.__func__))
                self.own.level = " -O3 " if thorough else " -O1 "
                yield
            finally:
                vars(self.own).pop("level", None)
                self.users -= counted
                if self.users == 0 and counted:
                    builder.run_compile_cmd, isa.valid_vec_isa_list = self.run, self.instructions
                    codecache._worker_compile_cpp = self.make
                    cache.load_pybinding_async = self.load

    def _meanwhile(self, *given: Any) -> Any:
        """Inductor's making of a library: it waits for the file's lock, and for the C++ compiler."""
        assert self.make is not None
        if getattr(self.own, "level", None) is None:
            return self.make(*given)
        tidying = threading.Timer(SOON, self._tidy)
        with self._others():
            tidying.start()
            try:
                return self.make(*given)
            finally:
                tidying.cancel()

    def _command(self, command: str, cwd: str) -> Any:
        assert self.run is not None
        level = getattr(self.own, "level", None)
        if level is None:
            return self.run(command, cwd)
        return _whole_or_not(self.run, command.replace(" -O3 ", level), cwd)

    @contextmanager
    def _others(self) -> Iterator[None]:
        """The others' turn; then this thread's again, also where Ctrl-C comes meanwhile or while it is waited for."""
        self.waiting += 1
        self.lock.release()
        try:
            yield
        finally:
            interrupted: BaseException | None = None
            while True:
                try:
                    self.lock.acquire()
                    break
                except KeyboardInterrupt as error:
                    interrupted = error
            self.waiting -= 1
            if interrupted is not None:
                raise interrupted

    def _tidy(self) -> None:
        """What Inductor has left behind is collected while everybody waits for the C++ compiler."""
        if self.waiting == self.users:
            gc.collect()


def _whole_or_not(run: Callable[..., Any], command: str, cwd: str) -> Any:
    """Runs the compiler, and puts what it makes in its place when it is done: what lies there is taken for whole."""
    made = re.findall(r"(?<= -o )\S+", command)
    if len(made) != 1:
        return run(command, cwd)
    with replacing(made[0]) as part:
        return run(command.replace(f" -o {made[0]}", f" -o {part}"), cwd)


@contextmanager
def replacing(file: str | Path) -> Iterator[str]:
    """A file to write, which is then put in the place of another: whole or not at all, whoever else does the same."""
    part = f"{file}.{os.getpid()}.{threading.get_ident()}"
    try:
        yield part
        os.replace(part, file)
    finally:
        Path(part).unlink(missing_ok=True)


def _known_instructions(isa: Any) -> Callable[[], list[Any]]:
    """What Inductor asks for the vector instructions that it may write; itself where PyTorch does not say."""
    base = {"AVX512": "VecAVX512", "AVX2": "VecAVX2"}.get(torch.backends.cpu.get_cpu_capability())
    if base is None:
        return isa.valid_vec_isa_list
    kind = getattr(isa, base)
    known = type(base, (kind,), {"__bool__": lambda self: True, "__hash__": kind.__hash__})()
    return lambda: [known]


def _with_lean_loops(load: Callable[..., Any]) -> Callable[..., Any]:
    def lean(cls: Any, argtypes: Any, main_code: str, *args: Any, **kwargs: Any) -> Any:
        return load(cls, argtypes, hoisted(main_code), *args, **kwargs)

    return lean
