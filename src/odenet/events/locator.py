"""Where an event ends a solve, or that of a sample: the first root of its function on the dense output of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..control.controller import Decision
from ..core.dense import Coefficients
from ..core.leaves import Leaves, expand_over, scale
from ..core.norms import all_finite, max_abs
from ..engine.loop import LocatedEvents, TryStep
from ..engine.problem import Problem
from ..engine.step_attempt import State, StepAttempt
from ..engine.stop_tracker import StopTracker
from .chebyshev import node_points, nodes
from .landing import Claim, Landing, put, resolution
from .roots import RootQuery, Roots, first_roots
from .rounding import noise
from .step_values import EventValues, StepValues, as_lanes, lanes_of, largest, rows_at_hand

_APART = 1e-3  # of a step: where the rate of a value is measured around its root
_CLOSEST = 1e-9  # of a step: a value that changes as much in so little as within _APART jumps
_CLOSE = tuple(8.0**-k for k in range(6, 0, -1))  # of the first node: where to look for the sign just after an event
_HUGE = 1e6  # of the initial state: one that has grown beyond is blowing up, and may be too much for an event function


@dataclass(frozen=True)
class EventSet:
    """What is looked for, on L lanes (one, where they share their steps).

    directions: +1, -1 or 0, (m,). wanted: values that are looked for, (L, m). first: those that come before others at
    the same time, (L, m). signs: those at the start, (L, m), where 0 is that of the first value that differs from zero
    by more than `quiet`, (L, m).
    """

    values: EventValues
    directions: Tensor
    active: Tensor
    first_on_tie: Tensor
    signs: Tensor
    quiet: Tensor

    def locator(self, p: Problem, try_step: TryStep) -> EventLocator:
        return EventLocator(p, self, try_step)


@final
class EventLocator:
    """Looks for an event in each step that was accepted, and takes the one it lies in again, to end at the event.

    Roots are those of the method's own dense output; steps that end there decide (see `Landing`). Of the batch, `rows`
    are at hand.
    """

    def __init__(self, p: Problem, events: EventSet, try_step: TryStep) -> None:
        self.events, self.plain_step = events, try_step
        self.tracker: StopTracker | None = None
        assert p.f.segment_ends is not None  # see Problem.with_edges
        self.edges, self.straight = p.f.segment_ends, p.method.interpolation == "linear"
        lane = p.direction.reshape(-1)
        self.rounding = 16 * max(torch.finfo(y.dtype).eps for y in p.y0)
        self.landing = Landing(lane, self.rounding)
        self.zero, self.scale = torch.zeros_like(lane), torch.zeros_like(lane)
        self.jumped = torch.zeros_like(lane, dtype=torch.bool)
        self.bends = torch.ones_like(self.jumped)
        self.signs, self.after, self.quiet = events.signs.clone(), events.signs.clone(), events.quiet.clone()
        self.peaks = torch.zeros_like(self.quiet)  # the largest absolute value until the event
        self.past, self.past_sign = torch.full_like(self.quiet, torch.nan), torch.zeros_like(self.quiet)  # see _look
        self.onwards = tuple(torch.zeros_like(y.detach()) for y in p.y0)
        self.bound = _HUGE * max_abs(p.y0, p.batched).detach().reshape(-1).clamp(min=1.0)
        self.last = torch.where(self.quiet > 0, 0.0, self._values(p, p.ts[..., 0], p.y0))

    def supports_subset(self) -> bool:
        """Whether the event functions also work on some samples of the batch."""
        return self.events.values.supports_subset()

    @property
    def located(self) -> LocatedEvents:
        value = self.landing.value
        peak = self.peaks.gather(-1, value.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return LocatedEvents(self.landing.t, value, self.after, self.zero, peak, self.jumped, self.bends, self.onwards)

    def try_step(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
        rows = rows_at_hand(p)
        if tracker is not self.tracker:  # samples have left the batch
            self.tracker, there = tracker, self.landing.value[rows] >= 0
            if bool(there.any()):
                tracker.set_event_stop(there, s.stop, self.landing.t[rows])
        attempt, decision = self.plain_step(p, tracker, s)
        accept = lanes_of(attempt.accept, p)
        found = self.landing.value[rows] >= 0
        ends = accept & found & lanes_of(attempt.hit, p)
        looks = accept & ~ends & all_finite(attempt.step.y, p.batched).reshape(-1)  # else the solve is about to fail
        if bool(looks.any()):  # in the grad mode of the step, as outputs are made of it too
            attempt.searched = looks if p.batched else True
            if not self.straight:
                attempt.polynomial(attempt.searched)
        with torch.no_grad():
            off = accept & found & ~ends  # a shorter step than that to the event, which is looked for anew
            back = torch.zeros_like(accept)
            if bool(ends.any()):
                back, none = self._judge(p, attempt, ends, rows)
                off, ends = off | none, ends & ~back & ~none
                back = back | none
            if bool(off.any()):
                self._call_off(tracker, s, off, rows)
            if bool(looks.any()):
                back = back | self._look(p, attempt, looks, rows)
            if not bool(back.any()):
                attempt.ends = ends if p.batched else bool(ends)
                return attempt, decision
            to_event = back & (self.landing.value[rows] >= 0)
            if bool(to_event.any()):
                self._cut(tracker, s, to_event, rows)
            return _taken_back(p, s, attempt, decision, back, ends)

    def _cut(self, tracker: StopTracker, s: State, lanes: Tensor, rows: Tensor) -> None:
        """The step of these lanes is to end at an event, before which f is to be seen."""
        t, batched = self.landing.t, tracker.p.batched
        tracker.set_event_stop(lanes if batched else True, s.stop, t[rows] if batched else float(t))
        self._edge(lanes, rows, t)

    def _call_off(self, tracker: StopTracker, s: State, lanes: Tensor, rows: Tensor) -> None:
        tracker.clear_event_stop(lanes if tracker.p.batched else True, s.stop)
        self.landing.value[rows[lanes]] = -1
        self._edge(lanes, rows, torch.full_like(self.landing.t, torch.nan))

    def _edge(self, lanes: Tensor, rows: Tensor, t: Tensor) -> None:
        whole, claim = torch.zeros_like(self.jumped).index_fill(0, rows[lanes], True), self.landing.claim
        t = torch.where(self.bends, t, torch.nan)  # else f is what it is there
        self.edges.end_at(whole, t, torch.maximum(claim.start.abs(), claim.limit.abs()), self.onwards)

    def _judge(self, p: Problem, attempt: StepAttempt, lanes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of steps that end where an event may be: those to be tried again, and those that have none after all."""
        values, pick = (
            self._values(p, attempt.time1, attempt.step.y),
            self.landing.value[rows].clamp(min=0).unsqueeze(-1),
        )
        left, claim = values.gather(-1, pick).squeeze(-1), self.landing.claim

        def noise_of_it() -> Tensor:
            time, y = attempt.time1.detach(), tuple(x.detach() for x in attempt.step.y)
            scale = tuple(torch.maximum(a.detach().abs(), b.abs()) for a, b in zip(p.y0, y, strict=True))
            around = torch.maximum(attempt.time0.detach().abs(), time.abs()).to(p.f.time_dtype)
            found = noise(lambda t, x: self._values(p, t, x), time, y, around, scale)
            return found.gather(-1, pick).squeeze(-1)

        landed = self.landing.judge(rows, lanes, left, noise_of_it)
        least = self.rounding * self.scale[rows] + 1e-300
        zero = torch.where(torch.isnan(landed.noise), least, landed.noise + 1e-300)
        zero = torch.where(landed.jumped, least, 2 * left.abs() + zero)
        start, limit, t = claim.start[rows], claim.limit[rows], claim.t[rows]
        moved = ((self.landing.t[rows] - t).abs() > _APART * (limit - start).abs()).unsqueeze(-1)
        chosen = torch.arange(values.shape[-1], device=values.device) == pick
        after = torch.where(moved & ~chosen & (values != 0), values.sign(), self.after[rows])
        put(self, rows, lanes, jumped=landed.jumped, zero=zero, after=after)
        if bool(landed.off.any()):  # from there on the step is looked at once more
            past = torch.where(chosen, t.unsqueeze(-1), self.past[rows])
            sign = torch.where(chosen, -claim.sign[rows].unsqueeze(-1), self.past_sign[rows])
            put(self, rows, landed.off, past=past, past_sign=sign)
        return landed.again, landed.off

    def _look(self, p: Problem, attempt: StepAttempt, lanes: Tensor, rows: Tensor) -> Tensor:
        """Look for the first event in a step of these lanes; gives those that have one.

        Where what was found was none, the search goes on from there: `past`, with the sign that the value has beyond it
        on the dense output, `past_sign`.
        """
        path = StepValues(
            self.events.values, p, attempt, self._own(p, attempt) if self.straight else attempt.known_polynomial
        )
        wanted = lanes.unsqueeze(-1) & self.events.active[rows]
        first, last = self.last[rows], self._values(p, attempt.time1, attempt.step.y)
        column = torch.cat([first.unsqueeze(-1), path.inside(nodes()[1:-1]), last.unsqueeze(-1)], -1)
        if bool((~torch.isfinite(column) & wanted.unsqueeze(-1)).any()):
            lanes = lanes & ~self._blows_up(p, attempt, column, wanted)
            wanted = wanted & lanes.unsqueeze(-1)
        column = torch.where(torch.isfinite(column), column, 0.0)
        quiet, own = self.quiet[rows], self.signs[rows]
        t0, t1 = (lanes_of(x, p).unsqueeze(-1) for x in (attempt.t0, attempt.t1))
        past = ((self.past[rows] - t0) / (t1 - t0)).nan_to_num(0.0)
        signs, left, loud = self._first_signs(path, column, own, quiet, wanted)
        points = node_points().to(column.device)
        column = torch.where((points < loud.unsqueeze(-1)) & (column.abs() <= quiet.unsqueeze(-1)), 0.0, column)

        at_end = t1 == p.ts.detach()[..., -1].reshape(-1, 1)  # nothing is asked of event functions past that

        def g(theta: Tensor, live: Tensor) -> Tensor:
            found = path.each(torch.where(at_end, theta.clamp(max=1.0), theta), live)
            _refuse(~torch.isfinite(found) & live, found, attempt)
            return torch.where((theta < loud) & (found.abs() <= quiet), 0.0, found)

        at = torch.where(past > 0, self.past_sign[rows], signs)
        sought = RootQuery(
            self.events.directions, torch.where(wanted, at, 0.0), torch.maximum(left, past), torch.maximum(loud, past)
        )
        roots = first_roots(g, column, sought, self.rounding / 4)
        found = lanes & torch.isfinite(roots.where.amin(-1))
        if bool(found.any()):
            self._claim(p, path, attempt, rows, found, roots, signs, column)
        end, on = column[..., -1], lanes & ~found
        put(self, rows, on, signs=torch.where(end != 0, end.sign(), signs), last=end)
        put(self, rows, on, quiet=torch.where(end != 0, 0.0, quiet), past=torch.full_like(past, torch.nan))
        until = torch.where(found, roots.where.amin(-1), 1.0)
        put(self, rows, lanes, peaks=torch.maximum(self.peaks[rows], largest(column, until)))
        return found

    def _claim(
        self, p: Problem, path: StepValues, attempt: StepAttempt, rows: Tensor, found: Tensor, roots: Roots, signs: Tensor,
        column: Tensor,
    ) -> None:  # fmt: skip
        """Keep the events that were found: where they may be, and how the values stand and change there."""
        where = roots.where
        first = where.amin(-1, keepdim=True)
        tied = where <= first
        pick = (tied.to(torch.uint8) + (tied & self.events.first_on_tie[rows]).to(torch.uint8)).argmax(-1, keepdim=True)
        chosen, live = torch.arange(where.shape[-1], device=where.device) == pick, found.unsqueeze(-1)
        at = torch.where(torch.isfinite(first), first, 0.5).expand_as(where)
        here = path.each(at, live.expand_as(chosen))
        before = torch.where(roots.rising, -1.0, 1.0)

        def around(distance: float) -> tuple[Tensor, Tensor, Tensor]:
            low, high = (at - distance).clamp(min=0.0), (at + distance).clamp(max=1.0)
            return path.each(low, chosen & live), path.each(high, chosen & live), high - low

        below, above, width = around(_APART)
        nearly, just, _ = around(_CLOSEST)
        jumps = (just - nearly).abs() > torch.maximum(above.abs(), below.abs()) / 2
        sharp = jumps | ((above == 0) & (here == 0) & (at < 1))
        # a value whose root is still ahead has its sign; one that is zero gets that which it takes first
        after = torch.where(here != 0, here.sign(), signs)
        after = torch.where(torch.isfinite(where), before, after)
        after = torch.where(chosen, torch.where(here == 0, 0.0, -before), after)
        t0, t1 = lanes_of(attempt.t0, p), lanes_of(attempt.t1, p)
        length = t1 - t0

        def of_it(x: Tensor) -> Tensor:
            return x.gather(-1, pick).squeeze(-1)

        # where a step ends at the event it is no step any more
        part = first.squeeze(-1)
        t = t0 + length.sign() * torch.maximum(part * length.abs(), resolution(t0, t1))
        sign, end = of_it(before), of_it(column[..., -1])
        size = torch.maximum(of_it(largest(column, part)), of_it(path.each(at / 2, (chosen & live))).abs())
        peaks = torch.where(chosen, torch.maximum(self.peaks[rows], size.unsqueeze(-1)), self.peaks[rows])
        # of peaks too: the nodes may all lie past an event
        put(self, rows, found, after=after, peaks=peaks, scale=of_it(column.abs().amax(-1)))
        low, high = torch.where(of_it(signs) == sign, t0, torch.nan), torch.where(end * sign > 0, torch.nan, t1)
        # one whose root was ahead at the last event, and which had it there, happens at once
        sharp = of_it(sharp) | (
            (low == t0) & (of_it(column[..., 0]) * sign <= 0) & (t == t0 + resolution(t0, t1) * length.sign())
        )
        rate = of_it((above - below) / width) / length
        margin = self.landing.margin(t0, t1, rate, size, sharp) / length
        if not p.batched:
            part, margin = part[0], margin[0]
        slope = path.slope(part)
        onwards = scale(expand_over(margin, slope), slope)  # along the dense output just past the event, by the margin
        if p.batched:
            for whole, x in zip(self.onwards, onwards, strict=True):
                whole[rows[found]] = x[found]
        else:
            self.onwards = onwards
        if not p.f.random:  # else it is not known
            put(self, rows, found, bends=path.bends(part, tuple(map(p.samples.take, self.onwards)), found))
        self.landing.begin(rows, found, Claim(
            pick.squeeze(-1), t, t0, t1, t0 + of_it(roots.since) * length, sign, low, high, rate, size, sharp
        ))  # fmt: skip

    def _first_signs(
        self, path: StepValues, column: Tensor, signs: Tensor, quiet: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The signs before the step, from where on they hold, and from where on values are more than noise.

        After an event, a value that is zero has the sign that it takes first, maybe long before the first node.
        """
        left, unknown = torch.zeros_like(signs), wanted & (signs == 0)
        points = node_points().to(column.device)
        loud = column.abs() > quiet.unsqueeze(-1)
        index = loud.to(torch.uint8).argmax(-1, keepdim=True)
        since = torch.where(loud.any(-1), points[index.squeeze(-1)], torch.inf)
        since = torch.where(unknown | (quiet > 0), since, 0.0)
        risen = unknown & (quiet > 0)
        if bool(risen.any()):
            for part in _CLOSE:
                theta = torch.full_like(left, part * nodes()[1])
                value = path.each(theta, risen)
                known = risen & (value.abs() > quiet) & torch.isfinite(value)
                signs, left = torch.where(known, value.sign(), signs), torch.where(known, theta, left)
                since, risen = torch.where(known, theta, since), risen & ~known
                if not bool(risen.any()):
                    break
        first = column.gather(-1, index).squeeze(-1).sign()
        return torch.where(unknown & (signs == 0) & loud.any(-1), first, signs), left, since

    def _blows_up(self, p: Problem, attempt: StepAttempt, column: Tensor, wanted: Tensor) -> Tensor:
        """Lanes whose state is beyond bounds, which is not the event functions' fault; raises for other lanes."""
        large = max_abs(attempt.step.y, p.batched).reshape(-1) > self.bound[rows_at_hand(p)]
        wanted = wanted & ~large.unsqueeze(-1)
        _refuse(~torch.isfinite(column) & wanted.unsqueeze(-1), column, attempt)
        return large

    @staticmethod
    def _own(p: Problem, attempt: StepAttempt) -> Coefficients:
        """The method's own dense output, where that of the solution is a line: it sees two crossings within a step."""
        before = p.f.calls
        coefficients = p.method.polynomial(attempt.input, attempt.step)
        attempt.search_calls = p.f.calls - before
        return coefficients

    def _values(self, p: Problem, t: Tensor, y: Leaves) -> Tensor:
        with torch.no_grad():
            return as_lanes(self.events.values(t, y, p.samples.index), p.batched)


def _taken_back(
    p: Problem, s: State, attempt: StepAttempt, decision: Decision, back: Tensor, ends: Tensor
) -> tuple[StepAttempt, Decision]:
    """The move with these lanes not accepted, and to be tried again as they were."""
    if not p.batched:
        attempt.accept = attempt.ends = False
        return attempt, decision._replace(accept=False, h=s.h, state=s.controller_state)
    attempt.accept, attempt.ends = attempt.accept & ~back, ends & ~back
    memory = tuple(torch.where(back, a, b) for a, b in zip(s.controller_state, decision.state, strict=True))
    return attempt, decision._replace(accept=attempt.accept, h=torch.where(back, s.h, decision.h), state=memory)


def _refuse(bad: Tensor, values: Tensor, attempt: StepAttempt) -> None:
    """Raise for the first of the values, (L, m) or (L, m, n), that is `bad`."""
    if not bool(bad.any()):
        return
    lane, value, *_ = place = bad.nonzero()[0].tolist()
    t0 = float(torch.as_tensor(attempt.t0).reshape(-1)[lane])
    sample = f", sample {int(attempt.problem.samples.sample_numbers(lane))}" if attempt.problem.batched else ""
    raise ValueError(
        f"value {value} of the event functions is {float(values[tuple(place)])} in the step from t={t0:.6g}{sample}: "
        "an event function must be a number along the solution, also a step past the event (clamp what it takes the "
        "log or root of)"
    )
