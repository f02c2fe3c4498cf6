"""EventLocator: finds the events within each step, and ends steps at them.

L is the number of samples of the solve, 1 in a joint solve; m the number of event values. The tensors of an
`EventLocator` have entries for all L samples; `rows` are the numbers of those in the current batch, and masks called
`samples` have an entry for each of these.
"""

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
from .landing import Candidate, Landing, assign, resolution
from .roots import RootQuery, Roots, first_roots
from .rounding import rounding_noise
from .step_values import (
    EventValues,
    StepValues,
    current_samples,
    first_signs,
    largest,
    per_sample,
    per_sample_values,
    raise_for_nonfinite,
)  # fmt: skip

_RATE_DISTANCE = 1e-3  # of a step: distance from a root at which the rate of the value is measured
_JUMP_DISTANCE = 1e-9  # of a step: a value that changes as much over it as over _RATE_DISTANCE jumps
_HUGE = 1e6  # times the initial state: a state beyond is blowing up, and event functions may fail for it


@dataclass(frozen=True)
class EventSet:
    """The events that a segment looks for.

    directions: +1, -1 or 0, (m,). active: values that are looked for, (L, m). first_on_tie: values that take
    precedence over others with a root at the same time, (L, m). signs: of the values at the start, (L, m); 0 stands for
    the sign of the first value that is larger than `noise_floor`, (L, m).
    """

    values: EventValues
    directions: Tensor
    active: Tensor
    first_on_tie: Tensor
    signs: Tensor
    noise_floor: Tensor

    def locator(self, p: Problem, try_step: TryStep) -> EventLocator:
        return EventLocator(p, self, try_step)


@final
class EventLocator:
    """Looks for an event in each accepted step; takes a step that has one again, to end at the event.

    Events are roots on the dense output; the ends of steps decide whether they exist, see `Landing`.

    signs, noise_floor, last_values: of the values at the start of the step, see `EventSet`, (L, m). signs_after: just
    after the event, (L, m). peaks: largest absolute values so far, (L, m). zero_tolerance, discontinuous, f_jumps,
    displacement: of the event, see `LocatedEvents`. scale: size of the event's value on its step, (L,). search_from,
    sign_from: after a predicted event did not exist, the search continues at this time, where the value has this sign
    on the dense output, (L, m).
    """

    def __init__(self, p: Problem, events: EventSet, try_step: TryStep) -> None:
        self.events, self.plain_step = events, try_step
        self.tracker: StopTracker | None = None
        assert p.f.segment_ends is not None  # see Problem.with_segment_ends
        self.segment_ends, self.linear = p.f.segment_ends, p.method.interpolation == "linear"
        like = p.direction.reshape(-1)
        self.rounding = 16 * max(torch.finfo(y.dtype).eps for y in p.y0)
        self.landing = Landing(like, self.rounding)
        self.zero_tolerance, self.scale = torch.zeros_like(like), torch.zeros_like(like)
        self.discontinuous = torch.zeros_like(like, dtype=torch.bool)
        self.f_jumps = torch.ones_like(self.discontinuous)
        self.signs, self.signs_after = events.signs.clone(), events.signs.clone()
        self.noise_floor = events.noise_floor.clone()
        self.peaks = torch.zeros_like(self.noise_floor)
        self.search_from = torch.full_like(self.noise_floor, torch.nan)
        self.sign_from = torch.zeros_like(self.noise_floor)
        self.displacement = tuple(torch.zeros_like(y.detach()) for y in p.y0)
        self.blow_up_size = _HUGE * max_abs(p.y0, p.batched).detach().reshape(-1).clamp(min=1.0)
        self.last_values = torch.where(self.noise_floor > 0, 0.0, self._values(p, p.ts[..., 0], p.y0))

    def supports_subset(self) -> bool:
        """Whether the event functions also work on a subset of the batch."""
        return self.events.values.supports_subset()

    @property
    def located(self) -> LocatedEvents:
        index = self.landing.value_index
        peak = self.peaks.gather(-1, index.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return LocatedEvents(
            self.landing.t, index, self.signs_after, self.zero_tolerance, peak, self.discontinuous, self.f_jumps,
            self.displacement,
        )  # fmt: skip

    def try_step(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
        rows = current_samples(p)
        if tracker is not self.tracker:  # samples have left the batch
            self.tracker, landing = tracker, self.landing.value_index[rows] >= 0
            if bool(landing.any()):
                tracker.set_event_stop(landing, s.stop, self.landing.t[rows])
        attempt, decision = self.plain_step(p, tracker, s)
        accept = per_sample(attempt.accept, p)
        landing = self.landing.value_index[rows] >= 0
        ends = accept & landing & per_sample(attempt.hit, p)
        # a state that is not finite is left to the loop: the solve is about to fail
        searched = accept & ~ends & all_finite(attempt.step.y, p.batched).reshape(-1)
        if bool(searched.any()):  # in the grad mode of the step, as outputs are made of the polynomial too
            attempt.searched = searched if p.batched else True
            if not self.linear:
                attempt.polynomial(attempt.searched)
        with torch.no_grad():
            cancelled = accept & landing & ~ends  # the step ended before the event, which is searched for again
            retry = torch.zeros_like(accept)
            if bool(ends.any()):
                retry, no_event = self._assess(p, attempt, ends, rows)
                cancelled, ends = cancelled | no_event, ends & ~retry & ~no_event
                retry = retry | no_event
            if bool(cancelled.any()):
                self._cancel_landing(tracker, s, cancelled, rows)
            if bool(searched.any()):
                retry = retry | self._search(p, attempt, searched, rows)
            if not bool(retry.any()):
                attempt.ends = ends if p.batched else bool(ends)
                return attempt, decision
            to_event = retry & (self.landing.value_index[rows] >= 0)
            if bool(to_event.any()):
                self._set_landing(tracker, s, to_event, rows)
            return _reject(p, s, attempt, decision, retry, ends)

    def _set_landing(self, tracker: StopTracker, s: State, samples: Tensor, rows: Tensor) -> None:
        """The next step of these samples ends at an event, where f is evaluated by its limit from before."""
        t, batched = self.landing.t, tracker.p.batched
        tracker.set_event_stop(samples if batched else True, s.stop, t[rows] if batched else float(t))
        self._set_segment_end(samples, rows, t)

    def _cancel_landing(self, tracker: StopTracker, s: State, samples: Tensor, rows: Tensor) -> None:
        tracker.clear_event_stop(samples if tracker.p.batched else True, s.stop)
        self.landing.value_index[rows[samples]] = -1
        self._set_segment_end(samples, rows, torch.full_like(self.landing.t, torch.nan))

    def _set_segment_end(self, samples: Tensor, rows: Tensor, t: Tensor) -> None:
        all_samples = torch.zeros_like(self.discontinuous).index_fill(0, rows[samples], True)
        t = torch.where(self.f_jumps, t, torch.nan)  # f needs no limit where it does not jump
        c = self.landing.candidate
        time_scale = torch.maximum(c.step_start.abs(), c.step_end.abs())
        self.segment_ends.set_end(all_samples, t, time_scale, self.displacement)

    def _assess(self, p: Problem, attempt: StepAttempt, samples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For steps of these samples that ended at predicted events: which to try again, and which have no event."""
        values = self._values(p, attempt.time1, attempt.step.y)
        index = self.landing.value_index[rows].clamp(min=0).unsqueeze(-1)
        value, c = values.gather(-1, index).squeeze(-1), self.landing.candidate

        def noise() -> Tensor:
            time, y = attempt.time1.detach(), tuple(x.detach() for x in attempt.step.y)
            y_scale = tuple(torch.maximum(a.detach().abs(), b.abs()) for a, b in zip(p.y0, y, strict=True))
            time_scale = torch.maximum(attempt.time0.detach().abs(), time.abs()).to(p.f.time_dtype)
            out = rounding_noise(lambda t, x: self._values(p, t, x), time, y, time_scale, y_scale)
            return out.gather(-1, index).squeeze(-1)

        landed = self.landing.assess(rows, samples, value, noise)
        least = self.rounding * self.scale[rows] + 1e-300
        zero = torch.where(torch.isnan(landed.noise), least, landed.noise + 1e-300)
        zero = torch.where(landed.jumped, least, 2 * value.abs() + zero)
        start, end, t = c.step_start[rows], c.step_end[rows], c.t[rows]
        moved = ((self.landing.t[rows] - t).abs() > _RATE_DISTANCE * (end - start).abs()).unsqueeze(-1)
        chosen = torch.arange(values.shape[-1], device=values.device) == index
        after = torch.where(moved & ~chosen & (values != 0), values.sign(), self.signs_after[rows])
        assign(self, rows, samples, discontinuous=landed.jumped, zero_tolerance=zero, signs_after=after)
        if bool(landed.no_event.any()):  # the step is searched again, from the predicted event on
            search_from = torch.where(chosen, t.unsqueeze(-1), self.search_from[rows])
            sign_from = torch.where(chosen, -c.sign[rows].unsqueeze(-1), self.sign_from[rows])
            assign(self, rows, landed.no_event, search_from=search_from, sign_from=sign_from)
        return landed.retry, landed.no_event

    def _search(self, p: Problem, attempt: StepAttempt, samples: Tensor, rows: Tensor) -> Tensor:
        """Search the accepted steps of these samples for their first event. Returns the mask of samples with one."""
        coefficients = self._own_polynomial(p, attempt) if self.linear else attempt.known_polynomial
        path = StepValues(self.events.values, p, attempt, coefficients)
        active = samples.unsqueeze(-1) & self.events.active[rows]
        first, last = self.last_values[rows], self._values(p, attempt.time1, attempt.step.y)
        values = torch.cat([first.unsqueeze(-1), path.at_points(nodes()[1:-1]), last.unsqueeze(-1)], -1)
        if bool((~torch.isfinite(values) & active.unsqueeze(-1)).any()):
            samples = samples & ~self._blows_up(p, attempt, values, active)
            active = active & samples.unsqueeze(-1)
        values = torch.where(torch.isfinite(values), values, 0.0)
        noise_floor = self.noise_floor[rows]
        t0, t1 = (per_sample(x, p).unsqueeze(-1) for x in (attempt.t0, attempt.t1))
        search_from = ((self.search_from[rows] - t0) / (t1 - t0)).nan_to_num(0.0)
        signs, left, loud_from = first_signs(path, values, self.signs[rows], noise_floor, active)
        points = node_points().to(values.device)
        noise = (points < loud_from.unsqueeze(-1)) & (values.abs() <= noise_floor.unsqueeze(-1))
        values = torch.where(noise, 0.0, values)
        at_end = t1 == p.ts.detach()[..., -1].reshape(-1, 1)  # event functions are not evaluated past the end

        def g(theta: Tensor, needed: Tensor) -> Tensor:
            out = path.at_own_points(torch.where(at_end, theta.clamp(max=1.0), theta), needed)
            raise_for_nonfinite(~torch.isfinite(out) & needed, out, attempt)
            return torch.where((theta < loud_from) & (out.abs() <= noise_floor), 0.0, out)

        sign = torch.where(search_from > 0, self.sign_from[rows], signs)
        query = RootQuery(
            self.events.directions,
            torch.where(active, sign, 0.0),
            torch.maximum(left, search_from),
            torch.maximum(loud_from, search_from),
        )
        roots = first_roots(g, values, query, self.rounding / 4)
        found = samples & torch.isfinite(roots.where.amin(-1))
        if bool(found.any()):
            self._begin_landing(p, path, attempt, rows, found, roots, signs, values)
        end, without = values[..., -1], samples & ~found
        assign(self, rows, without, signs=torch.where(end != 0, end.sign(), signs), last_values=end)
        nowhere = torch.full_like(search_from, torch.nan)
        assign(self, rows, without, noise_floor=torch.where(end != 0, 0.0, noise_floor), search_from=nowhere)
        until = torch.where(found, roots.where.amin(-1), 1.0)
        assign(self, rows, samples, peaks=torch.maximum(self.peaks[rows], largest(values, until)))
        return found

    def _begin_landing(
        self, p: Problem, path: StepValues, attempt: StepAttempt, rows: Tensor, found: Tensor, roots: Roots,
        signs: Tensor, values: Tensor,
    ) -> None:  # fmt: skip
        """Start landing on the first event of each sample in `found`: its time, and how its value changes there.

        signs: before the step, (L, m). values: at the nodes, (L, m, n).
        """
        where = roots.where
        first = where.amin(-1, keepdim=True)
        tied = where <= first
        priority = tied.to(torch.uint8) + (tied & self.events.first_on_tie[rows]).to(torch.uint8)
        index = priority.argmax(-1, keepdim=True)
        chosen, needed = torch.arange(where.shape[-1], device=where.device) == index, found.unsqueeze(-1)
        at = torch.where(torch.isfinite(first), first, 0.5).expand_as(where)
        at_root = path.at_own_points(at, needed.expand_as(chosen))
        before = torch.where(roots.rising, -1.0, 1.0)

        def beside(distance: float) -> tuple[Tensor, Tensor, Tensor]:
            low, high = (at - distance).clamp(min=0.0), (at + distance).clamp(max=1.0)
            return path.at_own_points(low, chosen & needed), path.at_own_points(high, chosen & needed), high - low

        below, above, width = beside(_RATE_DISTANCE)
        just_below, just_above, _ = beside(_JUMP_DISTANCE)
        jumps = (just_above - just_below).abs() > torch.maximum(above.abs(), below.abs()) / 2
        discontinuous = jumps | ((above == 0) & (at_root == 0) & (at < 1))
        # a value whose root comes later keeps its sign; one that is zero gets the first sign that it takes
        after = torch.where(at_root != 0, at_root.sign(), signs)
        after = torch.where(torch.isfinite(where), before, after)
        after = torch.where(chosen, torch.where(at_root == 0, 0.0, -before), after)
        t0, t1 = per_sample(attempt.t0, p), per_sample(attempt.t1, p)
        length = t1 - t0

        def pick(x: Tensor) -> Tensor:
            return x.gather(-1, index).squeeze(-1)

        # the event is at least the resolution after the start: the step that ends at it must not have length zero
        theta = first.squeeze(-1)
        t = t0 + length.sign() * torch.maximum(theta * length.abs(), resolution(t0, t1))
        sign, end = pick(before), pick(values[..., -1])
        # halfway to the event too, as the nodes may all lie past it
        size = torch.maximum(pick(largest(values, theta)), pick(path.at_own_points(at / 2, (chosen & needed))).abs())
        peaks = torch.where(chosen, torch.maximum(self.peaks[rows], size.unsqueeze(-1)), self.peaks[rows])
        assign(self, rows, found, signs_after=after, peaks=peaks, scale=pick(values.abs().amax(-1)))
        low, high = torch.where(pick(signs) == sign, t0, torch.nan), torch.where(end * sign > 0, torch.nan, t1)
        # a root that came later at the last event, and turned out to lie there, happens at once
        discontinuous = pick(discontinuous) | (
            (low == t0) & (pick(values[..., 0]) * sign <= 0) & (t == t0 + resolution(t0, t1) * length.sign())
        )
        rate = pick((above - below) / width) / length
        margin = self.landing.margin(t0, t1, rate, size, discontinuous) / length
        self._set_displacement(p, path, rows, found, theta, margin)
        self.landing.begin(rows, found, Candidate(
            index.squeeze(-1), t, t0, t1, t0 + pick(roots.since) * length, sign, low, high, rate, size, discontinuous
        ))  # fmt: skip

    def _set_displacement(
        self, p: Problem, path: StepValues, rows: Tensor, found: Tensor, theta: Tensor, margin: Tensor
    ) -> None:
        """Set `displacement`, along the dense output from theta by `margin`, and `f_jumps`."""
        if not p.batched:
            theta, margin = theta[0], margin[0]
        slope = path.slope(theta)
        displacement = scale(expand_over(margin, slope), slope)
        if p.batched:
            for full, x in zip(self.displacement, displacement, strict=True):
                full[rows[found]] = x[found]
        else:
            self.displacement = displacement
        if not p.f.random:  # two evaluations of a random f differ anyway
            f_jumps = path.f_jumps(theta, tuple(map(p.samples.take, self.displacement)), found)
            assign(self, rows, found, f_jumps=f_jumps)

    def _blows_up(self, p: Problem, attempt: StepAttempt, values: Tensor, active: Tensor) -> Tensor:
        """(L,): samples with a huge state, for which event functions may fail. Raises for other non-finite values."""
        huge = max_abs(attempt.step.y, p.batched).reshape(-1) > self.blow_up_size[current_samples(p)]
        active = active & ~huge.unsqueeze(-1)
        raise_for_nonfinite(~torch.isfinite(values) & active.unsqueeze(-1), values, attempt)
        return huge

    @staticmethod
    def _own_polynomial(p: Problem, attempt: StepAttempt) -> Coefficients:
        """The method's own dense output, which has two crossings in a step where a linear one has none."""
        before = p.f.calls
        coefficients = p.method.polynomial(attempt.input, attempt.step)
        attempt.search_calls = p.f.calls - before
        return coefficients

    def _values(self, p: Problem, t: Tensor, y: Leaves) -> Tensor:
        with torch.no_grad():
            return per_sample_values(self.events.values(t, y, p.samples.index), p.batched)


def _reject(
    p: Problem, s: State, attempt: StepAttempt, decision: Decision, retry: Tensor, ends: Tensor
) -> tuple[StepAttempt, Decision]:
    """The attempt, not accepted for these samples, and to be tried again from the same state of the controller."""
    if not p.batched:
        attempt.accept = attempt.ends = False
        return attempt, decision._replace(accept=False, h=s.h, state=s.controller_state)
    accept = attempt.accept & ~retry
    attempt.accept, attempt.ends = accept, ends & ~retry
    state = tuple(torch.where(retry, old, new) for old, new in zip(s.controller_state, decision.state, strict=True))
    return attempt, decision._replace(accept=accept, h=torch.where(retry, s.h, decision.h), state=state)
