"""Memory of tapes, used again: memory fresh from the system costs several times what it takes to write it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

Looks = tuple[tuple[tuple[int, ...], torch.dtype], ...]

MOST = 2  # shelves that wait for the next solve; of their memory, what was written once stays taken

_waiting: OrderedDict[tuple[int, Looks, torch.device], list[Tensor]] = OrderedDict()


class Shelf:
    """Rows of tensors for one tape; they wait for the next one when this is gone. Nobody else may hold them."""

    def __init__(self, rows: int, looks: Looks, device: torch.device) -> None:
        self.kind = (rows, looks, device)
        waiting = _waiting.pop(self.kind, None)
        self.tensors = waiting or [torch.empty((rows, *shape), dtype=dtype, device=device) for shape, dtype in looks]

    def __del__(self) -> None:
        if self.tensors and _waiting is not None:  # at the end of the process it may be gone already
            _waiting[self.kind] = self.tensors
            while len(_waiting) > MOST:
                _waiting.popitem(last=False)
