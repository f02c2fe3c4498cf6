"""Refuses an f that talks to other processes whenever it is called.

A module wrapped by DistributedDataParallel or FSDP gathers weights or sends buffers in its forward, and another batch
norm its statistics. Processes call f different numbers of times, so they would wait for each other for ever; and what a
unit of FSDP does with its weights around a forward is not what a backward pass that calls f again needs: gradients
would be wrong in silence.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import WrappedFieldError

_AVAILABLE = dist.is_available()


def refuse_wrapped(f: Any) -> None:
    """Raise where f is a module that is, or has in it, one that talks to other processes."""
    if not is_distributed():
        return
    if isinstance(f, nn.Module):
        for name, module in f.named_modules():
            _refuse(module, name)
    # the forward of a wrapper, called as it is; that of a module under fully_shard has nothing done to it
    elif inspect.ismethod(f) and isinstance(f.__self__, nn.Module) and _kind(f.__self__) not in (None, "fully_shard"):
        _refuse(f.__self__, "")


def refusing_wrapped_modules() -> AbstractContextManager[None]:
    """Raise where a module called in this context, in this thread, talks to other processes."""
    return _no_wrapped() if is_distributed() else nullcontext()


@contextmanager
def _no_wrapped() -> Iterator[None]:
    thread = threading.get_ident()

    def look(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            _refuse(module, "")

    handle = register_module_forward_pre_hook(look)
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
        "and leave f and what is in it as it is."
    )


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(module, nn.SyncBatchNorm):
        return "SyncBatchNorm" if module.training and dist.get_world_size() > 1 else None
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has wrapped a module has loaded it
    if fsdp is None:
        return None
    if isinstance(module, fsdp.FullyShardedDataParallel):
        return "FullyShardedDataParallel"
    return "fully_shard" if isinstance(module, fsdp.FSDPModule) else None
