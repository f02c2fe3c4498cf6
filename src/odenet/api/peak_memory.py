"""How many bytes of tensors are alive at most."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.pytrees import flatten


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensor storages made inside and still alive, and remembers the peak.

    Exact on any device and blind to the allocator's caches, which makes small differences visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in flatten(out)[0]:
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage())
        return out

    def exclude(self, known: Iterable[Tensor]) -> None:
        """Tensors from outside, which an alias made inside would bring in."""
        for x in known:
            self._live[x.untyped_storage()._cdata] = weakref.ref(x.untyped_storage())

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._live.pop(key, None)

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
