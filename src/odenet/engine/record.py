"""Observers that keep the solution: at the output times, and everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from ..core.dense import Coefficients, evaluate, slope_at_end
from ..core.lanes import Number
from ..core.leaves import Leaves, differentiable, select, spread
from ..core.transforms import some
from .advance import Move
from .observe import Observer
from .problem import Problem

Rows = slice | tuple[Tensor, Tensor]  # which outputs: ts[rows], or ts[b, j] per sample


def outputs(move: Move, ts: Tensor, rows: Rows) -> Leaves:
    """The solution at ts[rows], all within the move; stacked on the first axis. The end of a step is exactly its y."""
    times = ts[rows]
    joint = isinstance(rows, slice)
    lane = None if joint else rows[0]
    end, start = (move.time1, move.time0) if lane is None else (move.time1[lane], move.time0[lane])
    at_end = times.detach() == end.detach()
    if lane is None:
        y0, y1 = move.y, tuple(y.expand(len(times), *y.shape) for y in move.step.y)
    else:
        y0, y1 = tuple(y[lane] for y in move.y), tuple(y[lane] for y in move.step.y)
    moving = differentiable(times)
    if bool(at_end.all()) and not moving:
        return y1
    if lane is None:
        coefficients: Coefficients = move.polynomial()
    else:
        asks = lane if moving else lane[~at_end]
        asking = torch.zeros_like(move.accept).index_put_((asks,), torch.tensor(True, device=lane.device))
        coefficients = tuple(tuple(c[lane] for c in cs) for cs in move.polynomial(asking))
    theta = (times - start) / (end - start)
    values = evaluate(y0, coefficients, tuple(spread(theta, y) for y in y1))
    if moving:  # y1 moves with the end of the step; an output there moves with its own time
        late = torch.where(at_end, (times - end) / (end - start).detach(), 0)
        y1 = tuple(y + k * spread(late, y) for y, k in zip(y1, slope_at_end(coefficients), strict=True))
    return select(at_end, y1, values)


def first_outputs(p: Problem, ts: Tensor, y0: Leaves) -> tuple[Rows, Leaves, Number]:
    """The outputs at ts[0], and how many evaluations they took: one, where ts[0] is repeated and differentiable.

    An output there is y0; it moves with its own time, against ts[0].
    """
    at_start = (ts - ts[..., :1]).detach() * p.direction.unsqueeze(-1) <= 0
    rows: Rows
    calls: Number
    if p.batched:
        lane, j = at_start.nonzero(as_tuple=True)
        rows, first, values = (lane, j), ts[lane, 0], tuple(y[lane] for y in y0)
        calls = at_start.sum(1) > 1
        needed = differentiable(ts) and bool(calls.any())
    else:
        count = int(at_start.sum())
        rows, first, values = slice(0, count), ts[0], tuple(y.expand(count, *y.shape) for y in y0)
        calls = count > 1
        needed = differentiable(ts) and calls
    if not needed:
        return rows, values, 0
    slope = p.f(ts[..., 0], y0)
    if not isinstance(rows, slice):
        slope = tuple(k[rows[0]] for k in slope)
    late = ts[rows] - first
    return rows, tuple(y + k * spread(late, y) for y, k in zip(values, slope, strict=True)), calls * 1


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
        last = self.rows[-1]
        filler = tuple(torch.full_like(x[:1], missing).detach() for x in self.chunks[0])
        if isinstance(last, slice):
            left = len(ts) - last.stop
            parts = [*self.chunks, *([tuple(x.expand(left, *x.shape[1:]) for x in filler)] if left else [])]
            return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
        rows = [torch.cat(pieces) for pieces in zip(*self.chunks, filler, strict=True)]
        lane, j = (torch.cat(index) for index in zip(*self.rows, strict=True))
        place = torch.full(ts.shape, len(lane), dtype=torch.int64, device=lane.device)
        place[lane, j] = torch.arange(len(lane), device=lane.device)
        return tuple(x[place] for x in rows)


@final
class Record(Observer):
    """Collects the solution at every output time.

    `rows_of_last` tells which outputs the last move gave, `evaluations` what the outputs at ts[0] took.
    """

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.collected = Collected()
        self.rows_of_last: Rows | None = None
        rows, values, self.evaluations = first_outputs(p, p.ts, p.y0)
        self.collected.keep(rows, values)
        if isinstance(rows, slice):
            self.host = p.ts.detach().tolist()
            self.moving = differentiable(p.ts)
            self.sign = float(p.direction)
            self.cursor = int(rows.stop)

    def _due(self, t: float, cursor: int) -> int:
        while cursor < len(self.host) and (self.host[cursor] - t) * self.sign <= 0:
            cursor += 1
        return cursor

    def see(self, move: Move) -> None:
        self.rows_of_last = rows = self._rows(move)
        if rows is None:
            return
        if isinstance(rows, slice) and not self.moving and self.host[rows.start] == move.t1:  # all of them are the end
            values = tuple(y.expand(rows.stop - rows.start, *y.shape) for y in move.step.y)
        else:
            values = outputs(move, self.p.ts, rows)
        self.collected.keep(rows, values)

    def _rows(self, move: Move) -> Rows | None:
        if not isinstance(move.accept, Tensor):
            if not move.accept:
                return None
            first, self.cursor = self.cursor, self._due(move.t1, self.cursor)
            return slice(first, self.cursor) if self.cursor > first else None
        ts, sign = self.p.ts.detach(), self.p.direction[:, None]
        t0, t1 = move.time0.detach()[:, None], move.time1.detach()[:, None]
        due = move.accept[:, None] & ((ts - t1) * sign <= 0) & ((ts - t0) * sign > 0)
        lane, j = due.nonzero(as_tuple=True)
        return (lane, j) if len(lane) else None

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


@final
class Everywhere(Observer):
    """Keeps the local polynomial of every accepted step."""

    def __init__(self) -> None:
        self.parts: list[Leaves] = []
        self.leaves = 0

    def see(self, move: Move) -> None:
        if some(move.accept) if isinstance(move.accept, Tensor) else move.accept:
            self.leaves = len(move.y)
            flat = piece(move)
            self.parts.append(flat if torch.is_grad_enabled() else tuple(x.detach() for x in flat))

    def pieces(self, p: Problem) -> Pieces:
        if not self.parts:  # a solve of no length: one constant piece
            start = p.ts[..., 0]
            flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
            return Pieces.from_flat([x.unsqueeze(0) for x in flat], len(p.y0))
        return stacked(self.parts, self.leaves)


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
    """One step of `Pieces`, flat."""
    end = torch.where(move.accept, move.time1, move.time0) if isinstance(move.accept, Tensor) else move.time1
    return (move.time0, end, *move.y, *(c for cs in move.polynomial() for c in cs))


@final
@dataclass
class Report(Observer):
    """Calls the caller back with the fraction of time solved (that of the slowest sample) and the counts so far."""

    p: Problem
    callback: Callable[[float, dict[str, int]], Any]
    accepted: int = field(default=0)
    attempts: int = field(default=0)

    def see(self, move: Move) -> None:
        ts = self.p.ts.detach()
        accept = move.accept
        kept = move.time1 if accept is True else move.time0
        t = torch.where(accept, move.time1, move.time0) if isinstance(accept, Tensor) else kept
        self.attempts += 1
        self.accepted += bool(move.accept.any()) if isinstance(move.accept, Tensor) else bool(move.accept)
        span = ts[..., -1] - ts[..., 0]
        fraction = torch.where(span == 0, 1.0, (t.detach() - ts[..., 0]) / span).min()
        stats = {"nfe": self.p.f.calls, "accepted": self.accepted, "rejected": self.attempts - self.accepted}
        self.callback(float(fraction), stats)
