"""Measures the peak memory of tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.pytrees import flatten


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all living tensor storages that were made in its context, and their maximum, `peak`.

    Exact on any device, and independent of the allocator's caches, so that small differences are visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0  # bytes
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in flatten(out)[0]:
            if isinstance(x, Tensor):
                self._track(x.untyped_storage())
        return out

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these tensors, made outside: a view made in the context has their storage."""
        for x in tensors:
            storage = x.untyped_storage()
            self._live[_address(storage)] = weakref.ref(storage)

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = _address(storage)
        if key in self._live:
            return
        size = storage.nbytes()

        def on_free(_: Any) -> None:
            self.current -= size
            self._live.pop(key, None)

        self._live[key] = weakref.ref(storage, on_free)
        self.current += size
        self.peak = max(self.peak, self.current)


def _address(storage: Any) -> int:
    return storage._cdata
