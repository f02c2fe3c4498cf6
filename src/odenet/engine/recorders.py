"""Observers that keep the solution: at the output times, and everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, differentiable, spread
from ..core.scalars import Flag, Number, some, where
from .advance import Move
from .observer import Observer
from .output_rule import within
from .problem import Problem

Rows = slice | tuple[Tensor, Tensor]  # which outputs: ts[rows], or ts[b, j] per sample


@dataclass(slots=True)
class Given:
    """The outputs that a move gave: ts[rows]. lane: whose each is, among the samples of the move (None: joint)."""

    rows: Rows
    lane: Tensor | None


def outputs(move: Move, times: Tensor, lane: Tensor | None) -> Leaves:
    """The solution at times within the move; stacked on the first axis. The end of a step is exactly its y.

    lane: whose time each is, among the samples of the move; None for a joint solve.
    """
    end, start = (move.time1, move.time0) if lane is None else (move.time1[lane], move.time0[lane])
    at_end = times.detach() == end.detach()
    moving = differentiable(times)
    coefficients: Coefficients = ()
    if moving or not bool(at_end.all()):  # first, as a step that was recorded has them already: sums are in one order
        asking: Flag = True
        if lane is not None:
            asks = lane if moving else lane[~at_end]
            asking = torch.zeros_like(move.accept).index_put_((asks,), torch.tensor(True, device=lane.device))
        coefficients = move.polynomial(asking)
    if lane is None:
        y0, y1 = move.y, tuple(y.expand(len(times), *y.shape) for y in move.step.y)
    else:
        y0, y1 = tuple(y[lane] for y in move.y), tuple(y[lane] for y in move.step.y)
        coefficients = tuple(tuple(c[lane] for c in cs) for cs in coefficients)
    return within(times, start, end, y0, y1, coefficients, moving)


def inside(move: Move, times: Tensor, lane: Tensor | None) -> Leaves:
    """What the caller wants of the solution at times within the move; see `outputs`."""
    return kept(move.problem, times, outputs(move, times, lane), lane, move.time0, move.y)


def first_outputs(p: Problem, ts: Tensor, y0: Leaves) -> tuple[Rows, Leaves, Number]:
    """The outputs at ts[0], and how many evaluations they took: one, where ts[0] is repeated and differentiable.

    An output there is y0; it moves with its own time, against ts[0].
    """
    rows: Rows
    calls: Number
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
    evaluations: Number = 0
    if differentiable(ts) and some(calls):
        slope, evaluations = p.f(ts[..., 0], y0), calls * 1
        slope = slope if lane is None else tuple(k[lane] for k in slope)
        slope = tuple(torch.where(torch.isfinite(k), k, 0) for k in slope)  # of a solve that fails there; times zero
        late = ts[rows] - first
        values = tuple(y + k * spread(late, y) for y, k in zip(values, slope, strict=True))
    return rows, kept(p, ts[rows], values, lane, ts[..., 0], y0), evaluations


def kept(p: Problem, times: Tensor, values: Leaves, lane: Tensor | None, time0: Tensor, y: Leaves) -> Leaves:
    """What the caller wants of the solution `values` at `times`, stacked on the first axis.

    lane: whose time each is; None for a joint solve. time0, y: a time and a state of all samples, for those that have
    no output where others do.
    """
    if p.f.save is None:
        return values
    if lane is None:
        rows = [p.f.saved(t, tuple(x[i] for x in values)) for i, t in enumerate(times)]
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
        parts.append(tuple(x[whose] for x in p.f.saved(time0.index_copy(0, whose, times[place]), state)))
        places.append(place)
    order = torch.cat(places).argsort()
    return tuple(torch.cat(list(x))[order] for x in zip(*parts, strict=True))


class Collected:
    """Values at some output times after others, to be put together at all of them."""

    def __init__(self) -> None:
        self.chunks: list[Leaves] = []
        self.rows: list[Rows] = []

    def keep(self, rows: Rows, values: Leaves) -> None:
        self.rows.append(rows)
        self.chunks.append(values)

    def whole(self, ts: Tensor, missing: float) -> Leaves:
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
class Record(Observer):
    """Collects the solution at every output time.

    `last` tells which outputs the last move gave, `evaluations` what the outputs at ts[0] took.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.single = p, not p.stops.rule.every_output
        self.collected = Collected()
        self.last: Given | None = None
        rows, values, self.evaluations = first_outputs(p, p.ts, p.y0)
        self.collected.keep(rows, values)
        self.moving = differentiable(p.ts)
        if isinstance(rows, slice):
            self.host = p.ts.detach().tolist()
            self.sign = float(p.direction)
            self.cursor = int(rows.stop)
        else:
            self.cursors = torch.bincount(rows[0], minlength=len(p.direction))  # of each sample: its next output
            self.next = self._time(torch.arange(len(p.direction), device=p.ts.device))

    def see(self, move: Move) -> None:
        self.last = last = self._given(move)
        if last is None:
            return
        rows, times = last.rows, self.p.ts[last.rows]
        if isinstance(rows, slice) and not self.moving and self.host[rows.start] == move.t1:  # all of them are the end
            count = rows.stop - rows.start
            values = tuple([y.unsqueeze(0) if count == 1 else y.expand(count, *y.shape) for y in move.step.y])
        else:
            values = outputs(move, times, last.lane)
        self.collected.keep(rows, kept(move.problem, times, values, last.lane, move.time0, move.y))

    def _given(self, move: Move) -> Given | None:
        if move.problem.batched:
            return self._given_of_lanes(move, move.accept)
        if not move.accept:
            return None
        first = cursor = self.cursor
        t, sign, host = move.t1, self.sign, self.host
        while cursor < len(host) and (host[cursor] - t) * sign <= 0:
            cursor += 1
        self.cursor = cursor
        return Given(slice(first, cursor), None) if cursor > first else None

    def _given_of_lanes(self, move: Move, accept: Tensor) -> Given | None:
        """Looks at the next output of each sample, not at all of them in every step."""
        samples, end, sign = move.problem.samples, move.time1.detach(), move.problem.direction
        following = samples.take(self.next)
        lane = (accept & ((following - end) * sign <= 0)).nonzero()[:, 0]
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(lane):
            whose = samples.whose(lane)
            found.append((whose, self.cursors[whose], lane))
            self.cursors[whose] += 1
            following = self._time(whose)
            self.next[whose] = following
            lane = lane[(following - end[lane]) * sign[lane] <= 0]
        if not found:
            return None
        whose, j, lane = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Given((whose, j), lane)

    def _time(self, whose: Tensor) -> Tensor:
        """The next output time of some samples; after the last one a time that is never reached."""
        ts, j = self.p.ts.detach(), self.cursors[whose]
        over = torch.inf * self.p.direction[whose]
        return torch.where(j < ts.shape[1], ts[whose, j.clamp(max=ts.shape[1] - 1)], over)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that the solve did not reach."""
        return self.collected.whole(self.p.ts, torch.nan)


@dataclass
class Pieces:
    """The accepted steps of a solve as local polynomials, stacked on the first axis (N steps).

    start, end: (N,) or (N, B); a lane for which a step was not accepted has start == end there. y: leaves (N, ...).
    coefficients: for each power of theta, leaves (N, ...).
    """

    start: Tensor
    end: Tensor
    y: Leaves
    coefficients: tuple[Leaves, ...]

    def flat(self) -> Leaves:
        return (self.start, self.end, *self.y, *(c for cs in self.coefficients for c in cs))

    @staticmethod
    def from_flat(flat: Sequence[Tensor], leaves: int) -> Pieces:
        y, rest = tuple(flat[2 : 2 + leaves]), flat[2 + leaves :]
        powers = tuple(tuple(rest[i : i + leaves]) for i in range(0, len(rest), leaves))
        return Pieces(flat[0], flat[1], y, powers)

    @staticmethod
    def still(p: Problem) -> Pieces:
        """Of a solve of no length: one constant piece."""
        start = p.ts[..., 0]
        flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
        return Pieces.from_flat([x.unsqueeze(0) for x in flat], len(p.y0))


@final
class Everywhere(Observer):
    """Keeps the local polynomial of every accepted step."""

    starts_whole: ClassVar[bool] = True  # a sample that never moves has its state from there

    def __init__(self) -> None:
        self.parts: list[Leaves] = []

    def see(self, move: Move) -> None:
        if some(move.accept):
            flat = piece(move)
            self.parts.append(flat if torch.is_grad_enabled() else tuple(x.detach() for x in flat))

    def pieces(self, p: Problem) -> Pieces:
        return stacked(self.parts, len(p.y0)) if self.parts else Pieces.still(p)


def stacked(parts: list[Leaves], leaves: int) -> Pieces:
    """The steps in `parts`, which is emptied on the way: both together would be twice the memory."""
    columns = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    flat = []
    for column in columns:
        flat.append(torch.stack(column))
        column.clear()
    return Pieces.from_flat(flat, leaves)


def piece(move: Move) -> Leaves:
    """One step of `Pieces`, flat; of samples that are not at hand it has start == end."""
    end = where(move.accept, move.time1, move.time0)
    flat = (move.time0, end, *move.y, *(c for cs in move.polynomial() for c in cs))
    return tuple([move.problem.samples.spread(x) for x in flat])


@final
@dataclass
class Report(Observer):
    """Calls the caller back with the fraction of time solved (that of the slowest sample) and the counts so far."""

    callback: Callable[[float, dict[str, int]], Any]
    accepted: int = 0
    attempts: int = 0

    def see(self, move: Move) -> None:
        ts = move.problem.ts.detach()
        t = where(move.accept, move.time1, move.time0)
        self.attempts += 1
        self.accepted += some(move.accept)
        span = ts[..., -1] - ts[..., 0]
        fraction = torch.where(span == 0, 1.0, (t.detach() - ts[..., 0]) / span).min()
        stats = {"nfe": move.problem.f.calls, "accepted": self.accepted, "rejected": self.attempts - self.accepted}
        self.callback(float(fraction), stats)
