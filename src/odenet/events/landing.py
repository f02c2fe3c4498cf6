"""Steps that end at events: each is taken again, to end where the value at its own end is zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

_EPS = 2.0**-52
_ROUNDING = 64 * _EPS  # of the values on a step: a value below that is zero
_GOOD = 1e-11  # the same, once a better root has been looked for
_SMALL = 1e-4  # a value below that part may be as near to zero as rounding lets it come
_MOST = 200  # attempts for one event
_ENOUGH = 30  # those after which a value that changes steadily is small
_WIDER = 64.0  # how much further from a jump the next attempt looks for its other side


def resolution(t0: Tensor, t1: Tensor) -> Tensor:
    """What two times between these have to differ by, to be two."""
    return 8 * _EPS * torch.maximum(t0.abs(), t1.abs())


class Claim(NamedTuple):
    """An event as the dense output of a step tells it, a lane each.

    value: which of the values. t: its time. start, limit: of the step. bound: from where on the value has its sign
    before it, `sign`. low: a time at which it has that sign for certain, and high: one at which it has not; NaN where
    none is known. rate: of the value, in time. size: of the value on the step so far. sharp: the value jumps there, or
    stays zero.
    """

    value: Tensor
    t: Tensor
    start: Tensor
    limit: Tensor
    bound: Tensor
    sign: Tensor
    low: Tensor
    high: Tensor
    rate: Tensor
    size: Tensor
    sharp: Tensor


class Landed(NamedTuple):
    """What became of attempts, in lanes. again: to be tried again. off: there is no event. jumped: across zero.

    noise: values up to it are zero but for rounding; NaN where that is not known.
    """

    again: Tensor
    off: Tensor
    jumped: Tensor
    noise: Tensor


def put(kept: object, rows: Tensor, lanes: Tensor, **values: Tensor) -> None:
    """Of these lanes among those at hand: write values into the tensors of all lanes that are `kept` by their names."""
    here = rows[lanes]
    for name, x in values.items():
        whole = getattr(kept, name)
        whole[here] = x[lanes].to(whole.dtype)


@final
class Landing:
    """Where the steps end that were found to have an event, of all lanes (L,); `value` is -1 where there is none.

    The dense output says where to look, and the ends of steps decide: an event is a time at which the state of a step
    that ends there has a value of zero, or between whose neighbours the value has jumped past it. The search is that
    for a root, by secants, kept between a time before it and one after it where both are known; where none comes near
    zero, what the dense output showed was its own.
    """

    def __init__(self, lane: Tensor, rounding: float) -> None:
        none = torch.full_like(lane, torch.nan)
        no, index = torch.zeros_like(lane, dtype=torch.bool), torch.full_like(lane, -1, dtype=torch.int64)
        self.rounding = rounding
        self.claim = Claim(*(none.clone() for _ in Claim._fields))._replace(value=index, sharp=no)
        self.t, self.low, self.high = none.clone(), none.clone(), none.clone()
        self.last_t, self.last, self.best_t, self.best = (none.clone() for _ in range(4))
        self.tries, self.final = torch.zeros_like(index), no.clone()

    @property
    def value(self) -> Tensor:
        return self.claim.value

    def begin(self, rows: Tensor, lanes: Tensor, c: Claim) -> None:
        """Of these lanes among those at hand: look for an event where it is claimed."""
        put(self.claim, rows, lanes, **c._asdict())
        # of what jumps, and is not zero there, first the one side and then the other
        ahead = c.t - resolution(c.start, c.limit) * (c.limit - c.start).sign()
        t = torch.where(c.sharp & ((ahead - c.start) * (c.limit - c.start) > 0), ahead, c.t)
        put(self, rows, lanes, t=t, low=c.low, high=c.high)
        here = rows[lanes]
        self.tries[here], self.final[here], self.best[here] = 0, False, torch.inf

    def margin(self, start: Tensor, limit: Tensor, rate: Tensor, size: Tensor, sharp: Tensor) -> Tensor:
        """How long the solution takes from an event, as well as it is known, to a state that is past it for certain."""
        least = 2 * resolution(start, limit)
        most = torch.maximum(least, _SMALL * (limit - start).abs())
        time = 4 * max(_GOOD, self.rounding) * size / rate.abs()
        return torch.where(sharp, least, torch.minimum(torch.maximum(time, least), most)) * (limit - start).sign()

    def judge(self, rows: Tensor, lanes: Tensor, left: Tensor, noise: Callable[[], Tensor]) -> Landed:
        """What to do with steps of these lanes that ended at their t, where the value still is `left`.

        noise: how much the values change with the rounding of their states and times.
        """
        c = Claim(*(x[rows] for x in self.claim))
        t, tries = self.t[rows], self.tries[rows]
        forward, width = (c.limit - c.start).sign(), resolution(c.start, c.limit)
        before, size = left * c.sign > 0, left.abs()
        low, high = torch.where(before, t, self.low[rows]), torch.where(before, self.high[rows], t)
        known = torch.isfinite(low) & torch.isfinite(high)
        narrow = known & ((high - low) * forward <= 1.5 * width)
        better = size < self.best[rows]
        best, best_t = torch.where(better, size, self.best[rows]), torch.where(better, t, self.best_t[rows])
        steady = lanes & ~c.sharp
        floor = torch.where(steady, noise(), 0.0) if bool(steady.any()) else torch.zeros_like(size)
        tolerance = torch.where(
            tries == 0, torch.maximum(_ROUNDING * c.size, floor), torch.maximum(_GOOD * c.size, 4 * floor)
        )
        # as near as rounding lets it come; or as the times do
        small = torch.maximum(_SMALL * c.size, floor)
        near = size <= torch.maximum(small, 3 * c.rate.abs() * width)
        last = self.last[rows].abs()
        stalled = ~c.sharp & known & (tries >= 2) & (size > last / 4) & (best <= small)
        closing = (stalled & better) | (~c.sharp & near & (self._secant(rows, c, t, left) == t))
        # the method itself may have a jump or a pole there, as implicit ones do in long steps: then nothing is zero
        there, whole = self.final[rows] | (narrow & ~before), c.sharp | near
        good = closing | (~c.sharp & (size <= tolerance)) | (whole & there)
        settled = torch.where(narrow | (tries >= _MOST), high, torch.where(stalled, best_t, torch.nan))
        searched = torch.where(c.sharp, self._outwards(c, t, low, high), self._towards(rows, c, t, left, low, high))
        following = torch.where(torch.isfinite(settled), settled, searched)
        following = torch.where(~whole & (there | (tries >= _ENOUGH)), torch.nan, following)
        again, off = lanes & ~good & torch.isfinite(following), lanes & ~good & ~torch.isfinite(following)
        put(self, rows, lanes, low=low, high=high, best=best, best_t=best_t, last=left, last_t=t, tries=tries + 1)
        put(self, rows, again, t=following, final=torch.isfinite(settled))
        jumped = lanes & good & (size > torch.maximum(small, tolerance))
        return Landed(again, off, jumped, torch.where(steady, 2 * floor, torch.nan))

    def _secant(self, rows: Tensor, c: Claim, t: Tensor, left: Tensor) -> Tensor:
        slope = (left - self.last[rows]) / (t - self.last_t[rows])
        return t - left / torch.where(self.tries[rows] == 0, c.rate, slope)

    def _towards(self, rows: Tensor, c: Claim, t: Tensor, left: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Where a value that changes steadily is looked at next; NaN where it does not come near zero."""
        tries, forward, known = self.tries[rows], (c.limit - c.start).sign(), torch.isfinite(low + high)
        secant, last = self._secant(rows, c, t, left), self.last[rows].abs()
        least = torch.where(torch.isfinite(low), low, c.bound)
        most = torch.where(torch.isfinite(high), high, c.limit)
        inside = torch.isfinite(secant) & ((secant - least) * forward > 0) & ((most - secant) * forward >= 0)
        slow = (tries >= 1) & (left.abs() > last / 2)
        inside = inside & torch.where(known, (secant != high) & ~(slow & (tries >= 2)), ~slow)
        return torch.where(inside, secant, torch.where(known, low + (high - low) / 2, torch.nan))

    def _outwards(self, c: Claim, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Where a value that jumps, or stays zero, is looked at next; NaN where it has no other side.

        At the claim, then further and further from it until the other side is known, then halfway.
        """
        forward, width = (c.limit - c.start).sign(), resolution(c.start, c.limit)
        reach = _WIDER * torch.maximum((t - c.t).abs(), width) * forward
        further = torch.where((low - c.t) * forward >= 0, c.t + reach, torch.where(
            (c.t - high) * forward >= 0, c.t - reach, c.t))  # fmt: skip
        least, most = torch.where(torch.isfinite(low), low, c.bound), torch.where(torch.isfinite(high), high, c.limit)
        inside = ((further - least) * forward > 0) & ((most - further) * forward >= 0) & (further != high)
        return torch.where(inside, further, low + (high - low) / 2)  # NaN where one side is not known
