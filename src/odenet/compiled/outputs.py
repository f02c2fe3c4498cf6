"""The solution at the output times from a tape, and the cotangents of outputs as cotangents of what is on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, new_leaves, select
from ..engine.outputs import blank, times_of, within
from ..engine.problem import Problem
from ..engine.record import Pieces
from .columns import tape_of
from .plan import Plan, powers_of
from .shelves import Shelf


@dataclass
class Chunk:
    """Rows of a tape that a solve has used, by which plan, and the products kept beside it."""

    plan: Plan
    rows: int
    tape: list[Tensor]
    shelf: Shelf


@dataclass
class Bars:
    """Cotangents: of the last state; row by row of each chunk (starts, then polynomials); of y0 directly."""

    end: list[Tensor]
    rows: list[list[Tensor]]
    start: list[Tensor]


class Outputs:
    """Knows for each output in which step it lies. end: the last state."""

    def __init__(self, p: Problem, plan: Plan, chunks: list[Chunk], end: Leaves) -> None:
        self.p, self.plan, self.chunks, self.end = p, plan, chunks, end
        self.n = len(p.y0)
        self.simple = not plan.starts  # two outputs: the first state and the last
        self.count, self.starts, self.powers = 0, (), ()
        if not self.simple and chunks:
            self._place()

    def _column(self, i: int) -> Tensor:
        """One part of the tape, of all chunks."""
        parts = [chunk.tape[i][: chunk.rows] for chunk in self.chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _place(self) -> None:
        p, n = self.p, self.n
        carry = n if self.plan.carries else 0
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
        step = torch.searchsorted(ends, (p.ts.detach() * sign).contiguous()).movedim(-1, 0)
        self.times = times_of(p).detach()
        self.given = (step < self.count) & ((self.times - self.times[0]) * p.direction > 0)
        self.step = step.clamp(max=self.count - 1)

    def _at(self, column: Tensor, step: Tensor | None = None) -> Tensor:
        """(N, *lane, ...) -> (T, *lane, ...): for each output what its step has."""
        step = self.step if step is None else step
        if not self.p.batched:
            return column[step]
        return column[step, torch.arange(step.shape[1], device=step.device)]

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that were not reached."""
        return self._values(self.p.y0, self.end, self.starts, self.powers)

    def _values(self, y0: Leaves, end: Leaves, starts: Leaves, powers: Coefficients) -> Leaves:
        """`ys` of the first and last states, and of what the tape has of each step."""
        if self.simple:
            ys = tuple(torch.stack([a, b]) for a, b in zip(y0, end, strict=True))
        else:
            ys = blank(replace(self.p, y0=y0, ts=self.p.ts.detach()), None)
            if self.count:
                ys = select(self.given, self._within(end, starts, powers), ys)
        return tuple(y.movedim(0, int(self.p.batched)) for y in ys)

    def _within(self, end: Leaves, starts: Leaves, powers: Coefficients) -> Leaves:
        following = (self.step + 1).clamp(max=self.count - 1)
        y1 = tuple(self._at(y, following) for y in starts)
        y1 = select(self.step == self.count - 1, tuple(y.expand_as(v) for y, v in zip(end, y1, strict=True)), y1)
        t0, t1 = self._at(self.t0), self._at(self.t1)
        t1 = torch.where(t1 == t0, t0 + 1.0, t1)  # in lanes that give nothing
        coefficients = tuple(tuple(self._at(c) for c in cs) for cs in powers)
        return within(self.times, t0, t1, tuple(self._at(y) for y in starts), y1, coefficients, False)

    def pieces(self) -> Pieces:
        return Pieces(self.t0, self.t1, self.starts, self.powers) if self.count else Pieces.still(self.p)

    def bars(self, cotangents: Sequence[Tensor | None]) -> Bars:
        """From the cotangents of (ys, y1, pieces)."""
        n, flat = self.n, tuple(c for cs in self.powers for c in cs)
        with torch.enable_grad():
            given = new_leaves((*self.p.y0, *self.end, *self.starts, *flat))
            rest = given[3 * n :]
            powers = tuple(rest[i : i + n] for i in range(0, len(rest), n))
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
        for rows in (chunk.rows for chunk in self.chunks):
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
