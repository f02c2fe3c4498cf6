"""Inductor's C++ wrapper, with a loop's invariants written before the loop. Import it under the compile lock only.

Inductor writes the body of a loop as if it ran once: each iteration makes a handle of each input and allocates each
intermediate tensor. For states of a few hundred numbers that takes several times as long as the arithmetic
(docs/design.md has the figures). This wrapper binds inputs by reference, and moves the allocations of buffers that do
not leave the iteration before the loop. It works on Inductor's line objects, not on C++ text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .field_graph import NotCompilableError
from .torch_private import inductor

_i = inductor()
_result = threading.local()  # what the module that Inductor generates hands back to the thread that compiles


class LoopWrapper(_i.CppWrapperCpu):  # pyright: ignore[reportUntypedBaseClass]
    """Writes `while_loop` without allocations of temporaries, and hands the C++ source to `cpp_source`."""

    def __init__(self) -> None:
        super().__init__()
        self._carried: int | None = None  # inputs that an iteration changes; None outside of a loop
        self._loop: Any = None
        self._bound: dict[int, str] = {}  # names of invariant inputs by position
        self._before: list[Any] = []  # lines before the loop
        self._kept: set[str] = set()  # names that no iteration frees
        self._returned: set[str] = set()  # names of buffers that an iteration returns

    @staticmethod
    def create(
        is_subgraph: bool, subgraph_name: str | None, parent_wrapper: Any, partition_signatures: Any = None
    ) -> Any:
        """Inductor's own wrapper in threads that compile something else."""
        if getattr(_result, "wanted", False):
            return LoopWrapper()
        return _i.CppWrapperCpu.create(is_subgraph, subgraph_name, parent_wrapper, partition_signatures)

    def codegen_while_loop(self, while_loop: Any, stack_output: bool = False) -> None:
        """Bind the inputs once, and remember the loop for `run_wrapper_ir_passes`."""
        assert self._loop is None, "one loop a graph"
        self._loop, self._carried = while_loop, len(while_loop.carried_inputs)
        super().codegen_while_loop(while_loop, stack_output)
        self._carried = None

    def codegen_subgraph_prefix(self, subgraph: Any, outer_inputs: Sequence[str], outer_outputs: Any) -> None:
        """Inputs as references. An invariant input is bound before the loop, as its expression may own a view."""
        if self._carried is None:
            super().codegen_subgraph_prefix(subgraph, outer_inputs, outer_outputs)
            return
        for position, (name, outer) in enumerate(zip(subgraph.graph.graph_inputs, outer_inputs, strict=True)):
            self._kept.add(name)
            if position < self._carried:
                self.writeline(f"auto& {name} = {outer};")
            elif position in self._bound:
                self.writeline(f"auto& {name} = {self._bound[position]};")
            else:
                self._before.append(f"auto&& {name} = {outer};")
                self._bound[position] = name

    def codegen_subgraph_suffix(self, subgraph: Any, outer_inputs: Any, outer_outputs: Any) -> None:
        """Remember the buffers that leave the iteration."""
        super().codegen_subgraph_suffix(subgraph, outer_inputs, outer_outputs)
        if self._carried is not None:
            names = {output.get_name() for output in subgraph.graph.graph_outputs}
            assert not names & self._kept, "an iteration returns its own input"
            self._returned |= names

    def run_wrapper_ir_passes(self, is_inference: bool) -> None:
        """Plan the memory, then move what is the same at every iteration before the loop."""
        super().run_wrapper_ir_passes(is_inference)
        if self._loop is None:
            return
        enters = {id(line.graph): i for i, line in enumerate(self.lines) if isinstance(line, _i.EnterSubgraphLine)}
        head = enters[id(self._loop.cond_subgraph.graph)] - 1  # the line `while (1) {`
        start = enters[id(self._loop.body_subgraph.graph)] + 1
        length = next(i for i, line in enumerate(self.lines[start:]) if isinstance(line, _i.ExitSubgraphLine))
        fixed, body = self._split(self.lines[start : start + length])
        self.lines[start : start + length] = body
        self.lines[head:head] = [*self._before, *fixed]

    def _split(self, body: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Lines for before the loop, and lines for the loop. A returned buffer is allocated in every iteration."""
        renames = (_i.ReuseLine, _i.ReinterpretLine)
        for line in reversed(body):
            if isinstance(line, renames) and line.reused_as.get_name() in self._returned:
                self._returned.add(line.node.get_name())
        fixed: list[Any] = []
        inside: list[Any] = []
        for line in body:
            if isinstance(line, _i.AllocateLine) and line.node.get_name() not in self._returned:
                self._kept.add(line.node.get_name())
                fixed.append(line)
            elif isinstance(line, renames) and line.node.get_name() in self._kept:
                self._kept.add(line.reused_as.get_name())
                fixed.append(line)
            else:
                inside.append(line)
        return fixed, inside

    def codegen_exact_buffer_reuse(self, old_name: str, new_name: str, del_line: str) -> str:
        """A second name for a buffer that stays, in place of a move."""
        if old_name in self._kept:
            return f"auto& {new_name} = {old_name};"
        return super().codegen_exact_buffer_reuse(old_name, new_name, del_line)

    def make_buffer_free(self, buffer: Any) -> str:
        """Nothing for what stays."""
        return "" if buffer.get_name() in self._kept else super().make_buffer_free(buffer)

    def generate_end(self, result: Any) -> None:
        """Close the C++ source and hand it over, where Inductor would compile and load it."""
        if _i.V.graph.constants:
            raise NotCompilableError("f makes a constant tensor: hold it in a buffer, or pass it through args")
        result.splice(self.kernel_declarations.getvalue())
        self.kernel_declarations.clear()
        outputs = len(_i.V.graph.graph_outputs)
        quotes = "'''" if "r'''" in self.header.getvalue() else '"""'  # until PyTorch 2.12, and since
        result.splice(f"{quotes}\n)")
        result.splice(f"from {__name__} import receive\ncall = receive(cpp_wrapper_src, {outputs})")


class _Bindings(_i.CppWrapperCodeCache):  # pyright: ignore[reportUntypedBaseClass]
    """Adds the Python bindings to a C++ source, and compiles nothing."""

    @classmethod
    def load_async(cls, main_code: str, *args: Any, **options: Any) -> Callable[[], None]:
        _result.source = main_code
        return lambda: None


def receive(source: str, outputs: int) -> Callable[..., Any]:
    """Called by the module that Inductor generates: keep the C++ source for `cpp_source`."""
    _Bindings.load_pybinding_async(["std::vector<AtenTensorHandle>"], source, num_outputs=outputs)
    return lambda *_: None


def cpp_source(module: GraphModule, fakes: Sequence[Tensor], mode: Any, options: Mapping[str, Any]) -> str:
    """The C++ source of a graph with a loop, with Python bindings."""
    with registered(), _i.config.patch(options), torch.no_grad(), _i.V.set_fake_mode(mode):
        _i.compile_fx_inner(module, fakes, cpp_wrapper=True)
    return vars(_result).pop("source")


@contextmanager
def registered() -> Generator[None]:
    """Register the wrapper for the CPU; it serves this thread alone."""
    _i.init_backend_registration()
    kinds: tuple[dict[str, bool], ...] = ({}, {"cpp_wrapper": True}, {"fx_wrapper": True})
    python, cpp, fx = (_i.get_wrapper_codegen_for_device("cpu", **kind) for kind in kinds)
    scheduling = _i.get_scheduling_for_device("cpu")
    rest = fx, _i.get_custom_backend_pass_for_device("cpu"), _i.get_custom_backend_config_for_device("cpu")
    try:
        _result.wanted = True
        _i.register_backend_for_device("cpu", scheduling, python, LoopWrapper, *rest)
        yield
    finally:
        _result.wanted = False
        _i.register_backend_for_device("cpu", scheduling, python, cpp, *rest)
