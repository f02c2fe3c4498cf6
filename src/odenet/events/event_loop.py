"""EventLoop: a solve with events, segment by segment.

A segment is an ordinary solve from one event to the next. Its initial state and time are those after the event,
attached to everything that they depend on, so every kind of gradient works by the chain rule. Per sample all samples
take part in each segment; those that have ended have an empty time span there, which costs nothing
(engine/compaction.py). L is the number of samples, 1 in a joint solve; m the number of event values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.leaves import Leaves, flatten_samples, select
from ..core.pytrees import tree_map
from ..core.scalars import MaskLike
from ..core.status import Status
from ..engine.batch_index import with_placeholder
from ..engine.dense_solution import JoinedInterpolation
from ..engine.integrate import Progress, Request
from ..engine.loop import LocatedEvents, Outcome
from ..engine.output_recorder import OutputBuffer
from ..engine.problem import Problem, direction_of
from ..engine.step_attempt import State
from ..errors import SolveError
from ..gradients.failed_samples import detach_failed, freeze_failed, succeeded
from ..gradients.gradient import COUNTS, Stats, Trajectory
from .event import Event, Hit, stacked_hits
from .event_functions import EventFunctions
from .locator import EventSet
from .rounding import rounding_noise
from .step_values import per_sample_values

Run = Callable[[Problem, Request], Trajectory]
"""One differentiable solve; raises its failure where failures are to be raised."""

FailurePolicy = Callable[[Problem, Outcome], None]
"""Refines the status of failed samples; raises their failure where failures are to be raised."""

_F_JUMP = 1e-6  # relative difference of f on both sides of an event from which on f jumps there
_GAPS = 4  # between successive hits of one event, each shorter than the one before where events pile up


class Segment(NamedTuple):
    """One solve between events: from `start` to `end`, (L,), for the samples in the mask `active`, (L,)."""

    trajectory: Trajectory
    start: Tensor
    end: Tensor
    active: Tensor


class EventLoop:
    """Solves p from event to event.

    hit_counts: (L, number of events), of each sample and event. cursor: (L,), number of outputs collected. last_times:
    (L, m, _GAPS + 1), of the last hits of each event value. peaks: (L, m), largest absolute values so far.
    """

    def __init__(
        self, p: Problem, events: list[Event], args: tuple[Any, ...], run: Run, failure_policy: FailurePolicy,
        request: Request,
    ) -> None:  # fmt: skip
        self.p, self.run, self.failure_policy, self.request = p, run, failure_policy, request
        self.functions = EventFunctions(events, p, args)
        self.rule = p.stops.rule.resolve(p.ts)
        count, device = len(self.per_sample(p.direction)), p.ts.device
        owners: list[int] = self.functions.event_of_value.tolist()
        self.hit_counts = torch.zeros((count, len(events)), dtype=torch.int64, device=device)
        self.max_hits = torch.tensor([e.max_hits or 2**62 for e in events], device=device)
        self.resets = torch.tensor([e.reset is not None for e in events], device=device)
        self.last_hit = torch.tensor([e.last_hit for e in events], device=device)
        self.directions = torch.tensor([events[i].direction for i in owners], device=device)
        self.cursor = torch.zeros(count, dtype=torch.int64, device=device)
        self.last_times = torch.full((count, len(owners), _GAPS + 1), torch.nan, dtype=p.ts.dtype, device=device)
        self.peaks = torch.zeros((count, len(owners)), dtype=p.ts.dtype, device=device)
        self.outputs, self.progress = OutputBuffer(), 0.0
        self.segments: list[Segment] = []
        self.hits: list[Hit] = []

    def per_sample(self, x: Any) -> Tensor:
        """(L,): a number for each sample, or that of a joint solve, as a tensor."""
        return torch.as_tensor(x, device=self.p.ts.device).reshape(-1)

    def mask(self, samples: Tensor) -> MaskLike:
        """A mask (L,) as the engine has it: a bool in a joint solve."""
        return samples if self.p.batched else bool(samples)

    def solve(self) -> tuple[Trajectory, Hit | None, Hit]:
        """The solution; the last hit of each sample (None in a joint solve without hits); all hits."""
        zeros = tuple(torch.zeros_like(y.detach()) for y in self.p.y0)
        p = self.p.with_segment_ends(None, self.p.direction, zeros)
        active = torch.ones_like(self.cursor, dtype=torch.bool)
        signs = per_sample_values(self.functions.initial_values, self.p.batched).sign()
        noise_floor, attempts = torch.zeros_like(signs), torch.zeros_like(self.cursor)
        state: State | None = None
        while True:
            segment = self._solve_segment(p, active, signs, noise_floor)
            outcome, y1 = segment.trajectory.outcome, segment.trajectory.y1
            state = self._merge(state, outcome.state, segment)
            attempts = attempts + self.per_sample(outcome.accepted + outcome.rejected)
            events = outcome.events
            assert events is not None
            happened = active & (events.value_index >= 0) & (self.per_sample(outcome.state.status) == Status.EVENT)
            if not bool(happened.any()):
                break
            which, time, y = self._record_hits(p, events, happened, y1)
            ended = self.hit_counts.gather(-1, which.clamp(min=0).unsqueeze(-1)).squeeze(-1) >= self.last_hit[which]
            piled = self._pile_up(events, happened & self.resets[which], time, y1) & ~ended
            stopped, active = happened & (ended | piled), happened & ~ended & ~piled
            state = self._at_events(state, stopped, time, y)
            if bool(piled.any()):
                status = torch.where(piled, int(Status.PILE_UP), self.per_sample(state.status))
                state = state._replace(status=status if self.p.batched else int(status))
                self.failure_policy(p, replace(outcome, state=state))
            if not bool(active.any()):
                break
            time, after, signs, noise_floor = self._after_events(p, events, active, which, y1, time, y)
            state = self._at_events(state, active, time, after)
            displacement = self._displacement(events, y, after)
            attempts_before = attempts if self.p.batched else int(attempts)
            p = self._next_problem(p, active, time, after, attempts_before, displacement)
        return self._result(state)

    def _solve_segment(self, p: Problem, active: Tensor, signs: Tensor, noise_floor: Tensor) -> Segment:
        owner = self.functions.event_of_value
        active_values = (self.hit_counts < self.max_hits)[:, owner] & active.unsqueeze(-1)
        ending = (self.hit_counts + 1 >= self.last_hit)[:, owner]
        events = EventSet(self.functions, self.directions, active_values, ending, signs, noise_floor)
        request = replace(self.request, events=events, progress=self._progress(p))
        try:
            trajectory = self.run(p, request)
        except SolveError as error:
            if self.hits:
                last = float(self.hits[-1].t.detach().reshape(-1).nan_to_num(-torch.inf).max())
                error.add_note(f"{len(self.hits)} events had happened before, the last one at t={last:.9g}.")
            raise
        end = self.per_sample(trajectory.outcome.state.time.detach())
        segment = Segment(trajectory, self.per_sample(p.ts.detach()[..., 0]), end, active)
        self._collect_outputs(segment)
        self.segments.append(segment)
        return segment

    def _collect_outputs(self, segment: Segment) -> None:
        """Collect the outputs of a segment. Its times are its start, except in the first, and those still to come."""
        ts, offset = self.p.ts.detach(), 1 if self.segments else 0
        if not self.p.batched:
            first = int(self.cursor)
            reached = int((((ts - segment.end) * self.p.direction) <= 0).sum())
            if reached > first:
                ys = tuple(y[offset : offset + reached - first] for y in segment.trajectory.ys)
                self.outputs.append(slice(first, reached), ys)
                self.cursor[0] = reached
            return
        index = torch.arange(ts.shape[1], device=ts.device)
        reached = (ts - segment.end.unsqueeze(1)) * self.p.direction.unsqueeze(1) <= 0
        new = reached & (index >= self.cursor.unsqueeze(1)) & segment.active.unsqueeze(1)
        sample, j = new.nonzero(as_tuple=True)
        column = offset + j - self.cursor[sample]
        self.outputs.append((sample, j), tuple(y[sample, column] for y in segment.trajectory.ys))
        self.cursor = torch.where(segment.active, torch.maximum(self.cursor, reached.sum(1)), self.cursor)

    def _record_hits(
        self, p: Problem, events: LocatedEvents, happened: Tensor, y1: Leaves
    ) -> tuple[Tensor, Tensor, Leaves]:
        """Record a `Hit`. Returns the number of the event, (L,), -1 for none; its time; the state there, attached."""
        index = torch.where(happened, events.value_index, -1)
        which = torch.where(happened, self.functions.event_of_value[index.clamp(min=0)], -1)
        self.hit_counts.scatter_add_(1, which.clamp(min=0).unsqueeze(-1), happened.unsqueeze(-1).long())
        end = torch.where(happened, events.t, self.segments[-1].end)
        if self.p.batched:
            time, y = self.functions.at_event(p.f, index, end, y1)
            nan = tuple(torch.full_like(x, torch.nan) for x in y1)
            hit_time, hit_y = torch.where(happened, time, torch.nan), select(happened, y, nan)
            self.hits.append(Hit(which, hit_time, self.p.f.pack(hit_y)))
        else:
            time, y = self.functions.at_event(p.f, index[0], end[0], y1)
            self.hits.append(Hit(int(which), time, self.p.f.pack(y)))
        return which, time, y

    def _pile_up(self, events: LocatedEvents, happened: Tensor, time: Tensor, y: Leaves) -> Tensor:
        """(L,): samples whose hits of one event accumulate at a time before the end, past which is no solution.

        That time follows from the ratio of the gaps between hits. It is trusted once the peak of the event value
        between hits comes near the rounding errors of its earlier peaks, or of what it is computed from.
        """
        piled, index = torch.zeros_like(happened), happened.nonzero()[:, 0]
        at = index, events.value_index[index]
        self.last_times[at] = torch.cat([self.last_times[at][:, 1:], events.t[index].unsqueeze(1)], 1)
        self.peaks[at] = torch.maximum(self.peaks[at], events.peak[index])
        gaps = self.last_times[at].diff(dim=1).abs()
        ratios = gaps[:, 1:] / gaps[:, :-1]
        ratio = ratios.mean(1)
        end = self.per_sample(self.p.ts.detach()[..., -1])[index]
        remaining = gaps[:, -1] * ratio / (1 - ratio)
        shrinks = (ratios.amax(1) < 0.999) & (remaining < (end - events.t[index]).abs())
        if bool(shrinks.any()):
            small = min(1e-2, 1e4 * max(torch.finfo(d).eps for d in self.p.f.dtypes)) * self.peaks[at]
            no_time_scale = torch.zeros_like(time.detach())
            rounding = rounding_noise(self.functions, time.detach(), y, no_time_scale, y).reshape(len(happened), -1)[at]
            piled[index] = shrinks & (events.peak[index] < torch.maximum(small, 256 * rounding))
        return piled

    def _after_events(
        self, p: Problem, events: LocatedEvents, active: Tensor, which: Tensor, y1: Leaves, time: Tensor, y: Leaves
    ) -> tuple[Tensor, Leaves, Tensor, Tensor]:
        """Time and state from which the next segment starts, and signs and noise floor there; see `EventSet`.

        An event that resets nothing leaves the solution as it is: the next segment starts at a constant time unless f
        jumps at the event.
        """
        resets = self.resets[which] & active
        moving = self.mask(resets | self._f_jumps(p, events, active & ~resets, y1, time))
        start = select(moving, y, y1)
        if isinstance(moving, Tensor):
            time = torch.where(moving, time, time.detach())
        elif not moving:
            time = time.detach()
        for number in sorted(set(which[resets].tolist())):
            start = self.functions.reset(number, resets & (which == number), time, start)
        signs, index = events.signs.clone(), events.value_index.clamp(min=0).unsqueeze(-1)
        noise_floor = torch.zeros_like(signs).scatter(-1, index, events.zero_tolerance.unsqueeze(-1))
        if bool(resets.any()):
            with torch.no_grad():
                before, after = (per_sample_values(self.functions(time, x), self.p.batched) for x in (y, start))
            unknown = (noise_floor > 0) & ((after.abs() <= noise_floor) | events.discontinuous.unsqueeze(-1))
            unchanged = (after == before) & (noise_floor == 0)
            new_signs = torch.where(unknown, 0.0, torch.where(unchanged, signs, after.sign()))
            signs = torch.where(resets.unsqueeze(-1), new_signs, signs)
            noise_floor = torch.where(resets.unsqueeze(-1) & ~unknown, 0.0, noise_floor)
        return time, start, signs, noise_floor

    @torch.no_grad()
    def _f_jumps(self, p: Problem, events: LocatedEvents, samples: Tensor, y: Leaves, time: Tensor) -> Tensor:
        """The samples in which f jumps at the event, so that the solution after it depends on the time of the event."""
        samples = samples & events.f_jumps
        if not time.requires_grad or not bool(samples.any()):
            return torch.zeros_like(samples)
        time, y = time.detach(), tuple(x.detach() for x in y)
        f_after = self.p.with_segment_ends(time, time.abs(), events.displacement).f
        jumps = torch.zeros_like(samples)
        for a, b in zip(p.f(time, y), f_after(time, y), strict=True):
            differs = (a - b).abs() > _F_JUMP * torch.maximum(a.abs(), b.abs())
            jumps = jumps | (flatten_samples(differs).any(1) if self.p.batched else differs.any())
        return samples & jumps

    def _displacement(self, events: LocatedEvents, before: Leaves, after: Leaves) -> Leaves:
        """From states after the events to states just past them on the solution; zero where a reset changed them."""
        zeros = tuple(torch.zeros_like(x) for x in events.displacement)
        same = [
            (flatten_samples(a == b).all(1) if self.p.batched else (a == b).all())
            for a, b in zip(before, after, strict=True)
        ]
        return select(self.mask(torch.stack(same).all(0)), events.displacement, zeros)

    def _next_problem(
        self, before: Problem, active: Tensor, time: Tensor, y: Leaves, attempts: int | Tensor, displacement: Leaves
    ) -> Problem:
        """The problem of the next segment. Samples that have ended get a placeholder and an empty time span."""
        p = self.p
        if p.batched:
            last = p.ts.shape[1] - 1
            width = max(1, int((last + 1 - self.cursor[active]).max()))
            index = self.cursor.unsqueeze(1) + torch.arange(width, device=p.ts.device)
            ts = torch.cat([time.unsqueeze(1), p.ts.gather(1, index.clamp(max=last))], 1)
            time, y = with_placeholder(active, time, y)
            ts = torch.where(active.unsqueeze(1), ts, time.unsqueeze(1))
        else:
            ts = torch.cat([time.reshape(1), p.ts[min(int(self.cursor), len(p.ts) - 1) :]])
        direction = direction_of(ts)
        stops = self.rule.stop_times(ts, direction)
        following = replace(p, y0=y, ts=ts, stops=stops, direction=direction, attempts_before=attempts)
        start = ts.detach()[..., 0]
        time_scale = torch.maximum(start.abs(), before.ts.detach()[..., 0].abs())
        return following.with_segment_ends(start, time_scale, displacement)

    def _merge(self, state: State | None, s: State, segment: Segment) -> State:
        """The last state of every sample after a segment: s for those that took part in it."""
        s = s._replace(y=segment.trajectory.y1)
        if state is None or not self.p.batched:
            return s
        new = segment.active
        pairs = ((s.t, state.t), (s.h, state.h), (s.status, state.status))
        t, h, status = (torch.where(new, torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        return self._at_events(state, new, s.time, s.y)._replace(t=t, h=h, status=status)

    def _at_events(self, state: State, samples: Tensor, time: Tensor, y: Leaves) -> State:
        """The state with this time and y for these samples."""
        mask = self.mask(samples)
        new_time = torch.where(mask, time, state.time) if isinstance(mask, Tensor) else time if mask else state.time
        return state._replace(y=select(mask, y, state.y), time=new_time)

    def _result(self, state: State) -> tuple[Trajectory, Hit | None, Hit]:
        stats = Stats.summed([segment.trajectory.stats for segment in self.segments])
        last = self.segments[-1].trajectory.outcome
        outcome = Outcome(state, **{key: stats[key] for key in COUNTS}, events=last.events)
        ys = self.outputs.assemble(self.p.ts, torch.nan)
        dense = pieces = None
        if self.request.dense:
            dense, pieces = self._joined(lambda x: x.dense), self._joined(lambda x: x.dense_values)
        time = self.p.ts.detach()[..., 0]
        hits = stacked_hits(self.hits, self.p.f.pack(self.p.y0), self.p.batched, time)
        good = succeeded(self.p, state.status)
        if good is not None:
            hits = tree_map(lambda x: detach_failed(good, (x,))[0], hits)
        trajectory = freeze_failed(self.p, Trajectory(ys, state.y, dense, outcome, stats, pieces))
        return trajectory, self._last_hit(hits), hits

    def _last_hit(self, hits: Hit) -> Hit | None:
        if not self.p.batched:
            return self.hits[-1] if self.hits else None
        if not self.hits:
            which = torch.full_like(self.cursor, -1)
            nan = tuple(torch.full_like(y, torch.nan) for y in self.p.y0)
            return Hit(which, torch.full_like(self.p.direction, torch.nan), self.p.f.pack(nan))
        samples, count = torch.arange(len(self.cursor), device=self.cursor.device), self.hit_counts.sum(1)
        index = (samples, (count - 1).clamp(min=0))  # a sample without hits has NaN in its first
        return Hit(hits.which[index], hits.t[index], tree_map(lambda y: y[index], hits.y))

    def _joined(self, dense: Callable[[Trajectory], Any]) -> JoinedInterpolation:
        return JoinedInterpolation(
            [dense(segment.trajectory) for segment in self.segments],
            torch.stack([segment.start for segment in self.segments]),
            torch.stack([segment.end for segment in self.segments]),
            torch.stack([segment.active for segment in self.segments]),
            self.p.direction,
            self.p.batched,
        )

    def _progress(self, p: Problem) -> Progress | None:
        """The caller's progress function for a segment: with the fraction and the counts of the whole solve."""
        report = self.request.progress
        if report is None:
            return None
        segment, total = ((q.ts[..., -1] - q.ts[..., 0]).detach().abs() for q in (p, self.p))
        remaining = float((segment / total.clamp(min=1e-300)).max())
        stats = [segment.trajectory.stats for segment in self.segments]
        before = {k: sum(int(self.per_sample(s[k]).sum()) for s in stats) for k in ("accepted", "rejected")}

        def segment_progress(fraction: float, counts: dict[str, int]) -> None:
            # a segment starts where the last one ended, but for rounding
            self.progress = max(self.progress, 1.0 - remaining * (1.0 - fraction))
            report(self.progress, counts | {k: counts[k] + n for k, n in before.items()})

        return segment_progress
