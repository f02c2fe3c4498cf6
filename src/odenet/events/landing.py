"""Landing: steps that end at events. A step is repeated until the event value at its end is zero.

All tensors are (L,), one entry for each of the L samples of the solve, L = 1 in a joint solve; those of an attempt have
entries for the current samples alone, with their numbers in `rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

_EPS = 2.0**-52
_ROUNDING = 64 * _EPS  # in units of the value's size on the step: smaller values count as zero
_GOOD = 1e-11  # the same, after a better root has been looked for
_SMALL = 1e-4  # the same: such a value may be as near to zero as rounding lets it come
_MOST_TRIES = 200  # attempts at one event
_ENOUGH_TRIES = 30  # attempts after which a continuous value has to be small
_WIDER = 64.0  # growth of the distance from a discontinuity at which its other side is looked for


def resolution(t0: Tensor, t1: Tensor) -> Tensor:
    """The smallest difference of two times between t0 and t1 that can be distinguished."""
    return 8 * _EPS * torch.maximum(t0.abs(), t1.abs())


class Candidate(NamedTuple):
    """An event as the dense output of a step predicts it.

    value_index: the event value that crosses zero, -1 for none. t: time of the event. step_start, step_end: the ends of
    the step. sign: of the value before the event, from `sign_since` on. low, high: times at which it certainly has that
    sign, certainly has not; NaN where unknown. rate: of the value, per time. size: largest absolute value on the step
    so far. discontinuous: the value jumps at the event, or stays zero after it.
    """

    value_index: Tensor
    t: Tensor
    step_start: Tensor
    step_end: Tensor
    sign_since: Tensor
    sign: Tensor
    low: Tensor
    high: Tensor
    rate: Tensor
    size: Tensor
    discontinuous: Tensor


class LandingResult(NamedTuple):
    """What became of attempts to end a step at an event, one entry for each current sample.

    retry: the step is to be tried again. no_event: there is no event. jumped: the value jumps across zero at the event.
    noise: values up to this size are zero but for rounding; NaN where that is not known.
    """

    retry: Tensor
    no_event: Tensor
    jumped: Tensor
    noise: Tensor


def assign(target: object, rows: Tensor, samples: Tensor, **values: Tensor) -> None:
    """target.name[rows[samples]] = value[samples], for each named value. samples: mask of the current samples."""
    index = rows[samples]
    for name, x in values.items():
        full = getattr(target, name)
        full[index] = x[samples].to(full.dtype)


@final
class Landing:
    """The search for the times at which steps have to end to end at an event.

    The dense output predicts the event, and ends of steps decide: an event is a time at which a step that ends there
    has a value of zero, or on whose two sides the value has different signs. The time is searched for by secants, kept
    between a time before it and one after it where both are known. Where no end of a step comes near zero, the event
    was one of the dense output alone.

    candidate: the predictions. t: end of the next attempt. low, high: times before and after the event, NaN where
    unknown. last_t, last: time and value of the last attempt. best_t, best: those of the smallest value so far. tries:
    number of attempts. final: the next attempt is the last one.
    """

    def __init__(self, like: Tensor, rounding: float) -> None:
        nan = torch.full_like(like, torch.nan)
        no, index = torch.zeros_like(like, dtype=torch.bool), torch.full_like(like, -1, dtype=torch.int64)
        self.rounding = rounding
        empty = Candidate(*(nan.clone() for _ in Candidate._fields))
        self.candidate = empty._replace(value_index=index, discontinuous=no)
        self.t, self.low, self.high = nan.clone(), nan.clone(), nan.clone()
        self.last_t, self.last, self.best_t, self.best = (nan.clone() for _ in range(4))
        self.tries, self.final = torch.zeros_like(index), no.clone()

    @property
    def value_index(self) -> Tensor:
        """The event value that is searched for, -1 for none."""
        return self.candidate.value_index

    def begin(self, rows: Tensor, samples: Tensor, c: Candidate) -> None:
        """Start the search for these samples. c: of all current samples."""
        assign(self.candidate, rows, samples, **c._asdict())
        # at a discontinuity first the side before it, then the side after it
        before = c.t - resolution(c.step_start, c.step_end) * (c.step_end - c.step_start).sign()
        t = torch.where(c.discontinuous & ((before - c.step_start) * (c.step_end - c.step_start) > 0), before, c.t)
        assign(self, rows, samples, t=t, low=c.low, high=c.high)
        index = rows[samples]
        self.tries[index], self.final[index], self.best[index] = 0, False, torch.inf

    def margin(self, start: Tensor, end: Tensor, rate: Tensor, size: Tensor, discontinuous: Tensor) -> Tensor:
        """The time from an event, at the accuracy to which it is known, to where the solution is certainly past it."""
        least = 2 * resolution(start, end)
        most = torch.maximum(least, _SMALL * (end - start).abs())
        time = 4 * max(_GOOD, self.rounding) * size / rate.abs()
        margin = torch.where(discontinuous, least, torch.minimum(torch.maximum(time, least), most))
        return margin * (end - start).sign()

    def assess(self, rows: Tensor, samples: Tensor, value: Tensor, noise: Callable[[], Tensor]) -> LandingResult:
        """Decide on steps of these samples that ended at their t with this event value.

        noise: how much the values change with the rounding of their states and times.
        """
        c = Candidate(*(x[rows] for x in self.candidate))
        t, tries = self.t[rows], self.tries[rows]
        forward, width = (c.step_end - c.step_start).sign(), resolution(c.step_start, c.step_end)
        before, size = value * c.sign > 0, value.abs()
        low, high = torch.where(before, t, self.low[rows]), torch.where(before, self.high[rows], t)
        bracketed = torch.isfinite(low) & torch.isfinite(high)
        narrow = bracketed & ((high - low) * forward <= 1.5 * width)
        better = size < self.best[rows]
        best, best_t = torch.where(better, size, self.best[rows]), torch.where(better, t, self.best_t[rows])
        continuous = samples & ~c.discontinuous
        floor = torch.where(continuous, noise(), 0.0) if bool(continuous.any()) else torch.zeros_like(size)
        tolerance = torch.where(
            tries == 0, torch.maximum(_ROUNDING * c.size, floor), torch.maximum(_GOOD * c.size, 4 * floor)
        )
        # as near to zero as rounding of the value lets it come, or rounding of the time
        small = torch.maximum(_SMALL * c.size, floor)
        near = size <= torch.maximum(small, 3 * c.rate.abs() * width)
        last = self.last[rows].abs()
        stalled = ~c.discontinuous & bracketed & (tries >= 2) & (size > last / 4) & (best <= small)
        converged = (stalled & better) | (~c.discontinuous & near & (self._secant(rows, c, t, value) == t))
        # The method itself may have a jump or a pole there, as implicit ones have in long steps: then no end is near
        # zero, and there is no event.
        decided, plausible = self.final[rows] | (narrow & ~before), c.discontinuous | near
        good = converged | (~c.discontinuous & (size <= tolerance)) | (plausible & decided)
        last_try = torch.where(narrow | (tries >= _MOST_TRIES), high, torch.where(stalled, best_t, torch.nan))
        searched = torch.where(
            c.discontinuous, self._next_outwards(c, t, low, high), self._next_inwards(rows, c, t, value, low, high)
        )
        following = torch.where(torch.isfinite(last_try), last_try, searched)
        following = torch.where(~plausible & (decided | (tries >= _ENOUGH_TRIES)), torch.nan, following)
        open_ = samples & ~good
        retry, no_event = open_ & torch.isfinite(following), open_ & ~torch.isfinite(following)
        assign(self, rows, samples, low=low, high=high, best=best, best_t=best_t, last=value, last_t=t, tries=tries + 1)
        assign(self, rows, retry, t=following, final=torch.isfinite(last_try))
        jumped = samples & good & (size > torch.maximum(small, tolerance))
        return LandingResult(retry, no_event, jumped, torch.where(continuous, 2 * floor, torch.nan))

    def _secant(self, rows: Tensor, c: Candidate, t: Tensor, value: Tensor) -> Tensor:
        slope = (value - self.last[rows]) / (t - self.last_t[rows])
        return t - value / torch.where(self.tries[rows] == 0, c.rate, slope)

    def _next_inwards(self, rows: Tensor, c: Candidate, t: Tensor, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The next time to try for a continuous value; NaN where the value does not come near zero."""
        tries, forward, bracketed = self.tries[rows], (c.step_end - c.step_start).sign(), torch.isfinite(low + high)
        secant, last = self._secant(rows, c, t, value), self.last[rows].abs()
        least = torch.where(torch.isfinite(low), low, c.sign_since)
        most = torch.where(torch.isfinite(high), high, c.step_end)
        inside = torch.isfinite(secant) & ((secant - least) * forward > 0) & ((most - secant) * forward >= 0)
        slow = (tries >= 1) & (value.abs() > last / 2)
        inside = inside & torch.where(bracketed, (secant != high) & ~(slow & (tries >= 2)), ~slow)
        return torch.where(inside, secant, torch.where(bracketed, low + (high - low) / 2, torch.nan))

    def _next_outwards(self, c: Candidate, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The next time to try for a value that jumps, or stays zero; NaN where it has no other side.

        First the predicted time, then further and further from it until the other side is known, then bisection.
        """
        forward, width = (c.step_end - c.step_start).sign(), resolution(c.step_start, c.step_end)
        distance = _WIDER * torch.maximum((t - c.t).abs(), width) * forward
        further = torch.where((low - c.t) * forward >= 0, c.t + distance, torch.where(
            (c.t - high) * forward >= 0, c.t - distance, c.t))  # fmt: skip
        least = torch.where(torch.isfinite(low), low, c.sign_since)
        most = torch.where(torch.isfinite(high), high, c.step_end)
        inside = ((further - least) * forward > 0) & ((most - further) * forward >= 0) & (further != high)
        return torch.where(inside, further, low + (high - low) / 2)  # NaN where one side is not known
