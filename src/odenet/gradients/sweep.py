"""One backward pass over a tape: the accepted steps in reverse order, one step's graph at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.lanes import Flag
from ..core.leaves import cast, new_leaves, select
from ..engine.advance import after_step
from ..engine.record import first_outputs, outputs, piece
from ..engine.tape import Entry
from ..methods.base import Bars, Method, StagewiseMethod
from .base import add
from .local import Local
from .memory import nbytes
from .states import Start
from .taped import Taken

# From a state of this many bytes on, a step is pulled through evaluation by evaluation: with less memory, as one graph
# goes before the next is pulled through. A small state takes longer that way: autograd is called for every stage.
BY_STAGES = 2**18


class Sweep(ABC):
    """Pulls the cotangents of a solve back to its inputs."""

    def __init__(self, taken: Taken, method: Method) -> None:
        """method: the one whose evaluations of f make up a step."""
        q, needed = taken.q, taken.needed
        self.entries, self.captured, self.stats, self.graphs = taken.entries, taken.captured, taken.stats, taken.graphs
        self.args = q.f.differentiable_args
        self.q = replace(q, f=q.f.with_args(self.args))
        self.times_needed = needed[len(q.y0)] or needed[len(q.y0) + 1]
        self.fixed = (*self.args, *taken.captured)
        self.fixed_bar: Bars = [None] * len(self.fixed)
        self.ts_bar = torch.zeros_like(q.ts)
        self.stops_bar = torch.zeros_like(q.stops.times)
        self.nfe = taken.stats["nfe"] * 0
        self.charged = 0
        self.marker = 0
        large = nbytes(q.y0) >= BY_STAGES
        self.stagewise = method if large and isinstance(method, StagewiseMethod) else None

    @abstractmethod
    def local(self, n: int, y_bar: Bars, carry_bar: Bars) -> tuple[Local, Bars]:
        """Step n, attached, and the cotangent of the state after it that is left to pull through it.

        Called in grad mode.
        """

    @abstractmethod
    def pulled(self, method: StagewiseMethod, n: int, y_bar: Bars, carry_bar: Bars) -> tuple[Bars, Bars]:
        """Cotangents after step n -> before it, for a step of which only y1 and the carry are wanted, and no times.

        Called without grad mode.
        """

    def run(self, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        q, n = self.q, len(self.q.y0)
        ys_bar, y_bar, dense_bar = cotangents[:n], list(cotangents[n : 2 * n]), cotangents[2 * n :]
        carry_bar: Bars = []
        self.outputs_wanted = any(b is not None for b in ys_bar)
        self.dense_wanted = any(b is not None for b in dense_bar)
        time_bar = torch.zeros_like(q.direction)
        with torch.enable_grad():
            left = len(self.entries)
            while left:
                taken, y_bar, carry_bar, time_bar = self._steps(left - 1, ys_bar, y_bar, carry_bar, time_bar, dense_bar)
                left -= taken
            y_bar = self._start(ys_bar, y_bar, carry_bar)
        if not self.entries and dense_bar:  # the constant piece of a solve of no length
            y_bar = [add(a, None if b is None else b[0]) for a, b in zip(y_bar, dense_bar[2 : 2 + n], strict=True)]
        self.ts_bar[..., 0] += time_bar
        self.stats["backward_nfe"] = self.nfe
        ts_bars = (self.ts_bar, self.stops_bar) if self.times_needed else (None, None)
        return (*y_bar, *ts_bars, *self.fixed_bar)

    def vjp(self, values: Sequence[Tensor], bars: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> Bars:
        """Pull `bars` back to `inputs`; adds what reaches args and captured tensors to `fixed_bar`."""
        pairs = [(v, cast(b, v.dtype)) for v, b in zip(values, bars, strict=True) if b is not None and v.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outs = tuple(v for v, _ in pairs)
        if self.q.f.captured is not None:
            self.q.f.captured.see(outs, (*inputs, *self.args), self.marker)
        grads = torch.autograd.grad(
            outs, (*inputs, *self.fixed), tuple(b for _, b in pairs), allow_unused=True, retain_graph=False
        )
        split = len(inputs)
        self.fixed_bar = [add(a, b) for a, b in zip(self.fixed_bar, grads[split:], strict=True)]
        return list(grads[:split])

    @torch.no_grad()
    def forwards(self, n: int, start: Start) -> Start:
        """The start of step n + 1 from that of step n; what its evaluations cost is charged to its lanes."""
        q, e, (y, carry) = self.q, self.entries[n], start
        time0, time1 = e.ends(q)
        move = e.again(q, time0, time1, y, carry)
        carry1 = after_step(q, time1, move.step, e.jumps)
        self.charge(e.accept)
        return select(e.accept, move.step.y, y), select(e.accept, carry1, carry)

    def charge(self, lanes: Flag = True) -> None:
        """Charge these lanes for the evaluations since the last charge."""
        calls = self.q.f.calls
        self.nfe = self.nfe + (calls - self.charged) * (lanes if isinstance(lanes, Tensor) else 1)
        self.charged = calls

    def leaf_ends(self, e: Entry) -> tuple[Tensor, Tensor]:
        time0, time1 = e.ends(self.q)
        if not self.times_needed:
            return time0, time1
        return time0.detach().requires_grad_(), time1.detach().requires_grad_()

    def _steps(
        self,
        index: int,
        ys_bar: Sequence[Tensor | None],
        y_bar: Bars,
        carry_bar: Bars,
        time_bar: Tensor,
        dense_bar: Sequence[Tensor | None],
    ) -> tuple[int, Bars, Bars, Tensor]:
        """Back through step `index`, and those before it that its kept graph is attached to: how many, and the bars."""
        q, e = self.q, self.entries[index]
        chain = [] if self.graphs is None else self.graphs.take(index)
        if not chain or self.graphs is None:
            self.marker = graph_marker()
            if self.stagewise is not None and self._plain(e):
                return 1, *self._pulled(self.stagewise, index, y_bar, carry_bar), time_bar
            local, y_bar = self.local(index, y_bar, carry_bar)
            chain = [local]
        else:
            self.marker = self.graphs.marker
        last, first = chain[0], chain[-1]
        values, bars = [*last.move.step.y, *last.carry1], [*y_bar, *(carry_bar or [None] * len(last.carry1))]
        bars, passed = divided(e.accept, bars)
        times = q.ts.detach().requires_grad_(self.times_needed)
        for back, local in enumerate(chain):
            self._inside(index - back, local, times, ys_bar, dense_bar, values, bars)
        ends = (first.move.time0, first.move.time1, times) if self.times_needed else ()
        grads = self.vjp(values, bars, (*first.y, *first.carry, *ends))
        self.charge(e.accept)
        n, m = len(first.y), len(first.y) + len(first.carry)
        if self.times_needed:
            bar0, bar1 = (add(a, b) for a, b in zip(grads[m : m + 2], first.ends_bar, strict=True))
            time_bar = self.times(e, time_bar, bar0, bar1)
            ts_bar = grads[m + 2]
            if ts_bar is not None:
                self.ts_bar += ts_bar
        y_new = [add(a, b) for a, b in zip(grads[:n], passed[:n], strict=True)]
        carry_new = [add(a, b) for a, b in zip(grads[n:m], passed[n:] or [None] * len(first.carry), strict=True)]
        return len(chain), y_new, carry_new, time_bar

    def _inside(
        self,
        index: int,
        local: Local,
        times: Tensor,
        ys_bar: Sequence[Tensor | None],
        dense_bar: Sequence[Tensor | None],
        values: list[Tensor],
        bars: Bars,
    ) -> None:
        """Adds what the solve shows of a step beside its end: outputs within it, and its polynomial."""
        move, rows = local.move, self.entries[index].rows
        wanted = rows is not None and self.outputs_wanted
        if rows is not None and wanted:
            values += outputs(move, times, rows)
            bars += [None if b is None else b[rows] for b in ys_bar]
        if self.dense_wanted:
            values += piece(move)
            bars += [None if d is None else d[index] for d in dense_bar]
        move.step = move.step._replace(stages=())  # only dense output wanted them

    def _plain(self, e: Entry) -> bool:
        """Whether only y1 and the carry of a step are wanted, and no evaluation belongs to it but the method's."""
        if self.times_needed or self.dense_wanted or (e.rows is not None and self.outputs_wanted):
            return False
        return not (bool(e.jumps.any()) if isinstance(e.jumps, Tensor) else e.jumps)

    @torch.no_grad()
    def _pulled(self, method: StagewiseMethod, index: int, y_bar: Bars, carry_bar: Bars) -> tuple[Bars, Bars]:
        e, n = self.entries[index], len(y_bar)
        through, passed = divided(e.accept, [*y_bar, *carry_bar])
        y_new, carry_new = self.pulled(method, index, through[:n], through[n:])
        self.charge(e.accept)
        y_new = [add(a, b) for a, b in zip(y_new, passed[:n], strict=True)]
        return y_new, [add(a, b) for a, b in zip(carry_new, passed[n:] or [None] * len(carry_new), strict=True)]

    def times(self, e: Entry, time_bar: Tensor, bar0: Tensor | None, bar1: Tensor | None) -> Tensor:
        """The end of a step is a stop where it hit one, else its start plus a constant."""
        zero = torch.zeros_like(time_bar)
        bar0, bar1 = (zero if b is None else b for b in (bar0, bar1))
        if not isinstance(e.accept, Tensor):
            if e.hit:
                if e.stop >= 0:  # the time of an event is a constant
                    self.stops_bar[e.stop] += time_bar + bar1
                return bar0
            return time_bar + bar0 + bar1
        hit = e.accept & e.hit
        index = e.stop.clamp(max=self.stops_bar.shape[1] - 1)[:, None]
        self.stops_bar.scatter_add_(1, index, torch.where(hit, time_bar + bar1, zero)[:, None])
        return torch.where(hit, bar0, time_bar + bar0 + bar1)

    def _start(self, ys_bar: Sequence[Tensor | None], y_bar: Bars, carry_bar: Bars) -> Bars:
        """Back through the first carry and through the outputs at ts[0]."""
        q = self.q
        self.marker = graph_marker()
        ts = q.ts.detach().requires_grad_(self.times_needed)
        y = new_leaves(q.y0)
        values: list[Tensor] = []
        bars: Bars = []
        if any(b is not None for b in carry_bar):
            values += q.method.init(q.f, ts[..., 0], y)
            bars += carry_bar
        if any(b is not None for b in ys_bar):
            rows, firsts, _ = first_outputs(q, ts, y)
            values += firsts
            bars += [None if b is None else b[rows] for b in ys_bar]
        grads = self.vjp(values, bars, (*y, *((ts,) if self.times_needed else ())))
        self.charge()
        if self.times_needed and grads[-1] is not None:
            self.ts_bar += grads[-1]
        return [add(a, b) for a, b in zip(y_bar, grads[: len(y)], strict=True)]


def divided(accept: Flag, bars: Bars) -> tuple[Bars, Bars]:
    """Cotangents of the lanes that took the step, and those that pass the others by."""
    if not isinstance(accept, Tensor):
        return bars, [None] * len(bars)
    some = tuple(b for b in bars if b is not None)
    none = tuple(torch.zeros_like(b) for b in some)
    through, passed = iter(select(accept, some, none)), iter(select(accept, none, some))
    return [None if b is None else next(through) for b in bars], [None if b is None else next(passed) for b in bars]
