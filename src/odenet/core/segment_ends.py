"""The ends of a solve between two events, where f is to be seen from inside: it may jump at an event."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from .leaves import Leaves, cast, flatten_samples, select
from .torch_func import any_true

_ALIKE = 8.0  # how far two changes of f, over the same distance, may differ where f does not jump
_NOISE = 64.0  # of the rounding of f's values


class SegmentEnds:
    """Where a solve begins and ends at events; a lane each, NaN where it does not.

    f at such a time is f a little further inside, in time and along the solution: the limit from within, where f jumps
    there, be it with the time or with the state. How far is what an event is known to, and a constant of the
    differentiation. One object serves the fields of all samples and of those left in a batch, as an end is known only
    when it is found.
    """

    def __init__(self, start: Tensor, scale: Tensor, length: Tensor, direction: Tensor, onwards: Leaves) -> None:
        """start: NaN where the solve does not begin at an event. scale: the size of the times there.

        length: of the solve, in time. direction: +1 or -1. All are 0-d, or (B,) per sample. onwards: what leads from
        the state there to one just after it.
        """
        self._start, self._scale, self._direction = start.clone(), scale, direction
        self._most = length.abs() / 4  # of a very short solve the middle is kept
        self._end, self._end_scale = torch.full_like(start, torch.nan), torch.zeros_like(start)
        self._onwards, self._back = onwards, tuple(torch.zeros_like(x) for x in onwards)
        self._rows: Tensor | None = None
        self._known = {"start"} if any_true(torch.isfinite(start)) else set[str]()  # the same for all parts of a batch

    def subset(self, rows: Tensor) -> SegmentEnds:
        """Those of some of the samples at hand, which share what is set later."""
        other = copy.copy(self)
        other._rows = rows if self._rows is None else self._rows[rows]
        return other

    def set_end(self, lanes: Tensor, time: Tensor, scale: Tensor, onwards: Leaves) -> None:
        """The solve of these lanes of all, (L,), ends at `time`, an event; NaN: it does not."""
        if any_true(lanes & torch.isfinite(time)):
            self._known.add("end")
        place = lanes.view_as(self._end)
        self._end.copy_(torch.where(place, time.view_as(self._end), self._end))
        self._end_scale.copy_(torch.where(place, scale.view_as(self._end), self._end_scale))
        for whole, x in zip(self._back, select(place, onwards, self._back), strict=True):
            whole.copy_(x)

    def move_inside(self, t: Tensor, y: Leaves, dtype: torch.dtype) -> tuple[Tensor, Leaves]:
        """t in f's own dtype, and y, moved inside where they are at an edge."""
        if not self._known:
            return cast(t, dtype), y
        at = t.detach()
        # a method may have cast the time for f already
        at_start, at_end = at == cast(self._of(self._start), at.dtype), at == cast(self._of(self._end), at.dtype)
        if t.device.type == "cpu" and not bool((at_start | at_end).any()):  # a look costs less than what follows
            return cast(t, dtype), y
        forth = torch.where(at_start, self._of(self._scale), 0.0)
        back = torch.where(at_end, self._of(self._end_scale), 0.0)
        most = self._of(self._most)
        moved = ((forth - back) * inward_offset(dtype)).clamp(min=-most, max=most) * self._of(self._direction)
        none = tuple(torch.zeros_like(x) for x in y)
        after = select(at_start, tuple(map(self._of, self._onwards)), none)
        before = select(at_end, tuple(map(self._of, self._back)), none)
        y = tuple(x + (a - b).to(x.dtype) for x, a, b in zip(y, after, before, strict=True))
        return cast(t, dtype) + moved.to(dtype), y

    def _of(self, x: Tensor) -> Tensor:
        return x if self._rows is None else x[self._rows]


def jumps_across(
    f: Callable[[Tensor, Leaves], Leaves], t: Tensor, y: Leaves, here: Leaves, shift: Tensor, onwards: Leaves
) -> Tensor:
    """Whether f changes more across (t, y) than it does beside it: a lane. It takes two evaluations.

    here: f(t, y). shift: what leads to a time just after t. onwards: what leads to a state just after y.
    """
    early, late = (
        f(t + part * shift, tuple(x + (part * a).to(x.dtype) for x, a in zip(y, onwards, strict=True)))
        for part in (-1, 1)
    )
    found = torch.zeros_like(t, dtype=torch.bool)
    for a, b, c in zip(early, here, late, strict=True):
        before, after = (b - a).abs(), (c - b).abs()
        noise = _NOISE * torch.finfo(a.dtype).eps * torch.maximum(a.abs(), c.abs())
        # of a smooth f both are about the same, be it a little less so for what bends
        apart = ~(torch.maximum(before, after) <= _ALIKE * torch.minimum(before, after) + noise)  # NaN: they are
        found = found | (flatten_samples(apart).any(1) if t.ndim else apart.any())
    return found


def inward_offset(dtype: torch.dtype) -> float:
    """How far inside, as a part of the size of the times: past the rounding of an event's time, and of f's own."""
    return 16 * torch.finfo(torch.float64).eps + 2 * torch.finfo(dtype).eps
