"""Mixed precision by `torch.autocast`: a backward pass evaluates f in the precision of the forward pass.

Autocast's state belongs to a thread and a block of code, and a backward pass is usually run outside that block; on a
GPU in another thread. Casts of weights are not kept: a kept one belongs to the graph of whoever asked for it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def without_autocast_cache(device: str) -> AbstractContextManager[None]:
    """Weights are cast anew at each use."""
    return _uncached() if torch.is_autocast_enabled(device) else nullcontext()


@contextmanager
def _uncached() -> Iterator[None]:
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def current_autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Enters autocast's present state again, whatever it is then."""
    if not torch.is_autocast_enabled(device):
        return lambda: torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, cache_enabled=False)
