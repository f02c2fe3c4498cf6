"""Refuses an f that communicates with other processes in each evaluation.

A module wrapped by DistributedDataParallel or FSDP gathers weights or sends buffers in its forward, and a synchronised
batch norm its statistics. Processes evaluate f different numbers of times, so they would wait for each other for ever.
What FSDP does with a module's weights around its forward also breaks a backward pass that evaluates f again: gradients
would be wrong without an error.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import WrappedFieldError

_AVAILABLE = dist.is_available()


def refuse_wrapped(f: Any) -> None:
    """Raise WrappedFieldError if f is, or contains, a module that communicates with other processes."""
    if not is_distributed():
        return
    if isinstance(f, nn.Module):
        for name, module in f.named_modules():
            _refuse(module, name)
    # a bound forward of a wrapper communicates; that of a module under fully_shard does not, as no hooks are called
    elif inspect.ismethod(f) and isinstance(f.__self__, nn.Module) and _kind(f.__self__) not in (None, "fully_shard"):
        _refuse(f.__self__, "")


def refusing_wrapped_modules() -> AbstractContextManager[None]:
    """A context that raises WrappedFieldError if this thread calls a module that communicates with other processes."""
    return _refusing_wrapped_modules() if is_distributed() else nullcontext()


@contextmanager
def _refusing_wrapped_modules() -> Generator[None]:
    thread = threading.get_ident()

    def check(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            _refuse(module, "")

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def is_distributed() -> bool:
    return _AVAILABLE and dist.is_initialized()


def _refuse(module: nn.Module, name: str) -> None:
    kind = _kind(module)
    if kind is None:
        return
    where = f"f.{name}" if name else f"f, or what it calls ({type(module).__name__}),"
    if kind == "SyncBatchNorm":
        raise WrappedFieldError(
            f"{where} is a SyncBatchNorm in training mode: it would wait for all processes at every evaluation of f, "
            "and they evaluate f different numbers of times. Use a norm over each sample, such as GroupNorm, or eval()."
        )
    raise WrappedFieldError(
        f"{where} is wrapped by {kind}: it would wait for the other processes at every evaluation of f, and they "
        "evaluate f different numbers of times. Wrap the module around the solve (the NeuralODE, or the whole model) "
        "and leave f and its modules unwrapped."
    )


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(module, nn.SyncBatchNorm):
        return "SyncBatchNorm" if module.training and dist.get_world_size() > 1 else None
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a wrapped module has loaded it
    if fsdp is None:
        return None
    if isinstance(module, fsdp.FullyShardedDataParallel):
        return "FullyShardedDataParallel"
    return "fully_shard" if isinstance(module, fsdp.FSDPModule) else None
