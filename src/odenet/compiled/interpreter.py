"""PyTorch's own state of a thread: left as it was where a recording fails in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad


@contextmanager
def as_before() -> Iterator[None]:
    """Where an error leaves this block, transforms, modes and flags that it left behind are taken back.

    TorchDynamo enters the transforms of `torch.func` that f uses while it records them. An error inside left them on
    their stack: from then on every plain operation of the thread ran inside them.
    """
    depth, level = _functorch.get_dynamic_layer_stack_depth(), forward_ad._current_level
    functions, dispatches = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    grad, multithreading = torch.is_grad_enabled(), torch.autograd.is_multithreading_enabled()
    autocast = [(device, torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")]
    cached, dtype = torch.is_autocast_cache_enabled(), torch.get_default_dtype()
    try:
        yield
    except BaseException:
        if _functorch.get_dynamic_layer_stack_depth() > depth:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        while forward_ad._current_level > level:
            forward_ad.exit_dual_level()
        while torch._C._len_torch_function_stack() > functions:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > dispatches:
            torch._C._pop_torch_dispatch_stack()
        torch.set_grad_enabled(grad)
        torch.autograd.set_multithreading_enabled(multithreading)
        for device, enabled in autocast:
            torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_cache_enabled(cached)
        torch.set_default_dtype(dtype)
        raise
