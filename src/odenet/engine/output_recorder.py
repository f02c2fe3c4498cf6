"""Observers that keep the solution: at the output times, and everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, differentiable, expand_to
from ..core.scalars import MaskLike, ScalarLike, any_true
from .observer import Observer
from .output_rule import outputs_within
from .problem import Problem
from .step_attempt import StepAttempt

OutputRows = slice | tuple[Tensor, Tensor]  # which outputs: ts[rows], or ts[b, j] per sample


@dataclass(slots=True)
class OutputIndex:
    """The outputs that a move gave: ts[rows]. lane: whose each is, among the samples of the move (None: joint)."""

    rows: OutputRows
    sample: Tensor | None


def outputs_at(attempt: StepAttempt, times: Tensor, lane: Tensor | None) -> Leaves:
    """The solution at times within the move; stacked on the first axis. The end of a step is exactly its y.

    lane: whose time each is, among the samples of the move; None for a joint solve.
    """
    end, start = (attempt.time1, attempt.time0) if lane is None else (attempt.time1[lane], attempt.time0[lane])
    at_end = times.detach() == end.detach()
    moving = differentiable(times)
    coefficients: Coefficients = ()
    if moving or not bool(at_end.all()):  # first, as a step that was recorded has them already: sums are in one order
        asking: MaskLike = True
        if lane is not None:
            asks = lane if moving else lane[~at_end]
            asking = torch.zeros_like(attempt.accept).index_put_((asks,), torch.tensor(True, device=lane.device))
        coefficients = attempt.polynomial(asking)
    if lane is None:
        y0, y1 = attempt.y, tuple(y.expand(len(times), *y.shape) for y in attempt.step.y)
    else:
        y0, y1 = tuple(y[lane] for y in attempt.y), tuple(y[lane] for y in attempt.step.y)
        coefficients = tuple(tuple(c[lane] for c in cs) for cs in coefficients)
    return outputs_within(times, start, end, y0, y1, coefficients, moving)


def saved_outputs(attempt: StepAttempt, times: Tensor, lane: Tensor | None) -> Leaves:
    """What the caller wants of the solution at times within the move; see `outputs`."""
    return apply_save(attempt.problem, times, outputs_at(attempt, times, lane), lane, attempt.time0, attempt.y)


def first_outputs(p: Problem, ts: Tensor, y0: Leaves) -> tuple[OutputRows, Leaves, ScalarLike]:
    """The outputs at ts[0], and how many evaluations they took: one, where ts[0] is repeated and differentiable.

    An output there is y0; it moves with its own time, against ts[0].
    """
    rows: OutputRows
    calls: ScalarLike
    lane: Tensor | None = None
    if p.batched:
        at_start = (ts - ts[..., :1]).detach() * p.direction.unsqueeze(-1) <= 0
        lane, j = at_start.nonzero(as_tuple=True)
        rows, first, values = (lane, j), ts[lane, 0], tuple(y[lane] for y in y0)
        calls = at_start.sum(1) > 1
    else:
        host = ts.detach().tolist()
        count = next((i for i, t in enumerate(host) if t != host[0]), len(host))
        rows, first, values = slice(0, count), ts[0], tuple(y.expand(count, *y.shape) for y in y0)
        calls = count > 1
    evaluations: ScalarLike = 0
    if differentiable(ts) and any_true(calls):
        slope, evaluations = p.f(ts[..., 0], y0), calls * 1
        slope = slope if lane is None else tuple(k[lane] for k in slope)
        slope = tuple(torch.where(torch.isfinite(k), k, 0) for k in slope)  # of a solve that fails there; times zero
        late = ts[rows] - first
        values = tuple(y + k * expand_to(late, y) for y, k in zip(values, slope, strict=True))
    return rows, apply_save(p, ts[rows], values, lane, ts[..., 0], y0), evaluations


def apply_save(p: Problem, times: Tensor, values: Leaves, lane: Tensor | None, time0: Tensor, y: Leaves) -> Leaves:
    """What the caller wants of the solution `values` at `times`, stacked on the first axis.

    lane: whose time each is; None for a joint solve. time0, y: a time and a state of all samples, for those that have
    no output where others do.
    """
    if p.f.save is None:
        return values
    if lane is None:
        rows = [p.f.save_output(t, tuple(x[i] for x in values)) for i, t in enumerate(times)]
        return tuple(torch.stack(list(x)) for x in zip(*rows, strict=True))
    time0, y = time0.detach(), tuple(x.detach() for x in y)
    # the outputs of one sample come one after another
    together = lane.argsort(stable=True)
    turn = together.argsort() - torch.searchsorted(lane[together], lane)
    parts: list[Leaves] = []
    places: list[Tensor] = []
    for k in range(int(turn.max()) + 1):
        place = (turn == k).nonzero()[:, 0]
        whose = lane[place]
        state = tuple(a.index_copy(0, whose, x[place]) for a, x in zip(y, values, strict=True))
        parts.append(tuple(x[whose] for x in p.f.save_output(time0.index_copy(0, whose, times[place]), state)))
        places.append(place)
    order = torch.cat(places).argsort()
    return tuple(torch.cat(list(x))[order] for x in zip(*parts, strict=True))


class OutputBuffer:
    """Values at some output times after others, to be put together at all of them."""

    def __init__(self) -> None:
        self.chunks: list[Leaves] = []
        self.rows: list[OutputRows] = []

    def append(self, rows: OutputRows, values: Leaves) -> None:
        self.rows.append(rows)
        self.chunks.append(values)

    def assemble(self, ts: Tensor, missing: float) -> Leaves:
        """(T, ...), or (B, T, ...) per sample; `missing` at times that no chunk has."""
        last, chunks = self.rows[-1], self.chunks
        left = len(ts) - last.stop if isinstance(last, slice) else 1  # of lanes, one row is for all that are missing
        if left:
            filler = (torch.full_like(x[:1], missing).detach() for x in chunks[0])
            chunks = [*chunks, tuple(x.expand(left, *x.shape[1:]) for x in filler)]
        rows = tuple(torch.cat(pieces) for pieces in zip(*chunks, strict=True))
        if isinstance(last, slice):
            return rows
        lane, j = (torch.cat(index) for index in zip(*self.rows, strict=True))
        place = torch.full(ts.shape, len(lane), dtype=torch.int64, device=lane.device)
        place[lane, j] = torch.arange(len(lane), device=lane.device)
        return tuple(x[place] for x in rows)


@final
class OutputRecorder(Observer):
    """Collects the solution at every output time.

    `last` tells which outputs the last move gave, `evaluations` what the outputs at ts[0] took.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.every_step = p, not p.stops.rule.every_output
        self.buffer = OutputBuffer()
        self.last_outputs: OutputIndex | None = None
        rows, values, self.evaluations = first_outputs(p, p.ts, p.y0)
        self.buffer.append(rows, values)
        self.moving = differentiable(p.ts)
        if isinstance(rows, slice):
            self.host = p.ts.detach().tolist()
            self.sign = float(p.direction)
            self.cursor = int(rows.stop)
        else:
            self.cursors = torch.bincount(rows[0], minlength=len(p.direction))  # of each sample: its next output
            self.next = self._time(torch.arange(len(p.direction), device=p.ts.device))

    def observe(self, attempt: StepAttempt) -> None:
        self.last_outputs = last = self._given(attempt)
        if last is None:
            return
        rows, times = last.rows, self.p.ts[last.rows]
        if (
            isinstance(rows, slice) and not self.moving and self.host[rows.start] == attempt.t1
        ):  # all of them are the end
            count = rows.stop - rows.start
            values = tuple([y.unsqueeze(0) if count == 1 else y.expand(count, *y.shape) for y in attempt.step.y])
        else:
            values = outputs_at(attempt, times, last.sample)
        self.buffer.append(rows, apply_save(attempt.problem, times, values, last.sample, attempt.time0, attempt.y))

    def _given(self, attempt: StepAttempt) -> OutputIndex | None:
        if attempt.problem.batched:
            return self._given_of_lanes(attempt, attempt.accept)
        if not attempt.accept:
            return None
        first = cursor = self.cursor
        t, sign, host = attempt.t1, self.sign, self.host
        while cursor < len(host) and (host[cursor] - t) * sign <= 0:
            cursor += 1
        self.cursor = cursor
        return OutputIndex(slice(first, cursor), None) if cursor > first else None

    def _given_of_lanes(self, attempt: StepAttempt, accept: Tensor) -> OutputIndex | None:
        """Looks at the next output of each sample, not at all of them in every step."""
        samples, end, sign = attempt.problem.samples, attempt.time1.detach(), attempt.problem.direction
        following = samples.take(self.next)
        lane = (accept & ((following - end) * sign <= 0)).nonzero()[:, 0]
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(lane):
            whose = samples.sample_numbers(lane)
            found.append((whose, self.cursors[whose], lane))
            self.cursors[whose] += 1
            following = self._time(whose)
            self.next[whose] = following
            lane = lane[(following - end[lane]) * sign[lane] <= 0]
        if not found:
            return None
        whose, j, lane = (torch.cat(parts) for parts in zip(*found, strict=True))
        return OutputIndex((whose, j), lane)

    def _time(self, whose: Tensor) -> Tensor:
        """The next output time of some samples; after the last one a time that is never reached."""
        ts, j = self.p.ts.detach(), self.cursors[whose]
        over = torch.inf * self.p.direction[whose]
        return torch.where(j < ts.shape[1], ts[whose, j.clamp(max=ts.shape[1] - 1)], over)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that the solve did not reach."""
        return self.buffer.assemble(self.p.ts, torch.nan)
