"""Lets several threads compile: what records and lowers works for one of them at a time, the C++ compiler for all.

Two things of Inductor's are changed while a thread compiles here. The C++ compiler is asked for less optimisation: the
loops are written with vector instructions already, and -O3 took 13 s where -O1 takes 4 and the loops are as fast. And
what the processor can do is not tried out by compiling and loading small programs, which takes 2 s: PyTorch knows it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .capture import quietly


class Turns:
    """`mine()`: this thread's turn, but for the time that the C++ compiler takes."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.run: Callable[..., Any] | None = None
        self.instructions: Callable[..., Any] | None = None

    @contextmanager
    def mine(self) -> Iterator[None]:
        quietly("torch._inductor.compile_fx")
        import torch._inductor.cpp_builder as builder
        import torch._inductor.cpu_vec_isa as isa

        with self.lock:
            if self.users == 0:
                self.run, builder.run_compile_cmd = builder.run_compile_cmd, self._meanwhile
                self.instructions = isa.valid_vec_isa_list
                isa.valid_vec_isa_list = _known_instructions(isa)
            self.users += 1
            try:
                yield
            finally:
                self.users -= 1
                if self.users == 0:
                    builder.run_compile_cmd, isa.valid_vec_isa_list = self.run, self.instructions

    def _meanwhile(self, command: str, cwd: str) -> Any:
        assert self.run is not None
        self.lock.release()
        try:
            return self.run(command.replace(" -O3 ", " -O1 "), cwd)
        finally:
            self.lock.acquire()


def _known_instructions(isa: Any) -> Callable[[], list[Any]]:
    """What Inductor asks for the vector instructions that it may write; itself where PyTorch does not say."""
    base = {"AVX512": "VecAVX512", "AVX2": "VecAVX2"}.get(torch.backends.cpu.get_cpu_capability())
    if base is None:
        return isa.valid_vec_isa_list
    kind = getattr(isa, base)
    known = type(base, (kind,), {"__bool__": lambda self: True, "__hash__": kind.__hash__})()
    return lambda: [known]
