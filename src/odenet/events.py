"""Events: conditions that end a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core.leaves import Leaves, cast
from .engine.events import Events
from .engine.problem import Problem
from .gradients.event_time import with_event_time


@dataclass(frozen=True)
class Event:
    """Ends a solve where fn(t, y, *args) crosses zero.

    fn: returns a tensor of one number, or of several, the first of which to cross counts. A zero at ts[0] is no event;
        a touch without a change of sign is none either. Every crossing within a step is looked for, also two of them.
    direction: +1: only from negative to positive, -1: only from positive to negative, 0: both.
    constant_time: the time of the event is a constant of the differentiation. By default it moves with y0, ts[0], args
        and the parameters of f and fn, and the state there moves along; first derivatives only.
    """

    fn: Callable[..., Tensor]
    direction: int = 0
    constant_time: bool = False

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"fn of an Event must be callable as fn(t, y, *args); got {type(self.fn).__name__}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1; got {self.direction!r}")


class Hit(NamedTuple):
    """What ended a solve. which: the number of the event. t: its time, 0-d. y: the state there. All differentiable."""

    which: int
    t: Tensor
    y: Any


class Ending:
    """Several events, the first of which ends a solve."""

    def __init__(self, events: Sequence[Event], p: Problem, args: tuple[Any, ...]) -> None:
        self.events, self.p, self.args = events, p, args
        with torch.no_grad():
            counts = [len(self._of(e, p.ts[0], p.y0)) for e in events]
        self.owner = [i for i, count in enumerate(counts) for _ in range(count)]

    @property
    def sought(self) -> Events:
        return Events(self.values, [self.events[i].direction for i in self.owner])

    def values(self, t: Tensor, y: Leaves) -> Tensor:
        """Of all event functions, one vector."""
        return torch.cat([self._of(e, t, y) for e in self.events])

    def _of(self, e: Event, t: Tensor, y: Leaves) -> Tensor:
        out = e.fn(cast(t, self.p.f.time_dtype), self.p.f.pack(y), *self.args)
        if not isinstance(out, Tensor) or out.is_complex():
            what = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"an event function must return a tensor of real numbers; got {what}")
        return out.reshape(-1)

    def at_event(self, event: tuple[float, int], y: Leaves) -> tuple[int, Tensor, Leaves]:
        """The number of the event, its time, and the state there. y: the state at that time, taken as fixed."""
        t, value = event
        p, which, time = self.p, self.owner[value], self.p.ts.new_tensor(t)
        if not self.events[which].constant_time and torch.is_grad_enabled():
            with torch.no_grad():
                slope = p.f(time, tuple(x.detach() for x in y))
            time, y = with_event_time(lambda s, x: self.values(s, x)[value], time, y, slope)
        return which, time, y
