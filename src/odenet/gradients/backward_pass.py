"""One backward pass over a tape: the accepted steps in reverse order, one step's graph at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.capture import Nodes, graph_marker
from ..core.leaves import Leaves, cast, new_leaves
from ..core.scalars import MaskLike, any_true
from ..engine.batch_index import BatchIndex, RowScatter
from ..engine.dense_recorder import flat_piece
from ..engine.output_recorder import first_outputs, saved_outputs
from ..engine.problem import Problem
from ..engine.tape import TapeStep
from ..methods.method import Cotangents, Method, StagewiseMethod
from .batch_segments import BatchSegment, ParameterGrads, Start, take_start
from .gradient import add_counts
from .memory_budget import nbytes
from .step_graph import NonFiniteGraphError, StepGraph, divided
from .taped_solve import TapedSolve

# From a state of this many bytes on, a step is pulled through evaluation by evaluation: with less memory, as one graph
# goes before the next is pulled through. A small state takes longer that way: autograd is called for every stage.
BY_STAGES = 2**18


class BackwardPass(ABC):
    """Pulls the cotangents of a solve back to its inputs.

    y_bar, carry_bar, time_bar: cotangents of where it stands, of the samples at hand; no carry_bar: there are none.
    """

    def __init__(self, taken: TapedSolve, method: Method) -> None:
        """method: the one whose evaluations of f make up a step."""
        self.entries, self.captured, self.stats, self.graphs = taken.entries, taken.captured, taken.stats, taken.graphs
        self.whole = self.part = BatchSegment(taken.q)
        self.parts: dict[int, BatchSegment] = {}
        self.passing: tuple[int, TapeStep, BatchSegment] | None = None  # a step's own, where it left lanes out
        q = self.whole.q
        self.shown = taken.shown
        self.times_needed = taken.times_needed
        self.shared = ParameterGrads(len(self.whole.args) + len(taken.captured))
        self.apart = RowScatter()
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
    def step_graph(self, n: int) -> StepGraph:
        """Step n, attached, with `y_bar` the cotangent of the state after it that is left to pull through it.

        Called in grad mode.
        """

    @abstractmethod
    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        """Cotangents after step n -> before it, for a step of which only y1 and the carry are wanted, and no times.

        Called without grad mode.
        """

    def run(self, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        n, m = len(self.q.y0), self.shown
        self.ys_bar, self.y_bar, self.dense_bar = cotangents[:m], list(cotangents[m : m + n]), cotangents[m + n :]
        self.outputs_wanted, self.dense_wanted = (
            any(b is not None for b in bars) for bars in (self.ys_bar, self.dense_bar)
        )
        self.carry_bar: Cotangents = []
        self.time_bar = torch.zeros_like(self.q.direction)
        with torch.enable_grad():
            left = len(self.entries)
            while left:
                self.enter(self.samples_of(left - 1)[1])
                left -= self._steps(left - 1)
            self.enter(self.whole)
            self._first_carry()
            self._first_outputs()
        if not self.entries:  # the constant piece of a solve of no length
            self.y_bar = add_counts(self.y_bar, [None if b is None else b[0] for b in self.dense_bar[2 : 2 + n]])
        self.ts_bar[..., 0] += self.time_bar
        self.stats["backward_nfe"] = self.nfe
        ts_bars = (self.ts_bar, self.stops_bar) if self.times_needed else (None, None)
        return (*self.y_bar, *ts_bars, *self.shared.total)

    def segment_of(self, n: int) -> BatchSegment:
        """That of all samples that were in the batch at step n."""
        p = self.entries[n].problem
        if p.samples.index is None:
            return self.whole
        if id(p) not in self.parts:
            self.parts[id(p)] = BatchSegment(p)
        return self.parts[id(p)]

    def samples_of(self, n: int) -> tuple[TapeStep, BatchSegment]:
        """Step n and the problem of those samples that take it again."""
        e = self.entries[n]
        if e.rows is None:
            return e, self.segment_of(n)
        if self.passing is None or self.passing[0] != n:
            with torch.no_grad():  # its args are leaves
                narrowed = self.segment_of(n).q.subset(e.rows)
            assert narrowed is not None  # the tape has asked
            self.passing = n, e.for_rows(e.rows), BatchSegment(narrowed)
        return self.passing[1:]

    def start_of(self, n: int, start: Start) -> Start:
        """Of the samples that take step n again, from that of all that were in the batch."""
        own = BatchIndex(self.entries[n].rows)
        y, carry = (tuple(map(own.take, leaves)) for leaves in start)
        return y, carry

    def enter(self, part: BatchSegment) -> None:
        """Go on with the samples of a part, and their cotangents; the others' stay as they are."""
        if part is self.part:
            return
        self.part, n = part, len(self.y_bar)
        self.shared.enter(part.q.f, part.q.samples)
        moved = self.apart.exchange([*self.y_bar, self.time_bar, *self.carry_bar], part.q.samples)
        self.y_bar, time_bar, self.carry_bar = moved[:n], moved[n], moved[n + 1 :]
        assert time_bar is not None
        self.time_bar = time_bar

    def vjp(
        self,
        values: Sequence[Tensor],
        bars: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        suspect: bool = False,
    ) -> Cotangents:
        """Pull `bars` back to `inputs`; what reaches args and captured tensors is added up.

        suspect: raises PoisonedError, and adds nothing, where the result is not finite.
        """
        pairs = [(v, cast(b, v.dtype)) for v, b in zip(values, bars, strict=True) if b is not None and v.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outs = tuple(v for v, _ in pairs)
        if self.q.f.captured is not None:
            self.q.f.captured.collect(outs, (*inputs, *self.part.args), self.marker, self.seen)
        grads = self.q.f.vjp(outs, (*inputs, *self.part.args, *self.captured), tuple(b for _, b in pairs))
        if suspect and not all(bool(torch.isfinite(g.sum())) for g in grads if g is not None):
            raise NonFiniteGraphError
        split = len(inputs)
        self.shared.add(grads[split:])
        return list(grads[:split])

    @torch.no_grad()
    def replay(self, n: int, start: Start) -> Start:
        """The end of step n from its start; what its evaluations cost is charged to its lanes."""
        (e, part), own = self.samples_of(n), BatchIndex(self.entries[n].rows)
        _, after = part.replay(e, self.start_of(n, start))
        self.charge(e.accept, part)
        y, carry = (tuple(map(own.scatter_into, *pair)) for pair in zip(start, after, strict=True))
        return y, carry

    def forwards(self, n: int, start: Start) -> Start:
        """The start of step n + 1 from that of step n."""
        here, after = (e.problem.samples for e in self.entries[n : n + 2])
        return take_start(self.replay(n, start), here, after)

    def charge(self, lanes: MaskLike = True, part: BatchSegment | None = None) -> None:
        """Charge these lanes for the evaluations since the last charge."""
        self.nfe = (part or self.part).charge(self.nfe, lanes)

    def _steps(self, index: int) -> int:
        """Back through step `index`, and those before it that its kept graph is attached to; how many."""
        e = self.samples_of(index)[0]
        chain = [] if self.graphs is None else self.graphs.take(index)
        recorded = bool(chain)
        self.marker = graph_marker()
        self.seen.clear()
        if recorded and self.graphs is not None:
            self.graphs.seen_by(self.q.f.captured, chain, self.part.args, self.seen)
        elif self.stagewise is not None and self._plain(e):
            return self._pulled(self.stagewise, index)
        else:
            chain = [self.step_graph(index)]
        last, first = chain[0], chain[-1].attempt
        values = [*last.attempt.step.y, *last.carry1]
        bars, passed = divided(e.accept, [*self.y_bar, *(self.carry_bar or [None] * len(last.carry1))])
        times: Leaves = ()
        for back, local in enumerate(chain):
            times = self._inside(index - back, local, values, bars)
        ends = (first.time0, first.time1, *times) if self.times_needed else ()
        suspect = recorded and e.accept is not True and not bool(e.accept.all())  # some lanes rejected it
        try:
            grads = self.vjp(values, bars, (*first.y, *first.carry, *ends), suspect)
        except NonFiniteGraphError:
            return self._steps(index)
        self.charge(e.accept)
        n, m = len(first.y), len(first.y) + len(first.carry)
        if self.times_needed:
            self._times(e, *add_counts(grads[m : m + 2], chain[-1].ends_bar))
            ts_bar = grads[m + 2] if times else None
            if e.outputs is not None and ts_bar is not None:
                self.ts_bar[e.outputs.rows] += ts_bar
        self.y_bar, self.carry_bar = add_counts(grads[:n], passed[:n]), add_counts(grads[n:m], passed[n:])
        return len(chain)

    def _inside(self, index: int, local: StepGraph, values: list[Tensor], bars: Cotangents) -> Leaves:
        """Adds what the solve shows of a step beside its end: outputs within it, and its polynomial.

        Gives the times of those outputs, as a leaf, where there are any.
        """
        attempt, given = local.attempt, self.samples_of(index)[0].outputs if self.outputs_wanted else None
        times: Leaves = ()
        if given is not None:
            times = (self.whole.q.ts[given.rows].requires_grad_(self.times_needed),)
            values += saved_outputs(attempt, times[0], given.sample)
            bars += [None if b is None else b[given.rows] for b in self.ys_bar]
        if self.dense_wanted:
            values += flat_piece(attempt)
            bars += [None if d is None else d[index] for d in self.dense_bar]
        attempt.step = attempt.step._replace(stages=())  # only dense output wanted them
        return times

    def _plain(self, e: TapeStep) -> bool:
        """Whether only y1 and the carry of a step are wanted, and no evaluation belongs to it but the method's."""
        if self.times_needed or self.dense_wanted or (e.outputs is not None and self.outputs_wanted):
            return False
        return not any_true(e.jumps)

    @torch.no_grad()
    def _pulled(self, method: StagewiseMethod, index: int) -> int:
        (e, _), n = self.samples_of(index), len(self.y_bar)
        through, passed = divided(e.accept, [*self.y_bar, *self.carry_bar])
        y_bar, carry_bar = self.step_vjp(method, index, through[:n], through[n:])
        self.charge(e.accept)
        self.y_bar, self.carry_bar = add_counts(y_bar, passed[:n]), add_counts(carry_bar, passed[n:])
        return 1

    def _times(self, e: TapeStep, bar0: Tensor | None, bar1: Tensor | None) -> None:
        """The end of a step is a stop where it hit one, else its start plus a constant."""
        zero = torch.zeros_like(self.time_bar)
        bar0, bar1 = (zero if b is None else b for b in (bar0, bar1))
        end_bar = self.time_bar + bar1
        if self.q.on_host:
            if e.hit and e.stop >= 0:  # the time of an event is a constant
                self.stops_bar[e.stop] += end_bar
            self.time_bar = bar0 if e.hit else self.time_bar + bar0 + bar1
            return
        hit = e.accept & e.hit
        index = e.stop.clamp(min=0, max=self.stops_bar.shape[1] - 1)
        whose = self.q.samples.sample_numbers(torch.arange(len(index), device=index.device))
        self.stops_bar.index_put_((whose, index), torch.where(hit & (e.stop >= 0), end_bar, zero), accumulate=True)
        self.time_bar = torch.where(hit, bar0, self.time_bar + bar0 + bar1)

    def _first_carry(self) -> None:
        """Back through the carry at ts[0]."""
        if all(b is None for b in self.carry_bar):
            return
        q = self.q
        self.seen.clear()
        if self.graphs is not None and self.graphs.first is not None:
            time, y, carry = self.graphs.first
            self.graphs.first, self.marker = None, self.graphs.marker
        else:
            self.marker = graph_marker()
            time, y = q.ts[..., 0].detach().requires_grad_(self.times_needed), new_leaves(q.y0)
            with q.f.with_random_states(q.f.initial_random_states):
                carry = q.method.init(q.f, time, y)
        self._from_start(carry, self.carry_bar, y, time, self.ts_bar[..., 0])

    def _first_outputs(self) -> None:
        """Back through the outputs at ts[0]."""
        if all(b is None for b in self.ys_bar):
            return
        q = self.q
        self.marker = graph_marker()
        ts, y = q.ts.detach().requires_grad_(self.times_needed), new_leaves(q.y0)
        rows, firsts, _ = first_outputs(q, ts, y)
        bars = [None if b is None else b[rows] for b in self.ys_bar]
        self._from_start(firsts, bars, y, ts, self.ts_bar)

    def _from_start(self, values: Leaves, bars: Cotangents, y: Leaves, times: Tensor, times_bar: Tensor) -> None:
        """Pulls through what was made of y at ts[0]; the cotangent of `times` is added to `times_bar`."""
        grads = self.vjp(values, bars, (*y, times) if self.times_needed else y)
        bar = grads.pop() if self.times_needed else None
        if bar is not None:
            times_bar += bar
        self.charge()
        self.y_bar = add_counts(self.y_bar, grads)
