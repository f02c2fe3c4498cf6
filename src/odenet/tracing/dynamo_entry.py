"""How `torch.compile` and `torch.export` of the caller's own model enter the library."""

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
    """True while `torch.export`, or the ONNX exporter on top of it, records."""
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.7 and later
    return bool(is_exporting()) if is_exporting is not None else False


def scalar_outputs_allowed() -> bool:
    """True if the recorded graph may hold numbers read off tensors.

    The backward pass of PyTorch's loop operator reads its iteration count. Without fullgraph=True the compiler refuses
    that, after it has recorded the forward pass, and then records the library's functions one by one.
    """
    dynamo = sys.modules.get("torch._dynamo.symbolic_convert")
    if dynamo is None or exporting():
        return True
    translator = dynamo.InstructionTranslator.current_tx()
    return bool(translator.one_graph or sys.modules["torch._dynamo"].config.capture_scalar_outputs)


# what torch.compiler.assume_constant_result does, without loading the compiler: run while recording, not recorded
cast(Any, scalar_outputs_allowed)._dynamo_marked_constant = True


def with_traced_version(traced: Callable[..., R | None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function that `torch.compile` and `torch.export` of the caller's model call.

    Inside them `traced` is called instead and becomes a part of the caller's graph. If it returns None the function
    runs eagerly, with a graph break.

    A compiled f stays compiled. `torch.compiler.disable` would load the compiler, which takes longer than the rest of
    the library together, so it is called only after another module has loaded the compiler.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        disabled: list[Callable[P, R]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            # the loop operator supports no transforms: a compiled vmap breaks the graph too
            if torch.compiler.is_compiling() and not inside_transform():
                result = traced(*args, **kwargs)
                if result is not None:
                    return result
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(cast(Any, torch.compiler.disable)(function))
            return disabled[0](*args, **kwargs)

        return call

    return decorate
