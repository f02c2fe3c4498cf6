"""PyTorch's thread-local state, restored where a recording fails in the middle."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from .torch_private import InterpreterState


@contextmanager
def restore_on_error() -> Generator[None]:
    """Restore transforms, modes and flags if the block raises.

    TorchDynamo enters the `torch.func` transforms that f uses while it records f. An error leaves them on their stack,
    and every later operation of the thread would run inside them.
    """
    stacks = InterpreterState()
    grad, multithreading = torch.is_grad_enabled(), torch.autograd.is_multithreading_enabled()
    autocast = [(device, torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")]
    cached, dtype = torch.is_autocast_cache_enabled(), torch.get_default_dtype()
    try:
        yield
    except BaseException:
        stacks.restore()
        torch.set_grad_enabled(grad)
        torch.autograd.set_multithreading_enabled(multithreading)
        for device, enabled in autocast:
            torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_cache_enabled(cached)
        torch.set_default_dtype(dtype)
        raise
