"""The solution at the output times, read from tapes, and the cotangents of the outputs as cotangents of the tapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.leaves import Leaves, as_graph_inputs, select
from ..engine.dense_recorder import PiecewisePolynomial
from ..engine.output_rule import blank_outputs, output_times, outputs_within
from ..engine.problem import Problem
from ..gradients.gradient import add_cotangents
from .passes.column_layout import tape_tensor
from .plan import Plan
from .tape_pool import TapeBuffer


@dataclass
class Chunk:
    """A tape, the number of its rows in use, its plan, and the products saved beside it."""

    plan: Plan
    rows: int
    tape: list[Tensor]
    saved: TapeBuffer


@dataclass
class TapeCotangents:
    """Of the last state, of the rows of each chunk (states at the starts, then polynomials), and of y0 directly."""

    end: list[Tensor]
    rows: list[list[Tensor]]
    start: list[Tensor]


class Outputs:
    """The outputs of a solve, each computed from its step. end: the last state. steps: the polynomials on the tapes."""

    def __init__(self, p: Problem, plan: Plan, chunks: list[Chunk], end: Leaves) -> None:
        self.p, self.plan, self.chunks, self.end = p, plan, chunks, end
        self.n = len(p.y0)
        self.steps: PiecewisePolynomial | None = None
        if plan.step_starts and chunks:
            self.steps = self._steps()
            self._locate(self.steps)

    def _steps(self) -> PiecewisePolynomial:
        """The polynomials of all chunks, from the tensors of `tape_tensors`."""
        n, plan = self.n, self.plan
        at = 2 * n if plan.has_carry else n
        wanted = (at, at + 1, *range(n), *range(at + 2 + plan.flag_count, len(self.chunks[0].tape)))
        flat = []
        for i in wanted:
            parts = [chunk.tape[i][: chunk.rows] for chunk in self.chunks]
            flat.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return PiecewisePolynomial.from_flat(flat, n)

    def _locate(self, steps: PiecewisePolynomial) -> None:
        p, count = self.p, len(steps.start)
        sign = p.direction.unsqueeze(-1)
        ends = (steps.end.movedim(0, -1) * sign).contiguous()
        # the first step that ends at the output or later; one past the last if no step does
        step = torch.searchsorted(ends, (p.ts.detach() * sign).contiguous()).movedim(-1, 0)
        self.times = output_times(p).detach()
        self.given = (step < count) & ((self.times - self.times[0]) * p.direction > 0)
        self.step = step.clamp(max=count - 1)

    def _at(self, values: Leaves, step: Tensor) -> Leaves:
        """(steps, B, ...) -> (T, B, ...), or without B: for each output the value of its step."""
        index = (step, torch.arange(step.shape[1], device=step.device)) if self.p.batched else (step,)
        return tuple(value[index] for value in values)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...), NaN at times that were not reached."""
        return self._values(self.p.y0, self.end, self.steps)

    def _values(self, y0: Leaves, end: Leaves, steps: PiecewisePolynomial | None) -> Leaves:
        """`ys` from the first and last states and the polynomials of the steps."""
        if not self.plan.step_starts:  # the outputs are the first state and the last
            ys = tuple(torch.stack([a, b]) for a, b in zip(y0, end, strict=True))
        else:
            ys = blank_outputs(replace(self.p, y0=y0, ts=self.p.ts.detach()), None)
            if steps is not None:
                ys = select(self.given, self._within(end, steps), ys)
        return tuple(y.movedim(0, int(self.p.batched)) for y in ys)

    def _within(self, end: Leaves, steps: PiecewisePolynomial) -> Leaves:
        here, last = PiecewisePolynomial.from_flat(self._at(steps.flatten(), self.step), self.n), len(steps.start) - 1
        y1 = self._at(steps.y, (self.step + 1).clamp(max=last))
        y1 = select(self.step == last, tuple(y.expand_as(v) for y, v in zip(end, y1, strict=True)), y1)
        t1 = torch.where(here.end == here.start, here.start + 1.0, here.end)  # no division by zero in unused samples
        return outputs_within(self.times, here.start, t1, here.y, y1, here.coefficients, False)

    def pieces(self) -> PiecewisePolynomial:
        return PiecewisePolynomial.constant(self.p) if self.steps is None else self.steps

    def tape_cotangents(self, cotangents: Sequence[Tensor | None]) -> TapeCotangents:
        """From the cotangents of (ys, y1, pieces)."""
        n, steps = self.n, None
        flat = () if self.steps is None else self.steps.flatten()
        with torch.enable_grad():
            inputs = as_graph_inputs((*self.p.y0, *self.end, *flat[2:]))
            if flat:
                steps = PiecewisePolynomial.from_flat((*flat[:2], *inputs[2 * n :]), n)
            ys = self._values(inputs[:n], inputs[n : 2 * n], steps)
        pairs = [(y, c) for y, c in zip(ys, cotangents[:n], strict=True) if c is not None]
        grads: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            grads = torch.autograd.grad([y for y, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
        start, pieces = [None] * n, cotangents[2 * n + 2 :]  # of the pieces, without their times
        if pieces and not flat:  # the constant piece of a solve of length zero
            start, pieces = [None if c is None else c[0] for c in pieces[:n]], ()
        sums = add_cotangents(grads, (*start, *cotangents[n : 2 * n], *pieces))
        totals = [torch.zeros_like(x) if c is None else c for x, c in zip(inputs, sums, strict=True)]
        return TapeCotangents(totals[n : 2 * n], self._by_chunk(totals[2 * n :]), totals[:n])

    def _by_chunk(self, values: list[Tensor]) -> list[list[Tensor]]:
        """Split tensors (steps, ...) by chunk, and pad them to the rows of a tape."""
        counts = [chunk.rows for chunk in self.chunks]
        chunks = zip(*(value.split(counts) for value in values), strict=True)
        return [[self._padded(part) for part in chunk] for chunk in chunks]

    def _padded(self, part: Tensor) -> Tensor:
        whole = tape_tensor(part[0], self.plan.rows, self.plan.column_major)
        whole[: len(part)] = part
        return whole
