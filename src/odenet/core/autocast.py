"""Mixed precision by `torch.autocast`: a backward pass evaluates f in the precision of the forward pass.

Autocast's state belongs to a thread and a `with` block. A backward pass usually runs outside that block, and on a GPU
in another thread. The cache of casted weights is off in a solve: a cached cast belongs to the graph of the evaluation
that made it, and other evaluations would differentiate through that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def without_autocast_cache(device: str) -> AbstractContextManager[None]:
    """A context in which autocast casts weights anew at each use."""
    return _cache_disabled() if torch.is_autocast_enabled(device) else nullcontext()


@contextmanager
def _cache_disabled() -> Generator[None]:
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def current_autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """A function whose context restores autocast's present state, whatever the state is when it is entered."""
    if not torch.is_autocast_enabled(device):
        return lambda: torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, cache_enabled=False)
