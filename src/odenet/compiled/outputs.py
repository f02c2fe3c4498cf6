"""The solution at the output times from a tape, and the cotangents of outputs as cotangents of what is on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, select, spread
from ..engine.problem import Problem
from ..engine.record import Pieces
from .columns import tape_of
from .plan import Plan, powers_of


@dataclass
class Bars:
    """Cotangents: of the last state; row by row of each chunk (starts, then polynomials); of y0 directly."""

    end: list[Tensor]
    rows: list[list[Tensor]]
    start: list[Tensor]


class Outputs:
    """Knows for each output in which step it lies, and where in it.

    rows, tapes: of each chunk. end: the last state.
    """

    def __init__(self, p: Problem, plan: Plan, rows: list[int], tapes: list[list[Tensor]], end: Leaves) -> None:
        self.p, self.plan, self.end, self.rows = p, plan, end, rows
        self.n = len(p.y0)
        self.simple = not plan.starts  # two outputs: the first state and the last
        self.tapes = tapes
        if not self.simple:
            self._place()

    def _column(self, i: int) -> Tensor:
        """One part of the tape, of all chunks."""
        parts = [tape[i][:rows] for tape, rows in zip(self.tapes, self.rows, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _place(self) -> None:
        p, n = self.p, self.n
        carry = n if self.plan.carries else 0
        ts = p.ts.detach()
        if not self.tapes:
            self.count = 0
            return
        self.starts = tuple(self._column(i) for i in range(n))
        self.t0, self.t1 = self._column(n + carry), self._column(n + carry + 1)
        at = n + carry + 2 + self.plan.batched
        powers = powers_of(self.plan.method) if self.plan.dense else 0
        self.powers = tuple(
            tuple(self._column(i + j) for j in range(n)) for i in range(at, at + n * powers, n)
        )  # fmt: skip
        self.count = len(self.t0)
        sign = p.direction.unsqueeze(-1)
        ends = (self.t1.movedim(0, -1) * sign).contiguous()
        # the first step that ends at the output or after it; one past the last: not reached
        self.step = torch.searchsorted(ends, (ts * sign).contiguous())
        self.first = (ts - ts[..., :1]) * sign <= 0
        self.reached = (self.step < self.count) | self.first
        step = self.step.clamp(max=self.count - 1)
        self.index = step.mT if p.batched else step  # (T,) or (T, B)
        end, start = self._at(self.t1), self._at(self.t0)
        times = ts.mT if p.batched else ts
        self.at_end = times == end
        gap = end - start
        self.theta = torch.where(gap == 0, 0.0, (times - start) / gap)

    def _at(self, column: Tensor) -> Tensor:
        """(N, B, ...) -> (T, B, ...): for each output what its step has; without lanes (N, ...) -> (T, ...)."""
        if not self.p.batched:
            return column[self.index]
        lane = torch.arange(self.index.shape[1], device=self.index.device)
        return column[self.index, lane]

    def _next(self) -> Leaves:
        """The states at the ends of the outputs' steps."""
        last = self.index == self.count - 1
        after = (self.index + 1).clamp(max=self.count - 1)
        here, self.index = self.index, after
        values = tuple(self._at(y) for y in self.starts)
        self.index = here
        end = tuple(y.expand_as(v) for y, v in zip(self.end, values, strict=True))
        return select(last, end, values)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that were not reached."""
        p = self.p
        if self.simple:
            whole = tuple(torch.stack([a, b]) for a, b in zip(p.y0, self.end, strict=True))
            return self._marked(whole)
        first = tuple(y.expand(p.ts.shape[-1], *y.shape) for y in p.y0)
        if not self.count:
            done = (p.ts - p.ts[..., :1]) * p.direction.unsqueeze(-1) <= 0
            return self._turned(
                select(_lead(done, p.batched), first, tuple(torch.full_like(y, torch.nan) for y in first))
            )
        values = self._next()
        if self.powers:
            inner = evaluate(
                tuple(self._at(y) for y in self.starts),
                [tuple(self._at(c) for c in cs) for cs in self.powers],
                tuple(spread(self.theta, v) for v in values),
            )
            values = select(self.at_end, values, inner)
        values = select(_lead(self.first, p.batched), first, values)
        nothing = tuple(torch.full_like(v, torch.nan) for v in values)
        return self._turned(select(_lead(self.reached, p.batched), values, nothing))

    def _turned(self, ys: Leaves) -> Leaves:
        return tuple(y.transpose(0, 1) for y in ys) if self.p.batched else ys

    def _marked(self, whole: Leaves) -> Leaves:
        return self._turned(whole)

    def pieces(self) -> Pieces:
        p = self.p
        if not self.count:
            start = p.ts[..., 0]
            flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
            return Pieces.from_flat([x.unsqueeze(0) for x in flat], self.n)
        return Pieces(self.t0, self.t1, self.starts, self.powers)

    def bars(self, cotangents: Sequence[Tensor | None]) -> Bars:
        """From the cotangents of (ys, y1, pieces)."""
        p, n = self.p, self.n
        ys_bar = [None if b is None else self._turned((b,))[0] for b in cotangents[:n]]
        end = [torch.zeros_like(y) if b is None else b for y, b in zip(p.y0, cotangents[n : 2 * n], strict=True)]
        if self.simple:
            start = [b[0] for b in ys_bar if b is not None]
            end = [a if b is None else a + b[1] for a, b in zip(end, ys_bar, strict=True)]
            return Bars(end, [], start if len(start) == n else [
                torch.zeros_like(y) if b is None else b[0] for y, b in zip(p.y0, ys_bar, strict=True)
            ])  # fmt: skip
        pieces_bar = cotangents[2 * n :]
        start = [torch.zeros_like(y) for y in p.y0]
        if not self.count:
            for i, b in enumerate(ys_bar):
                if b is not None:
                    done = (p.ts - p.ts[..., :1]) * p.direction.unsqueeze(-1) <= 0
                    (kept,) = select(_lead(done, p.batched), (b,), (torch.zeros_like(b),))
                    start[i] = start[i] + kept.sum(0)
            if pieces_bar:
                start = [a if b is None else a + b[0] for a, b in zip(start, pieces_bar[2 : 2 + n], strict=True)]
            return Bars([a + b for a, b in zip(end, start, strict=True)], [], [])
        rows = [torch.zeros_like(y) for y in self.starts]
        powers = [[torch.zeros_like(c) for c in cs] for cs in self.powers]
        for i, b in enumerate(ys_bar):
            if b is not None:
                self._spread(i, b, start, end, rows, powers)
        if pieces_bar:
            parts = list(pieces_bar[2:])
            rows = [a if b is None else a + b for a, b in zip(rows, parts[:n], strict=True)]
            flat = iter(parts[n:])
            powers = [[c if (b := next(flat)) is None else c + b for c in cs] for cs in powers]
        return Bars(end, self._chunked([*rows, *(c for cs in powers for c in cs)]), start)

    def _spread(
        self,
        i: int,
        bar: Tensor,
        start: list[Tensor],
        end: list[Tensor],
        rows: list[Tensor],
        powers: list[list[Tensor]],
    ) -> None:
        """The cotangent of leaf i of the outputs, (T, ...), added to those of what it was made of."""
        first = _lead(self.first, self.p.batched)
        zero = (torch.zeros_like(bar),)
        (at_start,) = select(first, (bar,), zero)
        start[i] = start[i] + at_start.sum(0)
        alive = _lead(self.reached, self.p.batched) & ~first
        at_end = (self.at_end | (not self.powers)) & alive
        (of_end,), (inner,) = select(at_end, (bar,), zero), select(alive & ~at_end, (bar,), zero)
        last = self.index == self.count - 1
        (final,), (later,) = select(last, (of_end,), zero), select(~last, (of_end,), zero)
        end[i] = end[i] + final.sum(0)
        self._put(rows[i], (self.index + 1).clamp(max=self.count - 1), later)
        if not self.powers:
            return
        self._put(rows[i], self.index, inner)
        factor = spread(self.theta, bar)
        weight = factor
        for cs in powers:
            self._put(cs[i], self.index, inner * weight)
            weight = weight * factor

    def _put(self, column: Tensor, index: Tensor, values: Tensor) -> None:
        if self.p.batched:
            lane = torch.arange(index.shape[1], device=index.device).expand_as(index)
            column.index_put_((index, lane), values, accumulate=True)
        else:
            column.index_add_(0, index, values)

    def _chunked(self, columns: list[Tensor]) -> list[list[Tensor]]:
        """Columns of all steps cut into those of each chunk, filled up to the rows of a tape."""
        chunks, at = [], 0
        for rows in self.rows:
            parts = []
            for c in columns:
                whole = tape_of(c[0], self.plan.slots, self.plan.columns)
                whole[:rows] = c[at : at + rows]
                parts.append(whole)
            chunks.append(parts)
            at += rows
        return chunks


def _lead(mask: Tensor, batched: bool) -> Tensor:
    return mask.mT if batched else mask
