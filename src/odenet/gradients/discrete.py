"""The exact gradient of the numerical solution, by vector-Jacobian products of its steps in reverse order.

Zhuang et al. 2020 ("Adaptive checkpoint adjoint", arXiv 2006.02493): the accepted steps are taken again one at a time,
each differentiated and dropped, so that one step's graph is alive at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.leaves import Leaves, select
from ..engine.drive import Driver
from ..engine.integrate import Request, integrate
from ..engine.problem import Problem
from ..engine.record import Pieces, Record, first_outputs, outputs, piece
from ..engine.tape import Entry, Tape, on_fresh_field
from .backprop import interpolator, plain
from .base import Gradient, Stats, Trajectory, add, attach


@final
class Discrete(Gradient):
    """Reversed loop over step VJPs. Memory: the states at the accepted steps, and the graph of one step."""

    name = "discrete"

    def run(self, p: Problem, driver: Driver, request: Request) -> Trajectory:
        if not torch.is_grad_enabled():
            return plain(p, driver, request)
        q = p.detached()
        with torch.no_grad():
            record = Record(q)
            tape = Tape(record)
            solved = integrate(q, driver, request, record, (tape,))
        stats = Stats.of(solved.outcome)
        captured = tuple(q.f.captured.tensors.values()) if q.f.captured else ()
        inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args, *captured)
        dense = None if solved.pieces is None else solved.pieces.flat()
        values: Sequence[Tensor] = (*solved.ys, *solved.y1, *(dense or ()))
        if any(x.requires_grad for x in inputs):
            needed = [x.requires_grad for x in inputs]

            def pull(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
                return Sweep(q, tape.entries, captured, stats, needed).run(cotangents)

            values = attach(pull, self.name, values, inputs)
        n = len(p.y0)
        ys, y1 = tuple(values[:n]), tuple(values[n : 2 * n])
        pieces = None if dense is None else Pieces.from_flat(values[2 * n :], n)
        return Trajectory(ys, y1, pieces and interpolator(pieces, p), solved.outcome, stats)


class Sweep:
    """One backward pass over a tape."""

    def __init__(self, q: Problem, entries: list[Entry], captured: Leaves, stats: Stats, needed: list[bool]) -> None:
        self.entries, self.captured, self.stats = entries, captured, stats
        self.args = tuple(x.detach().requires_grad_() for x in q.f.differentiable_args)
        self.q = on_fresh_field(q, self.args)
        self.times_needed = needed[len(q.y0)] or needed[len(q.y0) + 1]
        self.fixed = (*self.args, *captured)
        self.fixed_bar: list[Tensor | None] = [None] * len(self.fixed)
        self.ts_bar = torch.zeros_like(q.ts)
        self.stops_bar = torch.zeros_like(q.stops.times)
        self.nfe = stats["nfe"] * 0

    def run(self, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        q, n = self.q, len(self.q.y0)
        ys_bar, y_bar, dense_bar = cotangents[:n], list(cotangents[n : 2 * n]), cotangents[2 * n :]
        carry_bar: list[Tensor | None] = []
        time_bar = torch.zeros_like(q.direction)
        with torch.enable_grad():
            for index in range(len(self.entries) - 1, -1, -1):
                piece_bar = [None if d is None else d[index] for d in dense_bar]
                y_bar, carry_bar, time_bar = self._step(
                    self.entries[index], ys_bar, y_bar, carry_bar, time_bar, piece_bar
                )
            y_bar = self._start(ys_bar, y_bar, carry_bar)
        if not self.entries and dense_bar:  # the constant piece of a solve of no length
            y_bar = [add(a, None if b is None else b[0]) for a, b in zip(y_bar, dense_bar[2 : 2 + n], strict=True)]
        self.ts_bar[..., 0] += time_bar
        self.stats["backward_nfe"] = self.nfe
        ts_bars = (self.ts_bar, self.stops_bar) if self.times_needed else (None, None)
        return (*y_bar, *ts_bars, *self.fixed_bar)

    def _vjp(
        self, values: Sequence[Tensor], bars: Sequence[Tensor | None], inputs: Sequence[Tensor], marker: int
    ) -> list[Tensor | None]:
        """Pull `bars` back to `inputs`; adds what reaches args and captured tensors to `fixed_bar`."""
        pairs = [(v, b) for v, b in zip(values, bars, strict=True) if b is not None and v.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outs = tuple(v for v, _ in pairs)
        if self.q.f.captured is not None:
            self.q.f.captured.see(outs, (*inputs, *self.args), marker)
        grads = torch.autograd.grad(
            outs, (*inputs, *self.fixed), tuple(b for _, b in pairs), allow_unused=True, retain_graph=False
        )
        split = len(inputs)
        self.fixed_bar = [add(a, b) for a, b in zip(self.fixed_bar, grads[split:], strict=True)]
        return list(grads[:split])

    def _count(self, before: int, accept: object) -> None:
        self.nfe = self.nfe + (self.q.f.calls - before) * (accept if isinstance(accept, Tensor) else 1)

    def _step(
        self,
        e: Entry,
        ys_bar: Sequence[Tensor | None],
        y_bar: list[Tensor | None],
        carry_bar: list[Tensor | None],
        time_bar: Tensor,
        piece_bar: list[Tensor | None],
    ) -> tuple[list[Tensor | None], list[Tensor | None], Tensor]:
        q, marker, before = self.q, graph_marker(), self.q.f.calls
        time0, time1 = (x.detach().requires_grad_(self.times_needed) for x in (e.time0, e.time1))
        y, carry = (tuple(x.detach().requires_grad_() for x in xs) for xs in (e.y, e.carry))
        times = q.ts.detach().requires_grad_(self.times_needed)
        move, carry1 = e.again(q, time0, time1, y, carry)
        values, bars = [*move.step.y, *carry1], [*y_bar, *(carry_bar or [None] * len(carry1))]
        passed = [None] * len(bars)
        if isinstance(e.accept, Tensor):
            lanes = [(v, b) for v, b in zip(values, bars, strict=True)]
            passed = [None if b is None else select(e.accept, (torch.zeros_like(b),), (b,))[0] for _, b in lanes]
            bars = [None if b is None else select(e.accept, (b,), (torch.zeros_like(b),))[0] for _, b in lanes]
        if e.rows is not None and any(b is not None for b in ys_bar):
            values += outputs(move, times, e.rows)
            bars += [None if b is None else b[e.rows] for b in ys_bar]
        if any(b is not None for b in piece_bar):
            values += piece(move)
            bars += piece_bar
        inputs = (*y, *carry, *((time0, time1, times) if self.times_needed else ()))
        grads = self._vjp(values, bars, inputs, marker)
        self._count(before, e.accept)
        n, m = len(y), len(y) + len(carry)
        if self.times_needed:
            time_bar = self._times(e, time_bar, *grads[m:])
        y_new = [add(a, b) for a, b in zip(grads[:n], passed[:n], strict=True)]
        carry_new = [add(a, b) for a, b in zip(grads[n:m], passed[n:] or [None] * len(carry), strict=True)]
        return y_new, carry_new, time_bar

    def _times(
        self, e: Entry, time_bar: Tensor, bar0: Tensor | None, bar1: Tensor | None, bar_ts: Tensor | None
    ) -> Tensor:
        """The end of a step is a stop where it hit one, else its start plus a constant."""
        zero = torch.zeros_like(time_bar)
        bar0, bar1 = (zero if b is None else b for b in (bar0, bar1))
        if bar_ts is not None:
            self.ts_bar += bar_ts
        if not isinstance(e.accept, Tensor):
            if e.hit:
                self.stops_bar[e.stop] += time_bar + bar1
                return bar0
            return time_bar + bar0 + bar1
        hit = e.accept & e.hit
        index = e.stop.clamp(max=self.stops_bar.shape[1] - 1)[:, None]
        self.stops_bar.scatter_add_(1, index, torch.where(hit, time_bar + bar1, zero)[:, None])
        return torch.where(hit, bar0, time_bar + bar0 + bar1)

    def _start(
        self,
        ys_bar: Sequence[Tensor | None],
        y_bar: list[Tensor | None],
        carry_bar: list[Tensor | None],
    ) -> list[Tensor | None]:
        """Back through the first slope and through the outputs at ts[0]."""
        q, marker, before = self.q, graph_marker(), self.q.f.calls
        ts = q.ts.detach().requires_grad_(self.times_needed)
        y = tuple(x.detach().requires_grad_() for x in q.y0)
        values, bars = [], []
        if any(b is not None for b in carry_bar):
            values += q.method.init(q.f, ts[..., 0], y)
            bars += carry_bar
        if any(b is not None for b in ys_bar):
            rows, firsts, _ = first_outputs(q, ts, y)
            values += firsts
            bars += [None if b is None else b[rows] for b in ys_bar]
        grads = self._vjp(values, bars, (*y, *((ts,) if self.times_needed else ())), marker)
        self._count(before, True)
        if self.times_needed and grads[-1] is not None:
            self.ts_bar += grads[-1]
        return [add(a, b) for a, b in zip(y_bar, grads[: len(y)], strict=True)]
