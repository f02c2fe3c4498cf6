"""The memory that the autograd graph of a step holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks

from ..core.leaves import Leaves
from ..core.torch_func import functorch, unwrapped


@final
class GraphSize(saved_tensors_hooks):
    """Measures the bytes that autograd saves inside this context."""

    def __init__(self) -> None:
        # stores sizes only: saved tensors hold this object through its hook, so a tensor stored here would never be
        # freed
        self._sizes: dict[int, int] = {}
        super().__init__(self._pack, lambda x: x)

    def bytes_without(self, excluded: Iterable[Tensor]) -> int:
        """Bytes of all saved tensors except those that share memory with `excluded`."""
        for x in excluded:
            if (storage := _storage(x)) is not None:
                self._sizes.pop(storage.data_ptr(), None)
        return sum(self._sizes.values())

    def _pack(self, x: Tensor) -> Tensor:
        if (storage := _storage(x)) is not None:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        # an output that its own node saves through a hook would keep the node alive for ever, unless it is detached
        return x.detach()

    def add(self, leaves: Iterable[Tensor]) -> None:
        """Count these tensors as well."""
        for x in leaves:
            self._pack(x)


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor, also of one that f kept from inside a transform of `torch.func`."""
    inner = unwrapped(x) if functorch.is_functorch_wrapped_tensor(x) else x
    # a zero tensor of forward mode has no storage, and a sparse tensor does not expose one
    return None if inner._is_zerotensor() or inner.layout is not torch.strided else inner.untyped_storage()


def saved_tensors(outputs: Leaves, marker: int) -> Iterator[Tensor]:
    """The tensors saved by the graph of `outputs`, in nodes later than `marker`.

    For an f that uses `torch.func`, whose transforms refuse to run inside saved-tensor hooks.
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
            values: list[Any] = list(node.saved_tensors)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for x in values:
            yield from (y for y in (x if isinstance(x, (list, tuple)) else (x,)) if isinstance(y, Tensor))
