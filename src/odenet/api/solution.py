"""Solution: what a solve returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.serialization import detach_tree
from ..core.status import Status
from ..core.torch_func import any_true
from ..core.validate import times
from ..engine.dense_solution import Interpolation, JoinedInterpolation
from ..engine.step_recorder import Steps
from ..gradients.gradient import Stats
from .solution_summary import one_line, several_lines


@dataclass(frozen=True, repr=False)
class Solution:
    """A solution of an ODE.

    ts: the output times, (T,), or (B, T) with per_sample. ys: the state at ts, in y0's structure and dtype, with the
    leading axis T, or (B, T, ...) with per_sample; NaN at times that a failed solve did not reach. y1: the last state
    reached. t1: the time of y1, 0-d or (B,), in the dtype of ts; solve(f, sol.y1, [sol.t1, ...]) goes on from there. It
    moves as y1 does: with ts[-1] where the solve came there, with the event that ended it, and where it broke off with
    the last of ts that it passed (with a continuous adjoint, and of a sample that failed, it is a constant then).
    stats: nfe, accepted, rejected, backward_nfe, by key or as attributes; ints, or (B,) with per_sample.
    status: a `Status`, or its codes as a (B,) tensor. event: the last event that happened (the one that ended the
    solve, where the status says so): which, t and y; per sample (B,), with -1 and NaN where none did; else None where
    none did. hits: all events in their order, with an axis for them; see `Hit`; None without events.
    steps: with save_steps the accepted steps, see `Steps`; else None.

    With `save`, ys has what that makes of the states.

    A pickle or a deep copy has the values, without a graph, and sol(t) where that was there.
    """

    ts: Tensor
    ys: Any
    y1: Any
    t1: Tensor
    stats: Stats
    status: Status | Tensor
    event: Any = None
    hits: Any = None
    _dense: Callable[[Tensor], Leaves] | None = None
    _pack: Callable[[Leaves], Any] | None = None
    _limits: tuple[Tensor, Tensor] | None = None
    _pieces: Interpolation | JoinedInterpolation | None = None
    _about: str = ""
    steps: Steps | None = None

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """The solution at any t between ts[0] and the time reached (needs dense=True); differentiable.

        t: a number gives y's shape; shape (m,) gives (m, ...). With per_sample a number gives (B, ...), (m,) the same
        times for every sample and (B, m) own times: (B, m, ...).
        """
        if self._dense is None or self._limits is None or self._pack is None:
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
        if any_true(outside):
            whose = ""
            if batched:
                sample = int(outside.any(1).to(torch.uint8).argmax())
                start, end, whose = start[sample, 0], end[sample, 0], f" of sample {sample}"
            raise ValueError(f"t must lie between ts[0]={start.tolist()} and the time reached, {end.tolist()}{whose}")
        # a time that rounding has put past an end is that end, and moves the solution as one inside does
        at = torch.where(asked < low, low, torch.where(asked > high, high, asked)).detach()
        leaves = self._dense(at + (asked - asked.detach()))
        if t.ndim == 0:
            leaves = tuple(x[:, 0] if batched else x[0] for x in leaves)
        return self._pack(leaves)

    def __repr__(self) -> str:
        return one_line(self)

    def __str__(self) -> str:
        """What was solved, to which time, in how many steps, and how it ended."""
        return several_lines(self, self._about)

    def __getstate__(self) -> dict[str, Any]:
        own = dict(vars(self))
        for name in ("ts", "ys", "y1", "t1", "status", "_limits", "steps"):
            own[name] = detach_tree(own[name])
        pieces = None if self._pieces is None else self._pieces.detached()
        return own | {"_dense": pieces, "_pieces": pieces}

    def __copy__(self) -> Solution:
        return replace(self)
