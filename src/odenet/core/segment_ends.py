"""One-sided limits of f at the ends of a segment: f may jump at the events where the segment starts and ends."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from .leaves import Leaves, cast, flatten_samples, select
from .torch_func import any_true

_MAX_RATIO = 8.0  # largest ratio of two changes of a smooth f over equal distances
_NOISE = 64.0  # in units of the rounding of f's values


class SegmentEnds:
    """The events at which a segment starts and ends, () or (B,) per sample; NaN where it starts or ends without one.

    At such a time f is evaluated a little further inside the segment, in time and along the solution: the one-sided
    limit of an f that jumps with the time or with the state. The distance is the accuracy of the event's time, and is
    a constant of the differentiation. The fields of all subsets of a batch share one object, as the end becomes known
    only during the solve.
    """

    def __init__(self, start: Tensor, scale: Tensor, length: Tensor, direction: Tensor, onwards: Leaves) -> None:
        """Shapes: () or (B,), except onwards.

        start: ts[0], NaN where no event starts the segment. scale: the magnitude of the times there. length: of the
        segment, in time. direction: +1 or -1. onwards: leaves, the change of the state from ts[0] to just after it.
        """
        self._start, self._start_scale, self._direction = start.clone(), scale, direction
        self._max_shift = length.abs() / 4  # leaves the middle of a very short segment where it is
        self._end, self._end_scale = torch.full_like(start, torch.nan), torch.zeros_like(start)
        self._after_start, self._before_end = onwards, tuple(torch.zeros_like(x) for x in onwards)
        self._rows: Tensor | None = None
        self._known = {"start"} if any_true(torch.isfinite(start)) else set[str]()  # shared by all subsets

    def subset(self, rows: Tensor) -> SegmentEnds:
        """The ends for some rows of the present batch; a later `set_end` reaches it, too."""
        other = copy.copy(self)
        other._rows = rows if self._rows is None else self._rows[rows]
        return other

    def set_end(self, samples: Tensor, time: Tensor, scale: Tensor, onwards: Leaves) -> None:
        """The segment of these samples ends at `time`, an event; NaN: at no event.

        samples: a mask over the full batch. onwards: the change of the state from `time` to just after it.
        """
        if any_true(samples & torch.isfinite(time)):
            self._known.add("end")
        mask = samples.view_as(self._end)
        self._end.copy_(torch.where(mask, time.view_as(self._end), self._end))
        self._end_scale.copy_(torch.where(mask, scale.view_as(self._end), self._end_scale))
        for old, new in zip(self._before_end, select(mask, onwards, self._before_end), strict=True):
            old.copy_(new)

    def move_inside(self, t: Tensor, y: Leaves, dtype: torch.dtype) -> tuple[Tensor, Leaves]:
        """t in f's time dtype, and y; both moved into the segment where t is at an end that is an event."""
        if not self._known:
            return cast(t, dtype), y
        now = t.detach()
        # a method may have cast the time to f's dtype already
        at_start = now == cast(self._take(self._start), now.dtype)
        at_end = now == cast(self._take(self._end), now.dtype)
        if t.device.type == "cpu" and not bool((at_start | at_end).any()):  # on a CPU the check is cheap, the rest not
            return cast(t, dtype), y
        forward = torch.where(at_start, self._take(self._start_scale), 0.0)
        backward = torch.where(at_end, self._take(self._end_scale), 0.0)
        limit = self._take(self._max_shift)
        shift = ((forward - backward) * inward_offset(dtype)).clamp(min=-limit, max=limit)
        shift = shift * self._take(self._direction)
        zeros = tuple(torch.zeros_like(x) for x in y)
        after = select(at_start, tuple(map(self._take, self._after_start)), zeros)
        before = select(at_end, tuple(map(self._take, self._before_end)), zeros)
        y = tuple(x + (a - b).to(x.dtype) for x, a, b in zip(y, after, before, strict=True))
        return cast(t, dtype) + shift.to(dtype), y

    def _take(self, x: Tensor) -> Tensor:
        """The rows of the present batch."""
        return x if self._rows is None else x[self._rows]


def jumps_across(
    f: Callable[[Tensor, Leaves], Leaves], t: Tensor, y: Leaves, slope: Leaves, shift: Tensor, onwards: Leaves
) -> Tensor:
    """A mask, () or (B,): f changes more from one side of (t, y) to the other than a smooth f. Evaluates f twice.

    slope: f(t, y). shift, onwards: the changes of time and state from (t, y) to just after it.
    """
    before, after = (
        f(t + sign * shift, tuple(x + (sign * a).to(x.dtype) for x, a in zip(y, onwards, strict=True)))
        for sign in (-1, 1)
    )
    jumps = torch.zeros_like(t, dtype=torch.bool)
    for a, b, c in zip(before, slope, after, strict=True):
        change_before, change_after = (b - a).abs(), (c - b).abs()
        noise = _NOISE * torch.finfo(a.dtype).eps * torch.maximum(a.abs(), c.abs())
        # both changes of a smooth f are similar, and differ a little where f bends
        larger, smaller = torch.maximum(change_before, change_after), torch.minimum(change_before, change_after)
        jump = ~(larger <= _MAX_RATIO * smaller + noise)  # NaN counts as a jump
        jumps = jumps | (flatten_samples(jump).any(1) if t.ndim else jump.any())
    return jumps


def inward_offset(dtype: torch.dtype) -> float:
    """The distance from an end relative to the magnitude of the times; dtype: of f's t.

    It exceeds the rounding of event times and of f's t.
    """
    return 16 * torch.finfo(torch.float64).eps + 2 * torch.finfo(dtype).eps
