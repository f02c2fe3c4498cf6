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
from ..events.event import Hit
from ..gradients.gradient import Stats
from .solution_summary import one_line, several_lines


@dataclass(frozen=True, repr=False)
class Solution:
    """The solution of an ODE.

    ts: output times, (T,), or (B, T) with per_sample.
    ys: states at ts, in y0's structure and dtype: (T, ...), or (B, T, ...) with per_sample; NaN at times that a failed
        solve did not reach. With `save`, its results in place of the states.
    y1: the last state reached.
    t1: the time of y1, 0-d or (B,), in the dtype of ts; solve(f, sol.y1, [sol.t1, ...]) continues from there. Its
        derivative is that of ts[-1] if the solve reached it, of the time of the event that ended the solve, or of the
        last time of ts that an unfinished solve passed. It is a constant for a failed sample, and for an unfinished
        solve with a continuous adjoint.
    stats: nfe, accepted, rejected, backward_nfe, by key or as attributes; ints, or (B,) with per_sample.
    status: a `Status`, or its codes as a (B,) tensor.
    event: the last event that happened, and the one that ended the solve if the status is EVENT: a `Hit` with which, t
        and y. None if none happened; with per_sample (B,), with -1 and NaN for samples without one.
    hits: all events in order, a `Hit` with an axis for them; None without events.
    steps: the accepted steps, `Steps`, with save_steps; else None.

    A pickle or a deep copy has the values without a graph, and sol(t) if the solution is dense.
    """

    ts: Tensor
    ys: Any
    y1: Any
    t1: Tensor
    stats: Stats
    status: Status | Tensor
    event: Hit | None = None
    hits: Hit | None = None
    _dense: Callable[[Tensor], Leaves] | None = None
    _pack: Callable[[Leaves], Any] | None = None
    _limits: tuple[Tensor, Tensor] | None = None
    _pieces: Interpolation | JoinedInterpolation | None = None
    _problem: str = ""  # equation and method as text
    steps: Steps | None = None

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """The solution at any t between ts[0] and the time reached (needs dense=True); differentiable.

        t: a number gives y's shape, shape (m,) gives (m, ...). With per_sample a number gives (B, ...); (m,), the same
        times for every sample, and (B, m) give (B, m, ...). Raises ValueError for a t outside.
        """
        if self._dense is None or self._limits is None or self._pack is None:
            raise ValueError("sol(t) needs the dense solution: call solve(..., dense=True)")
        start, end = self._limits
        t = times("t", t).to(start)
        batched = start.ndim == 1
        if t.ndim > (2 if batched else 1):
            raise ValueError(f"t must have at most {2 if batched else 1} axes; got shape {tuple(t.shape)}")
        query = t.reshape(-1) if t.ndim < 2 else t
        if batched:
            query = query.expand(len(start), -1) if query.ndim == 1 else query
            if len(query) != len(start):
                raise ValueError(f"t must have one row a sample, shape ({len(start)}, m); got {tuple(t.shape)}")
            start, end = start[:, None], end[:, None]
        low, high = torch.minimum(start, end), torch.maximum(start, end)
        slack = 1e-6 * (high - low)  # times in float32 may round past the ends
        outside = ~((query >= low - slack) & (query <= high + slack))  # true for NaN, too
        if any_true(outside):
            of_sample = ""
            if batched:
                sample = int(outside.any(1).to(torch.uint8).argmax())
                start, end, of_sample = start[sample, 0], end[sample, 0], f" of sample {sample}"
            raise ValueError(
                f"t must lie between ts[0]={start.tolist()} and the time reached, {end.tolist()}{of_sample}"
            )
        # clamps times that rounding put past an end, but keeps their derivative, which torch.clamp would drop
        clamped = torch.where(query < low, low, torch.where(query > high, high, query)).detach()
        leaves = self._dense(clamped + (query - query.detach()))
        if t.ndim == 0:
            leaves = tuple(x[:, 0] if batched else x[0] for x in leaves)
        return self._pack(leaves)

    def __repr__(self) -> str:
        return one_line(self)

    def __str__(self) -> str:
        """Equation, method, shapes, times, steps and status, in a few lines."""
        return several_lines(self, self._problem)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for name in ("ts", "ys", "y1", "t1", "status", "_limits", "steps"):
            state[name] = detach_tree(state[name])
        pieces = None if self._pieces is None else self._pieces.detached()
        return state | {"_dense": pieces, "_pieces": pieces}

    def __copy__(self) -> Solution:
        return replace(self)
