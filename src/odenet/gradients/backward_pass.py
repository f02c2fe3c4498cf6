"""One backward pass over a tape: the VJPs of the accepted steps in reverse order, one step's graph at a time."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.capture import NodeSet, graph_marker
from ..core.leaves import Leaves, as_graph_inputs, cast
from ..core.scalars import MaskLike, any_true
from ..engine.advance import next_carry
from ..engine.batch_index import BatchIndex, RowScatter
from ..engine.dense_recorder import flat_piece
from ..engine.one_sided import initial_carry
from ..engine.output_recorder import first_outputs, saved_outputs
from ..engine.problem import Problem
from ..engine.tape import TapeStep
from ..methods.method import Cotangents, Method, StagewiseMethod
from .batch_segments import BatchSegment, ParameterGrads, Start, take_start
from .gradient import add_cotangents
from .memory_budget import nbytes
from .step_graph import NonFiniteGraphError, StepGraph, split_by_acceptance
from .taped_solve import TapedSolve

# States of at least this many bytes use one graph per evaluation of f: less memory, as each graph is freed before the
# next one is used. For smaller states that is slower, as autograd is called for every stage.
STAGEWISE_BYTES = 2**18


class BackwardPass(ABC):
    """Carries the cotangents of a solve back to its inputs.

    y_bar, carry_bar, time_bar: cotangents of the state, the carry and the time after the current step, for the samples
    in the batch. An empty carry_bar means zero.
    """

    def __init__(self, taped: TapedSolve, method: Method) -> None:
        """method: the method whose stages make up a step."""
        self.steps, self.captured, self.stats, self.graphs = taped.steps, taped.captured, taped.stats, taped.graphs
        self.full_segment = self.segment = BatchSegment(taped.problem)
        self.segments: dict[int, BatchSegment] = {}
        # number, tape step and segment of a step replayed without the samples that rejected it
        self.accepted_rows: tuple[int, TapeStep, BatchSegment] | None = None
        q = self.full_segment.problem
        self.num_outputs = taped.num_outputs
        self.time_grads_needed = taped.time_grads_needed
        self.parameter_grads = ParameterGrads(len(self.full_segment.args) + len(taped.captured))
        self.row_scatter = RowScatter()
        self.ts_bar = torch.zeros_like(q.ts)
        self.stops_bar = torch.zeros_like(q.stops.times)
        self.nfe = taped.stats["nfe"] * 0
        self.marker = 0
        self.seen_nodes: NodeSet = set()  # autograd nodes of stored graphs that were already checked
        large = nbytes(q.y0) >= STAGEWISE_BYTES
        self.stagewise_method = method if large and isinstance(method, StagewiseMethod) else None

    @property
    def problem(self) -> Problem:
        """The problem of the samples in the batch."""
        return self.segment.problem

    @abstractmethod
    def step_graph(self, n: int) -> StepGraph:
        """The graph of step n. The pass sets `y_bar` to the cotangent of y1 that still has to flow through that graph.

        Called in grad mode.
        """

    @abstractmethod
    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        """Cotangents of y and the carry after step n -> before it, for a step without outputs or time gradients.

        Called without grad mode.
        """

    def run(self, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Cotangents of the flat outputs -> cotangents of (y0, ts, stop times, args, captured tensors)."""
        n, m = len(self.problem.y0), self.num_outputs
        self.ys_bar, self.y_bar, self.dense_bar = cotangents[:m], list(cotangents[m : m + n]), cotangents[m + n :]
        self.has_output_cotangents = any(b is not None for b in self.ys_bar)
        self.has_dense_cotangents = any(b is not None for b in self.dense_bar)
        self.carry_bar: Cotangents = []
        self.time_bar = torch.zeros_like(self.problem.direction)
        with torch.enable_grad():
            remaining = len(self.steps)
            while remaining:
                self.switch_to(self.replayed_step(remaining - 1)[1])
                remaining -= self._chain_vjp(remaining - 1)
            self.switch_to(self.full_segment)
            self._first_carry_vjp()
            self._first_outputs_vjp()
        if not self.steps:  # a solve of zero length has one constant piece
            self.y_bar = add_cotangents(self.y_bar, [None if b is None else b[0] for b in self.dense_bar[2 : 2 + n]])
        self.ts_bar[..., 0] += self.time_bar
        self.stats["backward_nfe"] = self.nfe
        ts_bars = (self.ts_bar, self.stops_bar) if self.time_grads_needed else (None, None)
        return (*self.y_bar, *ts_bars, *self.parameter_grads.total)

    def batch_segment(self, n: int) -> BatchSegment:
        """The segment of all samples that were in the batch at step n."""
        p = self.steps[n].problem
        if p.samples.index is None:
            return self.full_segment
        if id(p) not in self.segments:
            self.segments[id(p)] = BatchSegment(p)
        return self.segments[id(p)]

    def replayed_step(self, n: int) -> tuple[TapeStep, BatchSegment]:
        """Step n, and the segment of the samples that replay it."""
        step = self.steps[n]
        if step.rows is None:
            return step, self.batch_segment(n)
        if self.accepted_rows is None or self.accepted_rows[0] != n:
            with torch.no_grad():  # args stay leaves
                subset = self.batch_segment(n).problem.subset(step.rows)
            assert subset is not None  # the tape checked that f supports subsets
            self.accepted_rows = n, step.for_rows(step.rows), BatchSegment(subset)
        return self.accepted_rows[1:]

    def select_start(self, n: int, start: Start) -> Start:
        """The initial state of step n, reduced to the samples that replay it."""
        rows = BatchIndex(self.steps[n].rows)
        y, carry = (tuple(map(rows.take, leaves)) for leaves in start)
        return y, carry

    def switch_to(self, segment: BatchSegment) -> None:
        """Continue with the samples of `segment`; the cotangents of all other samples stay unchanged."""
        if segment is self.segment:
            return
        self.segment, n = segment, len(self.y_bar)
        self.parameter_grads.switch_to(segment.problem.f, segment.problem.samples)
        exchanged = self.row_scatter.exchange([*self.y_bar, self.time_bar, *self.carry_bar], segment.problem.samples)
        self.y_bar, time_bar, self.carry_bar = exchanged[:n], exchanged[n], exchanged[n + 1 :]
        assert time_bar is not None
        self.time_bar = time_bar

    def vjp(
        self,
        values: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        check_finite: bool = False,
    ) -> Cotangents:
        """The VJP of `values` for `inputs`; cotangents of args and captured tensors are added to `parameter_grads`.

        check_finite: raise NonFiniteGraphError, and add nothing, if a result is not finite.
        """
        pairs = [
            (v, cast(b, v.dtype)) for v, b in zip(values, cotangents, strict=True) if b is not None and v.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs)
        outs = tuple(v for v, _ in pairs)
        if self.problem.f.captured is not None:
            self.problem.f.captured.collect(outs, (*inputs, *self.segment.args), self.marker, self.seen_nodes)
        grads = self.problem.f.vjp(outs, (*inputs, *self.segment.args, *self.captured), tuple(b for _, b in pairs))
        if check_finite and not all(bool(torch.isfinite(g.sum())) for g in grads if g is not None):
            raise NonFiniteGraphError
        split = len(inputs)
        self.parameter_grads.add(grads[split:])
        return list(grads[:split])

    @torch.no_grad()
    def replay(self, n: int, start: Start) -> Start:
        """The state after step n, from its initial state; its evaluations count for the samples that accepted it."""
        (step, segment), rows = self.replayed_step(n), BatchIndex(self.steps[n].rows)
        _, following = segment.replay(step, self.select_start(n, start))
        self.count_evaluations(step.accept, segment)
        y, carry = (tuple(map(rows.scatter_into, *pair)) for pair in zip(start, following, strict=True))
        return y, carry

    def next_start(self, n: int, start: Start) -> Start:
        """The initial state of step n + 1 from that of step n."""
        current, following = (step.problem.samples for step in self.steps[n : n + 2])
        return take_start(self.replay(n, start), current, following)

    def count_evaluations(self, samples: MaskLike = True, segment: BatchSegment | None = None) -> None:
        """Add the evaluations since the last call to the counts of these samples."""
        self.nfe = (segment or self.segment).add_evaluations(self.nfe, samples)

    def _chain_vjp(self, index: int) -> int:
        """The VJP of step `index` and of the earlier steps attached to it in a stored graph; returns their number."""
        step = self.replayed_step(index)[0]
        chain = [] if self.graphs is None else self.graphs.pop_chain(index)
        recorded = bool(chain)
        self.marker = graph_marker()
        self.seen_nodes.clear()
        if recorded and self.graphs is not None:
            end = chain[0]
            end.carry1 = next_carry(self.problem, end.attempt.time1, end.attempt.step, step.jumps)
            self.graphs.check_captured(self.problem.f.captured, chain, self.segment.args, self.seen_nodes)
        elif self.stagewise_method is not None and self._needs_end_only(step):
            return self._stagewise_vjp(self.stagewise_method, index)
        else:
            chain = [self.step_graph(index)]
        last, first = chain[0], chain[-1].attempt
        values = [*last.attempt.step.y, *last.carry1]
        carry_bar = self.carry_bar or [None] * len(last.carry1)
        cotangents, past = split_by_acceptance(step.accept, [*self.y_bar, *carry_bar])
        times: Leaves = ()
        for offset, graph in enumerate(chain):
            times = self._append_outputs(index - offset, graph, values, cotangents)
        ends = (first.time0, first.time1, *times) if self.time_grads_needed else ()
        some_rejected = isinstance(step.accept, Tensor) and not bool(step.accept.all())
        try:
            grads = self.vjp(values, cotangents, (*first.y, *first.carry, *ends), recorded and some_rejected)
        except NonFiniteGraphError:
            return self._chain_vjp(index)
        self.count_evaluations(step.accept)
        n, m = len(first.y), len(first.y) + len(first.carry)
        if self.time_grads_needed:
            self._add_time_cotangents(step, *add_cotangents(grads[m : m + 2], chain[-1].time_bars))
            ts_bar = grads[m + 2] if times else None
            if step.outputs is not None and ts_bar is not None:
                self.ts_bar[step.outputs.rows] += ts_bar
        self.y_bar, self.carry_bar = add_cotangents(grads[:n], past[:n]), add_cotangents(grads[n:m], past[n:])
        return len(chain)

    def _append_outputs(self, index: int, graph: StepGraph, values: list[Tensor], cotangents: Cotangents) -> Leaves:
        """Append outputs inside a step, and its dense output, with their cotangents.

        Returns the times of those outputs as a leaf, or () without outputs.
        """
        attempt, outputs = graph.attempt, self.replayed_step(index)[0].outputs if self.has_output_cotangents else None
        times: Leaves = ()
        if outputs is not None:
            times = (self.full_segment.problem.ts[outputs.rows].requires_grad_(self.time_grads_needed),)
            values += saved_outputs(attempt, times[0], outputs.sample)
            cotangents += [None if b is None else b[outputs.rows] for b in self.ys_bar]
        if self.has_dense_cotangents:
            values += flat_piece(attempt)
            cotangents += [None if d is None else d[index] for d in self.dense_bar]
        attempt.step = attempt.step._replace(stages=())  # stages are needed by the dense output only
        return times

    def _needs_end_only(self, step: TapeStep) -> bool:
        """True if a step needs only y1 and the carry, and f was evaluated by the method alone."""
        has_outputs = step.outputs is not None and self.has_output_cotangents
        return not (self.time_grads_needed or self.has_dense_cotangents or has_outputs or any_true(step.jumps))

    @torch.no_grad()
    def _stagewise_vjp(self, method: StagewiseMethod, index: int) -> int:
        (step, _), n = self.replayed_step(index), len(self.y_bar)
        through, past = split_by_acceptance(step.accept, [*self.y_bar, *self.carry_bar])
        y_bar, carry_bar = self.step_vjp(method, index, through[:n], through[n:])
        self.count_evaluations(step.accept)
        self.y_bar, self.carry_bar = add_cotangents(y_bar, past[:n]), add_cotangents(carry_bar, past[n:])
        return 1

    def _add_time_cotangents(self, step: TapeStep, time0_bar: Tensor | None, time1_bar: Tensor | None) -> None:
        """Add the cotangents of a step's start and end time.

        The end is a stop time if the step hit one; else it is the start plus a constant.
        """
        zero = torch.zeros_like(self.time_bar)
        time0_bar, time1_bar = (zero if b is None else b for b in (time0_bar, time1_bar))
        end_bar = self.time_bar + time1_bar
        if self.problem.on_host:
            if step.hit and step.stop >= 0:  # an event time is a constant
                self.stops_bar[step.stop] += end_bar
            self.time_bar = time0_bar if step.hit else self.time_bar + time0_bar + time1_bar
            return
        hit, stop = typing.cast(Tensor, step.accept & step.hit), typing.cast(Tensor, step.stop)
        index = stop.clamp(min=0, max=self.stops_bar.shape[1] - 1)
        samples = self.problem.samples.sample_numbers(torch.arange(len(index), device=index.device))
        self.stops_bar.index_put_((samples, index), torch.where(hit & (stop >= 0), end_bar, zero), accumulate=True)
        self.time_bar = torch.where(hit, time0_bar, self.time_bar + time0_bar + time1_bar)

    def _first_carry_vjp(self) -> None:
        """The VJP of the carry at ts[0]."""
        if all(b is None for b in self.carry_bar):
            return
        q = self.problem
        self.seen_nodes.clear()
        if self.graphs is not None and self.graphs.first_evaluation is not None:
            time, y, carry = self.graphs.first_evaluation
            self.graphs.first_evaluation, self.marker = None, self.graphs.marker
        else:
            self.marker = graph_marker()
            time, y = q.ts[..., 0].detach().requires_grad_(self.time_grads_needed), as_graph_inputs(q.y0)
            with q.f.with_random_states(q.f.initial_random_states):
                carry = initial_carry(q, time, y)
        self._start_vjp(carry, self.carry_bar, y, time, self.ts_bar[..., 0])

    def _first_outputs_vjp(self) -> None:
        """The VJP of the outputs at ts[0]."""
        if all(b is None for b in self.ys_bar):
            return
        q = self.problem
        self.marker = graph_marker()
        ts, y = q.ts.detach().requires_grad_(self.time_grads_needed), as_graph_inputs(q.y0)
        rows, outputs, _ = first_outputs(q, ts, y)
        cotangents = [None if b is None else b[rows] for b in self.ys_bar]
        self._start_vjp(outputs, cotangents, y, ts, self.ts_bar)

    def _start_vjp(self, values: Leaves, cotangents: Cotangents, y: Leaves, times: Tensor, times_bar: Tensor) -> None:
        """The VJP of `values` computed from y at ts[0]; adds the cotangent of `times` to `times_bar` in place."""
        grads = self.vjp(values, cotangents, (*y, times) if self.time_grads_needed else y)
        bar = grads.pop() if self.time_grads_needed else None
        if bar is not None:
            times_bar += bar
        self.count_evaluations()
        self.y_bar = add_cotangents(self.y_bar, grads)
