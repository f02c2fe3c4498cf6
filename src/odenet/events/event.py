"""Events: conditions along a solution that end it, or change its state and let it continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.pytrees import tree_map
from ..core.serialization import detach_tree, settings_repr
from ..core.validate import boolean, describe, is_real


@dataclass(frozen=True)
class Event:
    """Happens where fn(t, y, *args) crosses or becomes zero; ends the solve, or resets the state and lets it continue.

    fn: returns a tensor of one number, or of several, each of which counts; with per_sample (B,) or (B, k), where row i
        depends on sample i alone. A value that becomes exactly zero counts once, as one that changes its sign does. A
        zero at ts[0] is no event, and neither is a touch of zero with the same sign before and after it. Every crossing
        within a step is looked for, also where there are two of them.
    terminal: True: the event ends the solve (of the sample), at its first hit or at hit number max_hits; with a `reset`
        at hit number max_hits only. False: hits are recorded, and the solve continues.
    direction: +1: only from negative values, -1: only from positive ones, to zero or past it; 0: both.
    reset: a function (t, y, *args) -> y, with y's structure, shapes and dtypes: the state after the event. The solve
        continues from it as a new solve does. With per_sample it gets all samples, and only the rows of samples that
        have the event are used. The hit that ends a solve resets nothing.
    max_hits: for a terminal event the number of the hit that ends the solve; for others the number of hits after which
        the event is no longer looked for.
    constant_time: the time of the event is a constant of the differentiation. By default it depends on y0, ts[0], args
        and the parameters of f and fn, and the state at the event depends on it; first derivatives only.
    """

    fn: Callable[..., Tensor]
    terminal: bool = True
    direction: int = 0
    reset: Callable[..., Any] | None = None
    max_hits: int | None = None
    constant_time: bool = False

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"fn of an Event must be callable as fn(t, y, *args); got {type(self.fn).__name__}")
        for name in ("terminal", "constant_time"):
            boolean(f"{name} of an Event", getattr(self, name))
        if isinstance(self.direction, bool) or not is_real(self.direction) or self.direction not in (-1, 0, 1):
            raise ValueError(f"direction of an Event must be -1, 0 or 1; got {describe(self.direction)}")
        if self.reset is not None and not callable(self.reset):
            raise TypeError(
                f"reset of an Event must be callable as reset(t, y, *args) and give y; got {type(self.reset).__name__}"
            )
        max_hits: Any = self.max_hits
        if max_hits is not None and (isinstance(max_hits, bool) or not isinstance(max_hits, int)):
            raise TypeError(f"max_hits of an Event must be an int; got {describe(max_hits)}")
        if max_hits is not None and not 1 <= max_hits < 2**63:
            raise ValueError(f"max_hits of an Event must lie between 1 and 2**63 - 1; got {describe(max_hits)}")

    def __repr__(self) -> str:
        return settings_repr(self)

    @property
    def last_hit(self) -> float:
        """The number of the hit that ends the solve; infinite where none does."""
        if not self.terminal:
            return float("inf")
        if self.max_hits is None:
            return 1 if self.reset is None else float("inf")
        return self.max_hits


class Hit(NamedTuple):
    """Events that happened. which: number of the event. t: its time. y: the state there, before a reset.

    `sol.event`, the last hit: an int, 0-d and y's structure; per sample (B,), (B,) and (B, ...), with -1 and NaN where
    none happened. `sol.hits`, all hits: with one more axis, (H,) or (B, H); the hits of a sample come first, then -1
    and NaN. t and y are differentiable.
    """

    which: Any
    t: Tensor
    y: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy: as constants."""
        return Hit, tuple(detach_tree(tuple(self)))

    def __copy__(self) -> Hit:
        return Hit(*self)


def stacked_hits(hits: Sequence[Hit], like: Any, batched: bool, time: Tensor) -> Hit:
    """The hits with a new axis, the first or the second of a batch.

    like, time: a state and a time, for structure and dtypes where there are no hits.
    """
    axis, none = int(batched), Hit(torch.zeros_like(time, dtype=torch.int64), time, like)

    def stack(*xs: Any) -> Tensor:
        return torch.stack([torch.as_tensor(x) for x in xs], axis)

    return tree_map(stack, *hits) if hits else tree_map(lambda x: stack(x.detach()).narrow(axis, 0, 0), none)
