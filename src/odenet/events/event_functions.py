"""The event functions and resets of a solve, with the state as leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.batch_slicing import SlicedArgs, infer_sliced_args, take_rows
from ..core.leaves import Leaves, cast, select
from ..core.pytrees import flatten, flatten_like, unflatten
from ..core.vector_field import VectorField
from ..engine.batch_index import with_placeholder
from ..engine.problem import Problem
from .event import Event
from .event_time import with_event_time
from .step_values import EventValues


class EventFunctions(EventValues):
    """All event functions of a solve: together they have m values.

    event_of_value: (m,), the number of the event that each value belongs to. initial_values: (m,) or (B, m), at ts[0].
    """

    def __init__(self, events: Sequence[Event], p: Problem, args: tuple[Any, ...]) -> None:
        self.events, self.p, self.args = list(events), p, args
        self._args, self._spec = flatten(args)
        time, device = p.ts.detach()[..., 0], p.ts.device
        with torch.no_grad():
            values = [self._values(e, time, p.y0, args) for e in self.events]
        counts = torch.tensor([x.shape[-1] for x in values], device=device)
        self.event_of_value = torch.repeat_interleave(torch.arange(len(values), device=device), counts)
        self.initial_values = torch.cat(values, -1)

    def __call__(self, t: Tensor, y: Leaves, rows: Tensor | None = None) -> Tensor:
        args = self.args
        if rows is not None:
            assert self._sliced is not None  # see `supports_subset`
            args = self._args_of(rows, self._sliced)
        values = torch.cat([self._values(e, t, y, args) for e in self.events], -1)
        before = len(self.event_of_value)
        if values.shape[-1] != before:
            raise ValueError(f"event functions returned {values.shape[-1]} values, and {before} before")
        return values

    def supports_subset(self) -> bool:
        return self._sliced is not None

    @cached_property
    def _sliced(self) -> SlicedArgs | None:
        """Which of args have a row for each sample; None where the functions do not work on a subset of the batch."""
        time, y0 = self.p.ts.detach()[:, 0], tuple(y.detach() for y in self.p.y0)

        def evaluate(rows: Tensor, sliced: SlicedArgs) -> Leaves:
            args, y = self._args_of(rows, sliced), tuple(y.index_select(0, rows) for y in y0)
            return (torch.cat([self._values(e, time[rows], y, args) for e in self.events], -1),)

        with torch.no_grad():
            return infer_sliced_args(self._args, len(time), evaluate, (self.initial_values,))

    def _args_of(self, rows: Tensor, sliced: SlicedArgs) -> tuple[Any, ...]:
        """args for these rows of the batch."""
        return unflatten([take_rows(x, rows) if c else x for x, c in zip(self._args, sliced, strict=True)], self._spec)

    def _values(self, e: Event, t: Tensor, y: Leaves, args: tuple[Any, ...]) -> Tensor:
        """The values of one event function, (k,), or (B, k) per sample."""
        out: Any = e.fn(cast(t, self.p.f.time_dtype), self.p.f.pack(y), *args)
        if not isinstance(out, Tensor) or out.is_complex() or out.dtype == torch.bool:
            kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"an event function must return a tensor of real numbers; got {kind}: return what crosses zero, such "
                "as y[0] - 0.5 for y[0] > 0.5"
            )
        if not self.p.batched:
            return out.reshape(-1)
        if out.ndim == 0 or len(out) != len(t):
            raise ValueError(
                f"an event function must return a row for each sample with per_sample=True, shape ({len(t)},) or "
                f"({len(t)}, k); got {tuple(out.shape)}: reduce over the axes of y after the first"
            )
        return out.reshape(len(out), -1)

    def at_event(self, f: VectorField, index: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
        """Times of events and states there, differentiable with respect to everything that the time depends on.

        f: of the segment that ends at the event; it gives the slope just before. index: the value that was zero, () or
        (B,); -1 for no event. time: of the event, of the shape of index. y: the state at that time, which its graph
        takes for fixed. Samples without an event are returned as they are.
        """
        p, chosen = self.p, index.clamp(min=0)
        constant = torch.tensor([e.constant_time for e in self.events], device=index.device)
        moving = (index >= 0) & ~constant[self.event_of_value[chosen]]
        if not torch.is_grad_enabled() or not bool(moving.any()):
            return time, y
        event_time, event_y = self._with_placeholder(moving, time, y)
        with torch.no_grad():
            slope = f(event_time, tuple(x.detach() for x in event_y))

        def crossing_value(t: Tensor, x: Leaves) -> Tensor:
            return self(t, x).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

        mask = moving if p.batched else True
        moved, moved_y = with_event_time(crossing_value, event_time, event_y, slope, p.direction, mask)
        if not p.batched:
            return moved, moved_y
        return torch.where(moving, moved, time), select(moving, moved_y, y)

    def reset(self, number: int, samples: Tensor, time: Tensor, y: Leaves) -> Leaves:
        """The state after event `number` of these samples, (L,); y for the others."""
        p, function = self.p, self.events[number].reset
        assert function is not None
        event_time, event_y = self._with_placeholder(samples, time, y)
        packed = p.f.pack(tuple(x.clone() for x in event_y))  # a reset may change y in place, and the hit needs it
        out = function(cast(event_time, p.f.time_dtype), packed, *self.args)
        old_leaves, old_spec = flatten(packed)
        new_leaves, new_spec = flatten_like(out, old_spec)
        if new_spec != old_spec:
            raise TypeError(f"reset returned the structure {new_spec}, but y has {old_spec}: return the new y")
        for new, old in zip(new_leaves, old_leaves, strict=True):
            if not isinstance(new, Tensor):
                raise TypeError(f"reset returned a {type(new).__name__} where y has a tensor: return the new y")
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"reset returned shape {tuple(new.shape)} and {new.dtype}, but y has {tuple(old.shape)} and "
                    f"{old.dtype}: return the new y with y's shapes and dtypes"
                )
        after = tuple(cast(new, x.dtype) for new, x in zip(new_leaves, y, strict=True))
        return select(samples, after, y) if p.batched else after

    def _with_placeholder(self, samples: Tensor, time: Tensor, y: Leaves) -> tuple[Tensor, Leaves]:
        """Time and state with a placeholder in all but these samples."""
        if not self.p.batched or bool(samples.all()):
            return time, y
        return with_placeholder(samples, time, y)
