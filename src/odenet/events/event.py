"""Events: conditions along a solution that end it, or change its state and let it go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.batch_slicing import SlicedArgs, infer_sliced_args, take_rows
from ..core.leaves import Leaves, cast, select
from ..core.pytrees import flatten, flatten_like, tree_map, unflatten
from ..core.serialization import constants
from ..core.validate import boolean, describe
from ..core.vector_field import VectorField
from ..engine.batch_index import with_placeholder
from ..engine.problem import Problem
from .event_time import with_event_time
from .step_values import EventValues


@dataclass(frozen=True)
class Event:
    """Happens where fn(t, y, *args) crosses or becomes zero; ends the solve, or resets the state and lets it go on.

    fn: returns a tensor of one number, or of several, each of which counts; with per_sample (B,) or (B, k), and row i
        depends on sample i alone. A value that becomes exactly zero counts, once, as one that changes its sign does; a
        zero at ts[0] is no event, nor is a touch, with the same sign before and after one instant. Every crossing
        within a step is looked for, also two of them.
    terminal: True: the event ends the solve (of the sample): the first time, or at hit number max_hits, or, with a
        `reset`, at hit number max_hits only. False: it is noted down, and the solve goes on.
    direction: +1: only from negative values, -1: only from positive ones, to zero or past it; 0: both.
    reset: a function (t, y, *args) -> y, with y's structure, shapes and dtypes: the state after the event. The solve
        goes on from there as a new one does. With per_sample it gets all samples, of which only those that have the
        event count. The hit that ends a solve resets nothing.
    max_hits: of a terminal event: the hit that ends the solve; of another: after so many it is not looked for.
    constant_time: the time of the event is a constant of the differentiation. By default it moves with y0, ts[0], args
        and the parameters of f and fn, and the state there moves along; first derivatives only.
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
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1; got {self.direction!r}")
        if self.reset is not None and not callable(self.reset):
            raise TypeError(
                f"reset of an Event must be callable as reset(t, y, *args) and give y; got {type(self.reset).__name__}"
            )
        if self.max_hits is not None and (isinstance(self.max_hits, bool) or not isinstance(self.max_hits, int)):
            raise TypeError(f"max_hits of an Event must be an int; got {describe(self.max_hits)}")
        if self.max_hits is not None and self.max_hits < 1:
            raise ValueError(f"max_hits of an Event must be at least 1; got {self.max_hits}")

    @property
    def last_hit(self) -> float:
        """The number of the hit that ends the solve; infinite where none does."""
        if not self.terminal:
            return float("inf")
        if self.max_hits is None:
            return 1 if self.reset is None else float("inf")
        return self.max_hits


class Hit(NamedTuple):
    """Events that happened. which: the number of the event. t: its time. y: the state there, before a reset.

    `sol.event`, the last one: an int, 0-d and y's structure; per sample (B,), (B,) and (B, ...), with -1 and NaN where
    none happened. `sol.hits`, all of them: one more axis, (H,) or (B, H), those of a sample first and then -1 and NaN.
    t and y are differentiable.
    """

    which: Any
    t: Tensor
    y: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy: as constants."""
        return Hit, tuple(constants(tuple(self)))

    def __copy__(self) -> Hit:
        return Hit(*self)


class EventFunctions(EventValues):
    """The event functions and resets of a solve, on leaves.

    owner: for each of their m values the number of its event, (m,).
    """

    def __init__(self, events: Sequence[Event], p: Problem, args: tuple[Any, ...]) -> None:
        self.events, self.p, self.args = list(events), p, args
        self._args, self._spec = flatten(args)
        time, device = p.ts.detach()[..., 0], p.ts.device
        with torch.no_grad():
            parts = [self._of(e, time, p.y0, args) for e in self.events]
        counts = torch.tensor([x.shape[-1] for x in parts], device=device)
        self.event_of_value = torch.repeat_interleave(torch.arange(len(parts), device=device), counts)
        self.initial_values = torch.cat(parts, -1)

    def __call__(self, t: Tensor, y: Leaves, rows: Tensor | None = None) -> Tensor:
        args = self.args if rows is None else self._taken(rows, self._cut)
        values = torch.cat([self._of(e, t, y, args) for e in self.events], -1)
        if values.shape[-1] != len(self.event_of_value):
            raise ValueError(
                f"event functions returned {values.shape[-1]} values, and {len(self.event_of_value)} before"
            )
        return values

    def supports_subset(self) -> bool:
        return self._cut is not None

    @cached_property
    def _cut(self) -> SlicedArgs | None:
        """Which of args have a row a sample; None where the functions do not work on a part of the batch."""
        time, y0 = self.p.ts.detach()[:, 0], tuple(y.detach() for y in self.p.y0)

        def evaluate(rows: Tensor, cut: SlicedArgs) -> Leaves:
            args, y = self._taken(rows, cut), tuple(y.index_select(0, rows) for y in y0)
            return (torch.cat([self._of(e, time[rows], y, args) for e in self.events], -1),)

        with torch.no_grad():
            return infer_sliced_args(self._args, len(time), evaluate, (self.initial_values,))

    def _taken(self, rows: Tensor, cut: SlicedArgs | None) -> tuple[Any, ...]:
        """args with some rows of those that have one a sample."""
        assert cut is not None  # asked before
        return unflatten([take_rows(x, rows) if c else x for x, c in zip(self._args, cut, strict=True)], self._spec)

    def _of(self, e: Event, t: Tensor, y: Leaves, args: tuple[Any, ...]) -> Tensor:
        """(k,), or (B, k) per sample."""
        out = e.fn(cast(t, self.p.f.time_dtype), self.p.f.pack(y), *args)
        if not isinstance(out, Tensor) or out.is_complex() or out.dtype == torch.bool:
            what = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"an event function must return a tensor of real numbers; got {what}: return what crosses zero, such "
                "as y[0] - 0.5 for y[0] > 0.5"
            )
        if not self.p.batched:
            return out.reshape(-1)
        if out.ndim == 0 or len(out) != len(t):
            raise ValueError(
                f"an event function must return a row a sample with per_sample=True, shape ({len(t)},) or "
                f"({len(t)}, k); got {tuple(out.shape)}: reduce over the axes of y after the first"
            )
        return out.reshape(len(out), -1)

    def at_event(self, f: VectorField, value: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
        """The times of events, and the states there, as functions of all that decides them.

        f: of the solve that ends there, which gives the slope just before the event. value: which of the m values was
        zero, a lane; -1 where none was. time: when, a lane. y: the state at that time, taken as fixed. Lanes without an
        event come back as they are.
        """
        p, chosen = self.p, value.clamp(min=0)
        constant = torch.tensor([e.constant_time for e in self.events], device=value.device)
        attempts = (value >= 0) & ~constant[self.event_of_value[chosen]]
        if not torch.is_grad_enabled() or not bool(attempts.any()):
            return time, y
        at, state = self._safe(attempts, time, y)
        with torch.no_grad():
            slope = f(at, tuple(x.detach() for x in state))

        def crossing(s: Tensor, x: Leaves) -> Tensor:
            return self(s, x).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

        moved, there = with_event_time(crossing, at, state, slope, p.direction, attempts if p.batched else True)
        if not p.batched:
            return moved, there
        return torch.where(attempts, moved, time), select(attempts, there, y)

    def reset(self, number: int, lanes: Tensor, time: Tensor, y: Leaves) -> Leaves:
        """The state after event `number` of these lanes; of the others y."""
        p, function = self.p, self.events[number].reset
        assert function is not None
        at, state = self._safe(lanes, time, y)
        given = p.f.pack(tuple(x.clone() for x in state))  # a reset may change it in place; the hit keeps what was
        out = function(cast(at, p.f.time_dtype), given, *self.args)
        like, like_spec = flatten(given)
        leaves, spec = flatten_like(out, like_spec)
        if spec != like_spec:
            raise TypeError(f"reset returned the structure {spec}, but y has {like_spec}: return the new y")
        for new, old in zip(leaves, like, strict=True):
            if not isinstance(new, Tensor):
                raise TypeError(f"reset returned a {type(new).__name__} where y has a tensor: return the new y")
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"reset returned shape {tuple(new.shape)} and {new.dtype}, but y has {tuple(old.shape)} and "
                    f"{old.dtype}: return the new y with y's shapes and dtypes"
                )
        fresh = tuple(cast(new, x.dtype) for new, x in zip(leaves, y, strict=True))
        return select(lanes, fresh, y) if p.batched else fresh

    def _safe(self, lanes: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
        """Time and state with those of the other lanes replaced by one of these."""
        if not self.p.batched or bool(lanes.all()):
            return time, y
        return with_placeholder(lanes, time, y)


def stacked_hits(hits: Sequence[Hit], like: Any, batched: bool, time: Tensor) -> Hit:
    """`sol.hits` of what happened one after another; like: a state. Hits of a sample follow one another from the first.

    time: a time, for its dtype and device.
    """
    axis, none = int(batched), Hit(torch.zeros_like(time, dtype=torch.int64), time, like)

    def together(*xs: Any) -> Tensor:
        return torch.stack([torch.as_tensor(x) for x in xs], axis)

    return tree_map(together, *hits) if hits else tree_map(lambda x: together(x.detach()).narrow(axis, 0, 0), none)
