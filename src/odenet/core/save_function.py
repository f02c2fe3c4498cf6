"""The caller's `save` function: `sol.ys` holds its results in place of the states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from .leaves import Leaves
from .pytrees import Spec, flatten, outline, unflatten


@final
class SaveFunction:
    """fn(t, y, *args) -> pytree of floating-point tensors; every result has the structure of the first.

    per_sample: t is (B,), y (B, ...), and the leading axis of the result is the batch.
    """

    def __init__(self, fn: Callable[..., Any], per_sample: bool) -> None:
        self.fn, self.per_sample = fn, per_sample
        self._spec: Spec | None = None

    def __call__(self, t: Tensor, y: Any, args: tuple[Any, ...]) -> Leaves:
        leaves, spec = flatten(self.fn(t, y, *args))
        if self._spec is None:
            self._spec = spec
        if spec != self._spec or not leaves:
            raise TypeError(
                f"save returned the structure {outline(spec)}, and {outline(self._spec)} before: return the same "
                "pytree of tensors at every time"
            )
        for x in leaves:
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                got = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(
                    f"save must return floating-point tensors, as the values at times not reached are NaN; got {got}"
                )
            if self.per_sample and (x.ndim == 0 or len(x) != len(t)):
                raise ValueError(
                    f"save returned the shape {tuple(x.shape)}, but per_sample=True gives it {len(t)} samples: its "
                    "leading axis must be the batch"
                )
        return tuple(leaves)

    def pack(self, leaves: Leaves) -> Any:
        assert self._spec is not None  # set by the output at ts[0]
        return unflatten(list(leaves), self._spec)

    def over_times(self, ts: Tensor, ys: Leaves, pack: Callable[[Leaves], Any], args: tuple[Any, ...]) -> Leaves:
        """fn at each time of ts: ts (T,) and ys (T, ...), or (B, T) and (B, T, ...); the results stacked likewise."""
        axis = int(self.per_sample)
        columns = zip(ts.unbind(-1), *(y.unbind(axis) for y in ys), strict=True)
        results = [self(t, pack(tuple(y)), args) for t, *y in columns]
        return tuple(torch.stack(list(x), axis) for x in zip(*results, strict=True))
