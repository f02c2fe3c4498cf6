"""The solution at the output times from a tape, and the cotangents of outputs as cotangents of what is on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, new_leaves, select, spread
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
        self.tapes, self.count = tapes, 0
        self.starts, self.powers = (), ()
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

    def _at(self, column: Tensor, index: Tensor | None = None) -> Tensor:
        """(N, B, ...) -> (T, B, ...): for each output what its step has; without lanes (N, ...) -> (T, ...)."""
        index = self.index if index is None else index
        if not self.p.batched:
            return column[index]
        return column[index, torch.arange(index.shape[1], device=index.device)]

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that were not reached."""
        return self._values(self.p.y0, self.end, self.starts, self.powers)

    def _values(self, y0: Leaves, end: Leaves, starts: Leaves, powers: Sequence[Leaves]) -> Leaves:
        """`ys` of the first and last states, and of what the tape has of each step."""
        p = self.p
        if self.simple:
            return self._turned(tuple(torch.stack([a, b]) for a, b in zip(y0, end, strict=True)))
        first = tuple(y.expand(p.ts.shape[-1], *y.shape) for y in y0)
        nothing = tuple(torch.full_like(y, torch.nan) for y in first)
        if not self.count:
            done = (p.ts - p.ts[..., :1]) * p.direction.unsqueeze(-1) <= 0
            return self._turned(select(_lead(done, p.batched), first, nothing))
        last, after = self.index == self.count - 1, (self.index + 1).clamp(max=self.count - 1)
        there = tuple(self._at(y, after) for y in starts)
        values = select(last, tuple(y.expand_as(v) for y, v in zip(end, there, strict=True)), there)
        if powers:
            theta = tuple(spread(self.theta, v) for v in values)
            coefficients = [tuple(self._at(c) for c in cs) for cs in powers]
            inner = evaluate(tuple(self._at(y) for y in starts), coefficients, theta)
            values = select(self.at_end, values, inner)
        values = select(_lead(self.first, p.batched), first, values)
        return self._turned(select(_lead(self.reached, p.batched), values, nothing))

    def _turned(self, ys: Leaves) -> Leaves:
        return tuple(y.transpose(0, 1) for y in ys) if self.p.batched else ys

    def pieces(self) -> Pieces:
        p = self.p
        if not self.count:
            start = p.ts[..., 0]
            flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
            return Pieces.from_flat([x.unsqueeze(0) for x in flat], self.n)
        return Pieces(self.t0, self.t1, self.starts, self.powers)

    def bars(self, cotangents: Sequence[Tensor | None]) -> Bars:
        """From the cotangents of (ys, y1, pieces)."""
        n, flat = self.n, tuple(c for cs in self.powers for c in cs)
        with torch.enable_grad():
            given = new_leaves((*self.p.y0, *self.end, *self.starts, *flat))
            rest = given[3 * n :]
            powers = [rest[i : i + n] for i in range(0, len(rest), n)]
            ys = self._values(given[:n], given[n : 2 * n], given[2 * n : 3 * n], powers)
        pairs = [(y, b) for y, b in zip(ys, cotangents[:n], strict=True) if b is not None]
        found: Sequence[Tensor | None] = [None] * len(given)
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], given, [b for _, b in pairs], allow_unused=True)
        beside = [None] * n, cotangents[n : 2 * n], cotangents[2 * n + 2 :]  # of y0, y1, and the pieces but their times
        if not self.count and beside[2]:  # the constant piece of a solve of no length
            beside = [None if b is None else b[0] for b in beside[2][:n]], beside[1], ()
        others = (*(x for xs in beside for x in xs), *[None] * len(given))
        bars = [_sum(x, a, b) for x, a, b in zip(given, found, others, strict=False)]
        chunks = self._chunked(bars[2 * n :]) if len(given) > 2 * n else []
        return Bars(bars[n : 2 * n], chunks, bars[:n])

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


def _sum(like: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    parts = [x for x in (a, b) if x is not None]
    return sum(parts[1:], parts[0]) if parts else torch.zeros_like(like)


def _lead(mask: Tensor, batched: bool) -> Tensor:
    return mask.mT if batched else mask
