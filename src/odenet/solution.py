"""Solution: what a solve returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .core.given import times
from .core.leaves import Leaves
from .core.status import Status
from .core.transforms import some
from .gradients.base import Stats


@dataclass(frozen=True)
class Solution:
    """A solution of an ODE.

    ts: the output times, (T,), or (B, T) with per_sample. ys: the state at ts, in y0's structure and dtype, with the
    leading axis T, or (B, T, ...) with per_sample; NaN at times that a failed solve did not reach. y1: the last state
    reached. stats: nfe, accepted, rejected, backward_nfe, by key or as attributes; ints, or (B,) with per_sample.
    status: a `Status`, or its codes as a (B,) tensor. event: the last event that happened (the one that ended the
    solve, where the status says so): which, t and y; per sample (B,), with -1 and NaN where none did; else None where
    none did. hits: all events in their order, with an axis for them; see `odenet.events.Hit`. None without events.
    """

    ts: Tensor
    ys: Any
    y1: Any
    stats: Stats
    status: Status | Tensor
    event: Any = None
    hits: Any = None
    _dense: Callable[[Tensor], Leaves] | None = field(default=None, repr=False)
    _pack: Callable[[Leaves], Any] = field(default=lambda leaves: leaves, repr=False)
    _limits: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """The solution at any t between ts[0] and the time reached (needs dense=True); differentiable.

        t: a number gives y's shape; shape (m,) gives (m, ...). With per_sample a number gives (B, ...), (m,) the same
        times for every sample and (B, m) own times: (B, m, ...).
        """
        if self._dense is None or self._limits is None:
            raise ValueError("sol(t) needs the dense solution: call solve(..., dense=True)")
        start, end = self._limits
        t = times("t", t).to(start)
        batched = start.ndim == 1
        if t.ndim > (2 if batched else 1):
            raise ValueError(f"t must have at most {2 if batched else 1} axes; got shape {tuple(t.shape)}")
        asked = t.reshape(-1) if t.ndim < 2 else t
        if batched:
            asked = asked.expand(len(start), -1) if asked.ndim == 1 else asked
            if len(asked) != len(start):
                raise ValueError(f"t must have one row a sample, shape ({len(start)}, m); got {tuple(t.shape)}")
            start, end = start[:, None], end[:, None]
        low, high = torch.minimum(start, end), torch.maximum(start, end)
        slack = 1e-6 * (high - low)  # float32 asked round past the ends
        outside = ~((asked >= low - slack) & (asked <= high + slack))  # NaN too
        if some(outside):
            whose = ""
            if batched:
                sample = int(outside.any(1).to(torch.uint8).argmax())
                start, end, whose = start[sample, 0], end[sample, 0], f" of sample {sample}"
            raise ValueError(f"t must lie between ts[0]={start.tolist()} and the time reached, {end.tolist()}{whose}")
        # where, not clamp: a clamp halves the gradient of a time that is exactly at an end
        leaves = self._dense(torch.where(asked < low, low, torch.where(asked > high, high, asked)))
        if t.ndim == 0:
            leaves = tuple(x[:, 0] if batched else x[0] for x in leaves)
        return self._pack(leaves)
