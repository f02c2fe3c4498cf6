"""One backward pass over a tape: the accepted steps in reverse order, one step's graph at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.capture import Nodes, graph_marker
from ..core.lanes import Flag, some
from ..core.leaves import Leaves, cast, new_leaves, select
from ..engine.advance import after_step
from ..engine.problem import Problem
from ..engine.record import first_outputs, kept, outputs, piece
from ..engine.tape import Entry
from ..methods.base import Bars, Method, StagewiseMethod
from .base import add
from .local import Local, PoisonedError, divided, mixed
from .memory import nbytes
from .parts import Apart, Part, Shared, fewer
from .states import Start
from .taped import Taken

# From a state of this many bytes on, a step is pulled through evaluation by evaluation: with less memory, as one graph
# goes before the next is pulled through. A small state takes longer that way: autograd is called for every stage.
BY_STAGES = 2**18


class Sweep(ABC):
    """Pulls the cotangents of a solve back to its inputs."""

    def __init__(self, taken: Taken, method: Method) -> None:
        """method: the one whose evaluations of f make up a step."""
        needed = taken.needed
        self.entries, self.captured, self.stats, self.graphs = taken.entries, taken.captured, taken.stats, taken.graphs
        self.whole = self.part = Part.of(taken.q)
        self.parts: dict[int, Part] = {}
        self.passing: tuple[int, Entry, Part] | None = None  # a step's own, where it left lanes out
        q = self.whole.q
        self.whole.charged = q.f.calls
        self.shown = taken.shown
        self.times_needed = needed[len(q.y0)] or needed[len(q.y0) + 1]
        self.shared = Shared((*self.whole.args, *taken.captured))
        self.ts = q.ts.detach()
        self.ts_bar = torch.zeros_like(q.ts)
        self.stops_bar = torch.zeros_like(q.stops.times)
        self.nfe = taken.stats["nfe"] * 0
        self.marker = 0
        self.seen: Nodes = set()  # nodes of kept graphs
        large = nbytes(q.y0) >= BY_STAGES
        self.stagewise = method if large and isinstance(method, StagewiseMethod) else None

    @property
    def q(self) -> Problem:
        """That of the samples at hand."""
        return self.part.q

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
        q, n, m = self.q, len(self.q.y0), self.shown
        ys_bar, y_bar, dense_bar = cotangents[:m], list(cotangents[m : m + n]), cotangents[m + n :]
        carry_bar: Bars = []
        self.outputs_wanted, self.dense_wanted = (any(b is not None for b in bars) for bars in (ys_bar, dense_bar))
        time_bar = torch.zeros_like(q.direction)
        self.apart = Apart(), Apart(), Apart()
        with torch.enable_grad():
            left = len(self.entries)
            while left:
                y_bar, carry_bar, time_bar = self._with(self.taking(left - 1)[1], y_bar, carry_bar, time_bar)
                taken, y_bar, carry_bar, time_bar = self._steps(left - 1, ys_bar, y_bar, carry_bar, time_bar, dense_bar)
                left -= taken
            y_bar, carry_bar, time_bar = self._with(self.whole, y_bar, carry_bar, time_bar)
            y_bar = self._first_carry(y_bar, carry_bar)
            y_bar = self._first_outputs(ys_bar, y_bar)
        if not self.entries and dense_bar:  # the constant piece of a solve of no length
            y_bar = [add(a, None if b is None else b[0]) for a, b in zip(y_bar, dense_bar[2 : 2 + n], strict=True)]
        self.ts_bar[..., 0] += time_bar
        self.stats["backward_nfe"] = self.nfe
        ts_bars = (self.ts_bar, self.stops_bar) if self.times_needed else (None, None)
        return (*y_bar, *ts_bars, *self.shared.total)

    def segment_of(self, n: int) -> Part:
        """That of all samples that were in the batch at step n."""
        p = self.entries[n].problem
        if p.lanes is None:
            return self.whole
        if id(p) not in self.parts:
            self.parts[id(p)] = Part.of(p)
        return self.parts[id(p)]

    def taking(self, n: int) -> tuple[Entry, Part]:
        """Step n and the problem of those samples that take it again."""
        e = self.entries[n]
        if e.rows is None:
            return e, self.segment_of(n)
        if self.passing is None or self.passing[0] != n:
            with torch.no_grad():  # its args are leaves
                narrowed = self.segment_of(n).q.narrowed(e.rows)
            assert narrowed is not None  # the tape has asked
            self.passing = n, e.among(e.rows), Part.of(narrowed)
        return self.passing[1:]

    def start_of(self, n: int, start: Start) -> Start:
        """Of the samples that take step n again, from that of all that were in the batch."""
        rows = self.entries[n].rows
        if rows is None:
            return start
        y, carry = (tuple(x.index_select(0, rows) for x in leaves) for leaves in start)
        return y, carry

    def _with(self, part: Part, y_bar: Bars, carry_bar: Bars, time_bar: Tensor) -> tuple[Bars, Bars, Tensor]:
        """Go on with the samples of a part, and their cotangents; the others' stay as they are."""
        if part is self.part:
            return y_bar, carry_bar, time_bar
        self.enter(part)
        self.part, lanes = part, part.q.lanes
        self.shared.enter(part.q.f, lanes)
        bars: tuple[Bars, Bars, Bars] = (y_bar, carry_bar, [time_bar])
        y_bar, carry_bar, times = (a.move(x, lanes) for a, x in zip(self.apart, bars, strict=True))
        assert times[0] is not None
        return y_bar, carry_bar, times[0]

    def enter(self, part: Part) -> None:  # noqa: B027
        """Called before other samples are in the batch."""

    def vjp(
        self,
        values: Sequence[Tensor],
        bars: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        suspect: bool = False,
    ) -> Bars:
        """Pull `bars` back to `inputs`; what reaches args and captured tensors is added up.

        suspect: raises PoisonedError, and adds nothing, where the result is not finite.
        """
        pairs = [(v, cast(b, v.dtype)) for v, b in zip(values, bars, strict=True) if b is not None and v.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outs = tuple(v for v, _ in pairs)
        if self.q.f.captured is not None:
            self.q.f.captured.see(outs, (*inputs, *self.part.args), self.marker, self.seen)
        grads = self.q.f.vjp(outs, (*inputs, *self.part.args, *self.captured), tuple(b for _, b in pairs))
        if suspect and not all(bool(torch.isfinite(g.sum())) for g in grads if g is not None):
            raise PoisonedError
        split = len(inputs)
        self.shared.add(grads[split:])
        return list(grads[:split])

    def forwards(self, n: int, start: Start) -> Start:
        """The start of step n + 1 from that of step n."""
        y, carry = self.taken_again(n, start)
        here, after = (e.problem.lanes for e in self.entries[n : n + 2])
        return fewer(y, here, after), fewer(carry, here, after)

    @torch.no_grad()
    def taken_again(self, n: int, start: Start) -> Start:
        """The end of step n from its start; what its evaluations cost is charged to its lanes."""
        (e, part), (y, carry) = self.taking(n), self.start_of(n, start)
        time0, time1 = e.ends(part.q)
        move = e.again(part.q, time0, time1, y, carry)
        carry1 = after_step(part.q, time1, move.step, e.jumps)
        self.charge(e.accept, part)
        y, carry = select(e.accept, move.step.y, y), select(e.accept, carry1, carry)
        rows = self.entries[n].rows
        if rows is None:
            return y, carry
        pairs = zip(start, (y, carry), strict=True)
        y, carry = (tuple(a.index_copy(0, rows, b) for a, b in zip(*x, strict=True)) for x in pairs)
        return y, carry

    def charge(self, lanes: Flag = True, part: Part | None = None) -> None:
        """Charge these lanes for the evaluations since the last charge."""
        self.nfe = (part or self.part).charge(self.nfe, lanes)

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
        (e, _), recorded = self.taking(index), False
        chain = [] if self.graphs is None else self.graphs.take(index)
        self.marker = graph_marker()
        self.seen.clear()
        if not chain or self.graphs is None:
            if self.stagewise is not None and self._plain(e):
                return 1, *self._pulled(self.stagewise, index, y_bar, carry_bar), time_bar
            local, y_bar = self.local(index, y_bar, carry_bar)
            chain = [local]
        else:
            self.graphs.seen_by(self.q.f.captured, chain, self.part.args, self.seen)
            recorded = True
        last, first = chain[0], chain[-1]
        values, bars = [*last.move.step.y, *last.carry1], [*y_bar, *(carry_bar or [None] * len(last.carry1))]
        bars, passed = divided(e.accept, bars)
        times: Leaves = ()
        for back, local in enumerate(chain):
            times = self._inside(index - back, local, ys_bar, dense_bar, values, bars)
        ends = (first.move.time0, first.move.time1, *times) if self.times_needed else ()
        try:
            grads = self.vjp(values, bars, (*first.y, *first.carry, *ends), recorded and mixed(e.accept))
        except PoisonedError:
            return self._steps(index, ys_bar, y_bar, carry_bar, time_bar, dense_bar)
        self.charge(e.accept)
        n, m = len(first.y), len(first.y) + len(first.carry)
        if self.times_needed:
            bar0, bar1 = (add(a, b) for a, b in zip(grads[m : m + 2], first.ends_bar, strict=True))
            time_bar = self.times(e, time_bar, bar0, bar1)
            ts_bar = grads[m + 2] if times else None
            if e.given is not None and ts_bar is not None:
                self.ts_bar[e.given.rows] += ts_bar
        y_new = [add(a, b) for a, b in zip(grads[:n], passed[:n], strict=True)]
        carry_new = [add(a, b) for a, b in zip(grads[n:m], passed[n:] or [None] * len(first.carry), strict=True)]
        return len(chain), y_new, carry_new, time_bar

    def _inside(
        self,
        index: int,
        local: Local,
        ys_bar: Sequence[Tensor | None],
        dense_bar: Sequence[Tensor | None],
        values: list[Tensor],
        bars: Bars,
    ) -> Leaves:
        """Adds what the solve shows of a step beside its end: outputs within it, and its polynomial.

        Gives the times of those outputs, as a leaf, where there are any.
        """
        move, given = local.move, self.taking(index)[0].given if self.outputs_wanted else None
        times: Leaves = ()
        if given is not None:
            times = (self.ts[given.rows].requires_grad_(self.times_needed),)
            inside = outputs(move, times[0], given.lane)
            values += kept(self.q, times[0], inside, given.lane, move.time0, move.y)
            bars += [None if b is None else b[given.rows] for b in ys_bar]
        if self.dense_wanted:
            values += piece(move)
            bars += [None if d is None else d[index] for d in dense_bar]
        move.step = move.step._replace(stages=())  # only dense output wanted them
        return times

    def _plain(self, e: Entry) -> bool:
        """Whether only y1 and the carry of a step are wanted, and no evaluation belongs to it but the method's."""
        if self.times_needed or self.dense_wanted or (e.given is not None and self.outputs_wanted):
            return False
        return not some(e.jumps)

    @torch.no_grad()
    def _pulled(self, method: StagewiseMethod, index: int, y_bar: Bars, carry_bar: Bars) -> tuple[Bars, Bars]:
        (e, _), n = self.taking(index), len(y_bar)
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
        lanes, index = self.q.lanes, e.stop.clamp(min=0, max=self.stops_bar.shape[1] - 1)
        whose = torch.arange(len(index), device=index.device) if lanes is None else lanes.index
        through = torch.where(hit & (e.stop >= 0), time_bar + bar1, zero)  # the time of an event is a constant
        self.stops_bar.index_put_((whose, index), through, accumulate=True)
        return torch.where(hit, bar0, time_bar + bar0 + bar1)

    def _first_carry(self, y_bar: Bars, carry_bar: Bars) -> Bars:
        """Back through the carry at ts[0]."""
        if all(b is None for b in carry_bar):
            return y_bar
        q = self.q
        self.seen.clear()
        if self.graphs is not None and self.graphs.first is not None:
            (time, y, carry), self.marker = self.graphs.take_first(), self.graphs.marker
        else:
            self.marker = graph_marker()
            time, y = q.ts[..., 0].detach().requires_grad_(self.times_needed), new_leaves(q.y0)
            with q.f.drawing_from(q.f.start_states):
                carry = q.method.init(q.f, time, y)
        grads = self.vjp(list(carry), carry_bar, (*y, time) if self.times_needed else y)
        self.charge()
        if self.times_needed and (bar := grads[-1]) is not None:
            self.ts_bar[..., 0] += bar
        return [add(a, b) for a, b in zip(y_bar, grads[: len(y)], strict=True)]

    def _first_outputs(self, ys_bar: Sequence[Tensor | None], y_bar: Bars) -> Bars:
        """Back through the outputs at ts[0]."""
        if all(b is None for b in ys_bar):
            return y_bar
        q = self.q
        self.marker = graph_marker()
        ts = q.ts.detach().requires_grad_(self.times_needed)
        y = new_leaves(q.y0)
        rows, firsts, _ = first_outputs(q, ts, y)
        bars = [None if b is None else b[rows] for b in ys_bar]
        grads = self.vjp(firsts, bars, (*y, *((ts,) if self.times_needed else ())))
        self.charge()
        if self.times_needed and grads[-1] is not None:
            self.ts_bar += grads[-1]
        return [add(a, b) for a, b in zip(y_bar, grads[: len(y)], strict=True)]
