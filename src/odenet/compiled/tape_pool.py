"""Memory of tapes, reused: fresh memory from the system costs several times what writing it takes."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor


class RowSpec(NamedTuple):
    """Shape and dtype of a row of a tape, and the operation whose value it is."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    operation: str


MAX_IDLE = 2  # buffers that wait for the next solve

_idle: OrderedDict[tuple[int, tuple[RowSpec, ...], torch.device], list[Tensor]] = OrderedDict()


class TapeBuffer:
    """Tensors (rows, *shape), one for each spec. They return to the pool with this object: hold no others."""

    def __init__(self, rows: int, specs: tuple[RowSpec, ...], device: torch.device) -> None:
        self._kind = (rows, specs, device)
        idle = _idle.pop(self._kind, None)
        self.tensors = idle or [torch.empty((rows, *x.shape), dtype=x.dtype, device=device) for x in specs]

    def __del__(self) -> None:
        if self.tensors and _idle is not None:  # pyright: ignore[reportUnnecessaryComparison]  # at exit it may be gone
            _idle[self._kind] = self.tensors
            while len(_idle) > MAX_IDLE:
                _idle.popitem(last=False)
