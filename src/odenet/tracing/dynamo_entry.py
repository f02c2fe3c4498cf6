"""How the library looks to `torch.compile` of the caller's own model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

from ..core.torch_func import inside_transform

P = ParamSpec("P")
R = TypeVar("R")


def exporting() -> bool:
    """Whether `torch.export` (or the ONNX exporter, which uses it) is recording."""
    known = getattr(torch.compiler, "is_exporting", None)  # from PyTorch 2.7 on
    return bool(known()) if known is not None else False


def scalar_outputs_allowed() -> bool:
    """Whether the graph that is recorded may hold numbers that are read off tensors.

    The backward pass of PyTorch's loop operator reads the number of its turns. Without fullgraph=True the compiler
    refuses that, after the forward pass has been recorded, and then records the library's own functions one by one.
    """
    dynamo = sys.modules.get("torch._dynamo.symbolic_convert")
    if dynamo is None or exporting():
        return True
    translator = dynamo.InstructionTranslator.current_tx()
    return bool(translator.one_graph or sys.modules["torch._dynamo"].config.capture_scalar_outputs)


# as torch.compiler.assume_constant_result has it, which would load the compiler: run while it records, not recorded
cast(Any, scalar_outputs_allowed)._dynamo_marked_constant = True


def with_traced_version(traced: Callable[..., R | None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function that `torch.compile` and `torch.export` of the caller's model meet.

    There `inside` is called in its place and traced, a part of the caller's graph. Where that gives None the function
    runs eagerly, and the graph breaks there and goes on after it.

    An f that is itself compiled stays so. `torch.compiler.disable` would load the compiler, which takes longer than the
    rest of the library together, so it waits until somebody else has loaded it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        disabled: list[Callable[P, R]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            # the loop operator knows no transforms: a vmap that is compiled breaks the graph too
            if torch.compiler.is_compiling() and not inside_transform():
                found = traced(*args, **kwargs)
                if found is not None:
                    return found
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(cast(Any, torch.compiler.disable)(function))
            return disabled[0](*args, **kwargs)

        return call

    return decorate
