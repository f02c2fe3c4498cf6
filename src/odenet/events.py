"""Events: conditions that end a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core.leaves import Leaves, cast
from .engine.drive import Driver
from .engine.events import search
from .engine.integrate import Request
from .engine.problem import Problem
from .gradients.base import Gradient, Trajectory
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
    """A solve that ends with the first of several events: found by a search, then solved up to there."""

    def __init__(self, events: Sequence[Event], p: Problem, args: tuple[Any, ...]) -> None:
        self.events, self.p, self.args = events, p, args
        with torch.no_grad():
            counts = [len(self._of(e, p.ts[0], p.y0)) for e in events]
        self.owner = [i for i, count in enumerate(counts) for _ in range(count)]
        self.shortened = p

    @property
    def happened(self) -> bool:
        return self.found.t is not None

    def values(self, t: Tensor, y: Leaves) -> Tensor:
        """Of all event functions, one vector."""
        return torch.cat([self._of(e, t, y) for e in self.events])

    def _of(self, e: Event, t: Tensor, y: Leaves) -> Tensor:
        out = e.fn(cast(t, self.p.f.time_dtype), self.p.f.pack(y), *self.args)
        if not isinstance(out, Tensor) or out.is_complex():
            what = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"an event function must return a tensor of real numbers; got {what}")
        return out.reshape(-1)

    def run(self, how: Gradient, driver: Driver, request: Request) -> Trajectory:
        """The solve up to the event, where there is one, with the outputs before it and one at it.

        The steps of the search are taken again, so that any gradient can be had of them; callbacks see the search.
        """
        directions = [self.events[i].direction for i in self.owner]
        self.found = search(self.p, driver, self.values, directions, request.callbacks)
        if self.found.t is not None:
            p = self.p
            before = (p.ts.detach() - self.found.t) * p.direction < 0
            ts = torch.cat([p.ts[before], p.ts.new_tensor([self.found.t])])
            rest = {"method": p.method, "rtol": p.rtol, "atol": p.atol, "max_steps": p.max_steps}
            self.shortened = Problem.build(p.f, p.y0, ts, p.controller, **rest)
        trajectory = how.run(self.shortened, driver, replace(request, callbacks=None))
        trajectory.stats["nfe"] += self.found.outcome.nfe
        return trajectory

    def at_event(self, ys: Leaves, y: Leaves) -> tuple[Leaves, Leaves, int, Tensor]:
        """The outputs, NaN after the event; the state at the event, its number, and its time.

        y: the state at the event, taken as fixed in time.
        """
        assert self.found.t is not None
        p, which, time = self.p, self.owner[self.found.which], self.p.ts.new_tensor(self.found.t)
        after = len(p.ts) - len(self.shortened.ts) + 1
        gap = [torch.full_like(x[:1], torch.nan).detach().expand(after, *x.shape[1:]) for x in ys]
        ys = tuple(torch.cat([x[:-1], nans]) for x, nans in zip(ys, gap, strict=True))
        if not self.events[which].constant_time and torch.is_grad_enabled():
            with torch.no_grad():
                slope = p.f(time, tuple(x.detach() for x in y))
            time, y = with_event_time(lambda t, x: self.values(t, x)[self.found.which], time, y, slope)
        return ys, y, which, time
