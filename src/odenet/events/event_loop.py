"""A solve with events: one solve from each event to the next, joined.

Each is an ordinary solve, from the state after the event and from its time, both attached to what decides them: so
every gradient comes by the chain rule, whatever its kind. Per sample all take part in each solve, those that have come
to their end with one of no length, which costs nothing (engine/compaction.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.leaves import Leaves, rows, select
from ..core.pytrees import tree_map
from ..core.scalars import MaskLike, where
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
from .event import Event, EventFunctions, Hit, stacked_hits
from .locator import EventSet
from .rounding import noise
from .step_values import as_lanes

Run = Callable[[Problem, Request], Trajectory]
"""One solve, differentiable; raises its failure where that is asked for."""

Judge = Callable[[Problem, Outcome], None]
"""Gives failures their causes; raises them where that is asked for."""

_BEND = 1e-6  # of f: what differs by more on both sides of an event jumps there
_GAPS = 4  # between events of one kind, each shorter than the one before where they pile up


class Segment(NamedTuple):
    """One of the solves: from `start` to `end`, lanes, of those samples that were `going`."""

    trajectory: Trajectory
    start: Tensor
    end: Tensor
    active: Tensor


class EventLoop:
    """Solves p from event to event."""

    def __init__(
        self, p: Problem, events: list[Event], args: tuple[Any, ...], run: Run, judge: Judge, request: Request
    ) -> None:
        self.p, self.run, self.judge, self.request = p, run, judge, request
        self.functions = EventFunctions(events, p, args)
        self.rule = p.stops.rule.made_of(p.ts)
        lanes, device = self.lanes(p.direction), p.ts.device
        count = len(lanes)
        self.counts = torch.zeros((count, len(events)), dtype=torch.int64, device=device)
        self.most = torch.tensor([e.max_hits or 2**62 for e in events], device=device)
        self.resets = torch.tensor([e.reset is not None for e in events], device=device)
        self.last_hit = torch.tensor([e.last_hit for e in events], device=device)
        self.directions = torch.tensor(
            [events[i].direction for i in self.functions.event_of_value.tolist()], device=device
        )
        self.cursor = torch.zeros(count, dtype=torch.int64, device=device)  # outputs given
        self.times = torch.full((count, len(self.directions), _GAPS + 1), torch.nan, dtype=p.ts.dtype, device=device)
        self.peaks = torch.zeros((count, len(self.directions)), dtype=p.ts.dtype, device=device)
        self.collected = OutputBuffer()
        self.segments: list[Segment] = []
        self.hits: list[Hit] = []

    def lanes(self, x: Any) -> Tensor:
        """A number of each lane as a tensor (L,)."""
        return torch.as_tensor(x, device=self.p.ts.device).reshape(-1)

    def flag(self, lanes: Tensor) -> MaskLike:
        """Flags of lanes (L,) as the engine has them: of a joint solve on the host."""
        return lanes if self.p.batched else bool(lanes)

    def solve(self) -> tuple[Trajectory, Hit | None, Hit]:
        """The solution, the last hit of each sample (None where a joint solve has none), and all hits."""
        still = tuple(torch.zeros_like(y.detach()) for y in self.p.y0)
        p, going = (
            self.p.with_segment_ends(None, self.p.direction, still),
            torch.ones_like(self.cursor, dtype=torch.bool),
        )
        signs = as_lanes(self.functions.initial_values, self.p.batched).sign()
        quiet, spent = torch.zeros_like(signs), torch.zeros_like(self.cursor)
        whole: State | None = None
        while True:
            leg = self._solve(p, going, signs, quiet)
            outcome = leg.trajectory.outcome
            whole = self._joined(whole, outcome.state, leg)
            spent = spent + self.lanes(outcome.accepted + outcome.rejected)
            found = outcome.events
            assert found is not None
            happened = going & (found.index >= 0) & (self.lanes(outcome.state.status) == Status.EVENT)
            if not bool(happened.any()):
                break
            which, time, there = self._note(p, found, happened, leg.trajectory.y1)
            ended = self.counts.gather(-1, which.clamp(min=0).unsqueeze(-1)).squeeze(-1) >= self.last_hit[which]
            piled = self._piled_up(found, happened & self.resets[which], time, leg.trajectory.y1) & ~ended
            stays, going = happened & (ended | piled), happened & ~ended & ~piled
            whole = self._at_events(whole, stays, time, there)
            if bool(piled.any()):
                status = torch.where(piled, int(Status.PILE_UP), self.lanes(whole.status))
                whole = whole._replace(status=status if self.p.batched else int(status))
                self.judge(p, replace(outcome, state=whole))
            if not bool(going.any()):
                break
            time, y, signs, quiet = self._after(p, found, going, which, leg.trajectory.y1, time, there)
            whole = self._at_events(whole, going, time, y)
            p = self._next(p, going, time, y, spent if self.p.batched else int(spent), self._onwards(found, there, y))
        return self._whole(whole)

    def _solve(self, p: Problem, going: Tensor, signs: Tensor, quiet: Tensor) -> Segment:
        wanted = (self.counts < self.most)[:, self.functions.event_of_value] & going.unsqueeze(-1)
        ending = (self.counts + 1 >= self.last_hit)[:, self.functions.event_of_value]
        events = EventSet(self.functions, self.directions, wanted, ending, signs, quiet)
        request = replace(self.request, events=events, progress=self._progress(p))
        try:
            found = self.run(p, request)
        except SolveError as error:
            if self.hits:
                last = self.hits[-1]
                error.add_note(
                    f"{len(self.hits)} events had happened before, the last one at t="
                    f"{float(last.t.detach().reshape(-1).nan_to_num(-torch.inf).max()):.9g}."
                )
            raise
        leg = Segment(found, self.lanes(p.ts.detach()[..., 0]), self.lanes(found.outcome.state.time.detach()), going)
        self._keep_outputs(p, leg)
        self.segments.append(leg)
        return leg

    def _keep_outputs(self, p: Problem, leg: Segment) -> None:
        """The outputs of a solve that are asked for: its times are the start and those still to come."""
        ts, offset = self.p.ts.detach(), 1 if self.segments else 0
        if not self.p.batched:
            first = int(self.cursor)
            reached = int((((ts - leg.end) * self.p.direction) <= 0).sum())
            if reached > first:
                rows = slice(first, reached)
                self.collected.append(rows, tuple(y[offset : offset + reached - first] for y in leg.trajectory.ys))
                self.cursor[0] = reached
            return
        index = torch.arange(ts.shape[1], device=ts.device)
        reached = (ts - leg.end.unsqueeze(1)) * self.p.direction.unsqueeze(1) <= 0
        lane, j = (reached & (index >= self.cursor.unsqueeze(1)) & leg.active.unsqueeze(1)).nonzero(as_tuple=True)
        column = offset + j - self.cursor[lane]
        self.collected.append((lane, j), tuple(y[lane, column] for y in leg.trajectory.ys))
        self.cursor = torch.where(leg.active, torch.maximum(self.cursor, reached.sum(1)), self.cursor)

    def _note(self, p: Problem, found: LocatedEvents, happened: Tensor, y1: Leaves) -> tuple[Tensor, Tensor, Leaves]:
        """Write the hits down: which event each is (-1: none), its time and the state there, attached."""
        value = torch.where(happened, found.index, -1)
        which = torch.where(happened, self.functions.event_of_value[value.clamp(min=0)], -1)
        self.counts.scatter_add_(1, which.clamp(min=0).unsqueeze(-1), happened.unsqueeze(-1).long())
        end = torch.where(happened, found.t, self.segments[-1].end)
        if self.p.batched:
            time, there = self.functions.at_event(p.f, value, end, y1)
            nan = tuple(torch.full_like(y, torch.nan) for y in y1)
            shown = torch.where(happened, time, torch.nan), select(happened, there, nan)
            self.hits.append(Hit(which, shown[0], self.p.f.pack(shown[1])))
        else:
            time, there = self.functions.at_event(p.f, value[0], end[0], y1)
            self.hits.append(Hit(int(which), time, self.p.f.pack(there)))
        return which, time, there

    def _piled_up(self, found: LocatedEvents, happened: Tensor, time: Tensor, y: Leaves) -> Tensor:
        """Lanes of which events of one kind tend towards a time before the end.

        Beyond it there is no solution. That time is told from the ratio of gaps, when what the event function reaches
        between them comes near the rounding errors of what it has been, or of what it is computed from.
        """
        piled, rows = torch.zeros_like(happened), happened.nonzero()[:, 0]
        value = found.index[rows]
        self.times[rows, value] = torch.cat([self.times[rows, value, 1:], found.t[rows].unsqueeze(1)], 1)
        self.peaks[rows, value] = torch.maximum(self.peaks[rows, value], found.peak[rows])
        gaps = self.times[rows, value].diff(dim=1).abs()
        ratios = gaps[:, 1:] / gaps[:, :-1]
        ratio = ratios.mean(1)
        end = self.lanes(self.p.ts.detach()[..., -1])[rows]
        left = gaps[:, -1] * ratio / (1 - ratio)
        shrinks = (ratios.amax(1) < 0.999) & (left < (end - found.t[rows]).abs())
        if bool(shrinks.any()):
            small = min(1e-2, 1e4 * max(torch.finfo(d).eps for d in self.p.f.dtypes)) * self.peaks[rows, value]
            still = torch.zeros_like(time.detach())
            rounding = noise(self.functions, time.detach(), y, still, y).reshape(len(happened), -1)[rows, value]
            piled[rows] = shrinks & (found.peak[rows] < torch.maximum(small, 256 * rounding))
        return piled

    def _after(
        self, p: Problem, found: LocatedEvents, going: Tensor, which: Tensor, y1: Leaves, time: Tensor, there: Leaves
    ) -> tuple[Tensor, Leaves, Tensor, Tensor]:
        """Time and state to go on from, and the signs of all values there; see `EventSet`.

        An event that resets nothing leaves the solution as it is: it goes on from its fixed time, if f does not jump.
        """
        resets = self.resets[which] & going
        attempts, fixed = resets | self._bends(p, found, going & ~resets, y1, time), time.detach()
        y, time = select(self.flag(attempts), there, y1), where(self.flag(attempts), time, fixed)
        for number in sorted(set(which[resets].tolist())):
            y = self.functions.reset(number, resets & (which == number), time, y)
        signs, value = found.signs.clone(), found.index.clamp(min=0).unsqueeze(-1)
        quiet = torch.zeros_like(signs).scatter(-1, value, found.zero_tolerance.unsqueeze(-1))
        if bool(resets.any()):
            with torch.no_grad():
                before, after = (as_lanes(self.functions(time, x), self.p.batched) for x in (there, y))
            unknown = (quiet > 0) & ((after.abs() <= quiet) | found.discontinuous.unsqueeze(-1))
            fresh = torch.where(unknown, 0.0, torch.where((after == before) & (quiet == 0), signs, after.sign()))
            signs = torch.where(resets.unsqueeze(-1), fresh, signs)
            quiet = torch.where(resets.unsqueeze(-1) & ~unknown, 0.0, quiet)
        return time, y, signs, quiet

    @torch.no_grad()
    def _bends(self, p: Problem, found: LocatedEvents, lanes: Tensor, y: Leaves, time: Tensor) -> Tensor:
        """Those of these lanes in which f jumps at the event, so that what follows moves with its time."""
        lanes = lanes & found.f_jumps
        if not time.requires_grad or not bool(lanes.any()):
            return torch.zeros_like(lanes)
        time, y = time.detach(), tuple(x.detach() for x in y)
        after = self.p.with_segment_ends(time, time.abs(), found.displacement).f
        jump = torch.zeros_like(lanes)
        for a, b in zip(p.f(time, y), after(time, y), strict=True):
            apart = (a - b).abs() > _BEND * torch.maximum(a.abs(), b.abs())
            jump = jump | (rows(apart).any(1) if self.p.batched else apart.any())
        return lanes & jump

    def _onwards(self, found: LocatedEvents, there: Leaves, y: Leaves) -> Leaves:
        """What leads from the states after events just past them; nothing where a reset has led elsewhere."""
        still = tuple(torch.zeros_like(x) for x in found.displacement)
        same = [(rows(a == b).all(1) if self.p.batched else (a == b).all()) for a, b in zip(there, y, strict=True)]
        same = torch.stack(same).all(0)
        return select(self.flag(same), found.displacement, still)

    def _next(self, before: Problem, going: Tensor, time: Tensor, y: Leaves, spent: Any, onwards: Leaves) -> Problem:
        """The problem from here on; samples that have ended stand still, beside one that goes on."""
        p = self.p
        if p.batched:
            last = p.ts.shape[1] - 1
            width = max(1, int((last + 1 - self.cursor[going]).max()))
            index = self.cursor.unsqueeze(1) + torch.arange(width, device=p.ts.device)
            ts = torch.cat([time.unsqueeze(1), p.ts.gather(1, index.clamp(max=last))], 1)
            time, y = with_placeholder(going, time, y)
            ts = torch.where(going.unsqueeze(1), ts, time.unsqueeze(1))
        else:
            ts = torch.cat([time.reshape(1), p.ts[min(int(self.cursor), len(p.ts) - 1) :]])
        direction = direction_of(ts)
        stops = self.rule.within(ts, direction)
        built = replace(p, y0=y, ts=ts, stops=stops, direction=direction, attempts_before=spent)
        start = ts.detach()[..., 0]
        return built.with_segment_ends(start, torch.maximum(start.abs(), before.ts.detach()[..., 0].abs()), onwards)

    def _joined(self, whole: State | None, s: State, leg: Segment) -> State:
        """Where all lanes stand, after a solve of some of them."""
        s = s._replace(y=leg.trajectory.y1)
        if whole is None or not self.p.batched:
            return s
        on = leg.active
        t, h, status = (torch.where(on, a, b) for a, b in ((s.t, whole.t), (s.h, whole.h), (s.status, whole.status)))
        return self._at_events(whole, on, s.time, s.y)._replace(t=t, h=h, status=status)

    def _at_events(self, whole: State, lanes: Tensor, time: Tensor, y: Leaves) -> State:
        """The state with these lanes standing at events."""
        on = self.flag(lanes)
        return whole._replace(y=select(on, y, whole.y), time=where(on, time, whole.time))

    def _whole(self, whole: State) -> tuple[Trajectory, Hit | None, Hit]:
        stats = Stats.joined([leg.trajectory.stats for leg in self.segments])
        last = self.segments[-1].trajectory.outcome
        outcome = Outcome(whole, **{key: stats[key] for key in COUNTS}, events=last.events)
        ys = self.collected.assemble(self.p.ts, torch.nan)
        dense = pieces = None
        if self.request.dense:
            dense, pieces = self._along(lambda found: found.dense), self._along(lambda found: found.pieces)
        time = self.p.ts.detach()[..., 0]
        hits = stacked_hits(self.hits, self.p.f.pack(self.p.y0), self.p.batched, time)
        good = succeeded(self.p, whole.status)
        if good is not None:
            hits = tree_map(lambda x: detach_failed(good, (x,))[0], hits)
        return freeze_failed(self.p, Trajectory(ys, whole.y, dense, outcome, stats, pieces)), self._last(hits), hits

    def _last(self, hits: Hit) -> Hit | None:
        if not self.p.batched:
            return self.hits[-1] if self.hits else None
        if not self.hits:
            which = torch.full_like(self.cursor, -1)
            nan = tuple(torch.full_like(y, torch.nan) for y in self.p.y0)
            return Hit(which, torch.full_like(self.p.direction, torch.nan), self.p.f.pack(nan))
        rows, count = torch.arange(len(self.cursor), device=self.cursor.device), self.counts.sum(1)
        place = (rows, (count - 1).clamp(min=0))  # the first of a sample without hits is NaN
        return Hit(hits.which[place], hits.t[place], tree_map(lambda y: y[place], hits.y))

    def _along(self, dense: Callable[[Trajectory], Any]) -> JoinedInterpolation:
        start, end, going = (
            torch.stack([getattr(leg, key) for leg in self.segments]) for key in ("start", "end", "active")
        )
        return JoinedInterpolation(
            [dense(leg.trajectory) for leg in self.segments], start, end, going, self.p.direction, self.p.batched
        )

    def _progress(self, p: Problem) -> Progress | None:
        report = self.request.progress
        if report is None or p is self.p:
            return report
        left, whole = ((q.ts[..., -1] - q.ts[..., 0]).detach().abs() for q in (p, self.p))
        rest = float((left / whole.clamp(min=1e-300)).max())
        stats = [leg.trajectory.stats for leg in self.segments]
        before = {k: sum(int(self.lanes(s[k]).sum()) for s in stats) for k in ("accepted", "rejected")}

        def onwards(fraction: float, counts: dict[str, int]) -> None:
            report(1.0 - rest * (1.0 - fraction), counts | {k: counts[k] + n for k, n in before.items()})

        return onwards
