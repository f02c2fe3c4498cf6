"""How many bytes the graph of a step holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks

from ..core.leaves import Leaves
from ..core.transforms import unwrapped


@final
class Weighed(saved_tensors_hooks):
    """Notes how many bytes autograd saves inside."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        super().__init__(self._pack, lambda x: x)

    def bytes_beside(self, known: Iterable[Tensor]) -> int:
        """Those of all but the tensors that are there anyway."""
        there = {x.untyped_storage().data_ptr() for x in known if x.layout is torch.strided}
        return sum(size for place, size in self._sizes.items() if place not in there)

    def _pack(self, x: Tensor) -> Tensor:
        self.add((x,))
        return x

    def add(self, leaves: Iterable[Tensor]) -> None:
        for x in leaves:
            x = unwrapped(x)
            # a zero tensor of forward mode has no memory, and of a sparse one none can be asked for
            if x._is_zerotensor() or x.layout is not torch.strided:
                continue
            storage = x.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()


def saved(outputs: Leaves, marker: int) -> Iterator[Tensor]:
    """What the graph behind `outputs` has saved, as far as operations later than `marker`.

    For an f that uses `torch.func`, whose transforms refuse to work inside hooks for saved tensors.
    """
    stack: list[Any] = [x.grad_fn for x in outputs]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or node._sequence_nr() <= marker:
            continue
        seen.add(node)
        stack += (edge[0] for edge in node.next_functions)
        if isinstance(node, BackwardCFunction):
            kept: list[Any] = list(node.saved_tensors)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for x in kept:
            yield from (y for y in (x if isinstance(x, (list, tuple)) else (x,)) if isinstance(y, Tensor))
