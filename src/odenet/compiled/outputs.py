"""The solution at the output times from a tape, and the cotangents of outputs as cotangents of what is on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.leaves import Leaves, new_leaves, select
from ..engine.outputs import blank, times_of, within
from ..engine.problem import Problem
from ..engine.record import Pieces
from ..gradients.base import added
from .passes.column_layout import tape_of
from .plan import Plan
from .tape_pool import Shelf


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
    """Knows for each output in which step it lies. end: the last state. steps: what the tape has of them."""

    def __init__(self, p: Problem, plan: Plan, chunks: list[Chunk], end: Leaves) -> None:
        self.p, self.plan, self.chunks, self.end = p, plan, chunks, end
        self.n = len(p.y0)
        self.steps: Pieces | None = None
        if plan.starts and chunks:
            self.steps = self._steps()
            self._place(self.steps)

    def _steps(self) -> Pieces:
        """Of all chunks, from the columns of `tape_for`."""
        n, plan = self.n, self.plan
        at = 2 * n if plan.carries else n
        wanted = (at, at + 1, *range(n), *range(at + 2 + plan.batched, len(self.chunks[0].tape)))
        flat = []
        for i in wanted:
            parts = [chunk.tape[i][: chunk.rows] for chunk in self.chunks]
            flat.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return Pieces.from_flat(flat, n)

    def _place(self, steps: Pieces) -> None:
        p, count = self.p, len(steps.start)
        sign = p.direction.unsqueeze(-1)
        ends = (steps.end.movedim(0, -1) * sign).contiguous()
        # the first step that ends at the output or after it; one past the last: not reached
        step = torch.searchsorted(ends, (p.ts.detach() * sign).contiguous()).movedim(-1, 0)
        self.times = times_of(p).detach()
        self.given = (step < count) & ((self.times - self.times[0]) * p.direction > 0)
        self.step = step.clamp(max=count - 1)

    def _at(self, columns: Leaves, step: Tensor) -> Leaves:
        """(N, *lane, ...) -> (T, *lane, ...): for each output what its step has."""
        place = (step, torch.arange(step.shape[1], device=step.device)) if self.p.batched else (step,)
        return tuple(column[place] for column in columns)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that were not reached."""
        return self._values(self.p.y0, self.end, self.steps)

    def _values(self, y0: Leaves, end: Leaves, steps: Pieces | None) -> Leaves:
        """`ys` of the first and last states, and of what the tape has of each step."""
        if not self.plan.starts:  # two outputs: the first state and the last
            ys = tuple(torch.stack([a, b]) for a, b in zip(y0, end, strict=True))
        else:
            ys = blank(replace(self.p, y0=y0, ts=self.p.ts.detach()), None)
            if steps is not None:
                ys = select(self.given, self._within(end, steps), ys)
        return tuple(y.movedim(0, int(self.p.batched)) for y in ys)

    def _within(self, end: Leaves, steps: Pieces) -> Leaves:
        here, last = Pieces.from_flat(self._at(steps.flat(), self.step), self.n), len(steps.start) - 1
        y1 = self._at(steps.y, (self.step + 1).clamp(max=last))
        y1 = select(self.step == last, tuple(y.expand_as(v) for y, v in zip(end, y1, strict=True)), y1)
        t1 = torch.where(here.end == here.start, here.start + 1.0, here.end)  # in lanes that give nothing
        return within(self.times, here.start, t1, here.y, y1, here.coefficients, False)

    def pieces(self) -> Pieces:
        return Pieces.still(self.p) if self.steps is None else self.steps

    def bars(self, cotangents: Sequence[Tensor | None]) -> Bars:
        """From the cotangents of (ys, y1, pieces)."""
        n, steps = self.n, None
        flat = () if self.steps is None else self.steps.flat()
        with torch.enable_grad():
            given = new_leaves((*self.p.y0, *self.end, *flat[2:]))
            if flat:
                steps = Pieces.from_flat((*flat[:2], *given[2 * n :]), n)
            ys = self._values(given[:n], given[n : 2 * n], steps)
        pairs = [(y, b) for y, b in zip(ys, cotangents[:n], strict=True) if b is not None]
        found: Sequence[Tensor | None] = [None] * len(given)
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], given, [b for _, b in pairs], allow_unused=True)
        start, pieces = [None] * n, cotangents[2 * n + 2 :]  # of the pieces but their times
        if pieces and not flat:  # the constant piece of a solve of no length
            start, pieces = [None if b is None else b[0] for b in pieces[:n]], ()
        sums = added(found, (*start, *cotangents[n : 2 * n], *pieces))
        bars = [torch.zeros_like(x) if b is None else b for x, b in zip(given, sums, strict=True)]
        return Bars(bars[n : 2 * n], self._chunked(bars[2 * n :]), bars[:n])

    def _chunked(self, columns: list[Tensor]) -> list[list[Tensor]]:
        """Columns of all steps cut into those of each chunk, filled up to the rows of a tape."""
        counts = [chunk.rows for chunk in self.chunks]
        chunks = zip(*(column.split(counts) for column in columns), strict=True)
        return [[self._filled(part) for part in chunk] for chunk in chunks]

    def _filled(self, part: Tensor) -> Tensor:
        whole = tape_of(part[0], self.plan.slots, self.plan.columns)
        whole[: len(part)] = part
        return whole
