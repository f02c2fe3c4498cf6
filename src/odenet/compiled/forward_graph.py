"""The graph of the forward steps, recorded on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..control.stop_times import StopRule, StopTimes
from ..core.leaves import Leaves
from ..core.pytrees import tree_map
from ..core.status import Status
from ..engine.problem import Problem
from ..engine.step_attempt import BatchAttempt, BatchState, State
from ..engine.stop_tracker import BatchStopTracker
from ..tracing.while_loop import LoopState
from .field_graph import FieldGraph
from .graph_recording import RecordedLoop, add_inputs, fake_mode, output_nodes, record_graph, write_outputs_to_tape
from .passes.column_layout import all_contiguous, all_to_loop_layout
from .passes.matmul_passes import rewrite_matmuls
from .passes.saved_matmuls import expensive_matmuls, return_values, row_specs, saved_tape
from .passes.tanh import replace_tanh
from .plan import Plan, tape_tensors, under_vjp, vector_field


class LoopCarry(NamedTuple):
    """The tensors that the loop carries; few, as each costs some calls of the runtime in an iteration.

    go_on: whether another iteration follows. numbers: t, h and the controller's state. counts: rows in use (one number
    for all samples), attempts, accepted, stop, status, whether the last attempt was rejected; if f jumps, also whether
    it does so at t, and the number of its jumps so far. leaves: y and the carry.
    """

    go_on: Tensor
    numbers: Tensor
    counts: Tensor
    leaves: Leaves

    @staticmethod
    def pack(at: LoopState, row: Tensor, go_on: Tensor, jumps: Leaves, column_major: bool) -> LoopCarry:
        """jumps: their number so far, if f jumps."""
        s = at.state
        counts = [row.expand_as(s.stop), at.attempts, at.accepted, s.stop, s.status, s.rejected.to(row.dtype)]
        counts += [x for number in jumps for x in (torch.as_tensor(s.jumped).to(row.dtype), number)]
        leaves = all_to_loop_layout((*s.y, *s.carry), column_major)
        return LoopCarry(
            go_on, torch.stack([s.t, s.h, *map(torch.as_tensor, s.controller_state)]), torch.stack(counts), leaves
        )

    @staticmethod
    def from_flat(flat: Sequence[Tensor]) -> LoopCarry:
        return LoopCarry(flat[0], flat[1], flat[2], tuple(flat[3:]))

    def unpack(self, n: int) -> LoopState:
        """The engine's state. n: leaves of y."""
        t, h, *controller_state = self.numbers.unbind(0)
        _, attempts, accepted, stop, status, rejected, *jumped = self.counts.unbind(0)
        y, carry, at_jump = self.leaves[:n], self.leaves[n:], jumped[0] != 0 if jumped else False
        s: Any = State(t, t, h, y, carry, tuple(controller_state), stop, at_jump, status, (), rejected != 0)
        return LoopState(s, attempts, accepted)


def count_rows(plan: Plan) -> int:
    """The number of rows of `LoopCarry.counts`."""
    return 6 + 2 * plan.jumps


class ForwardInputs(NamedTuple):
    """The inputs of a forward library, except the tape.

    fresh: whether the solve begins; else it goes on from `before`. max_steps, rows: limits, of attempts and of rows.
    jumps: whether f jumps at each of the stops, if it jumps at all.
    """

    fresh: Tensor
    max_steps: Tensor
    rows: Tensor
    before: LoopCarry
    ts: Tensor
    stops: Tensor
    jumps: Leaves
    direction: Tensor
    rtol: Leaves
    atol: Leaves
    y0: Leaves
    captures: Leaves

    @staticmethod
    def fakes(plan: Plan, mode: Any) -> ForwardInputs:
        rtol, atol, y, captures = (
            tuple(spec.fake(mode) for spec in specs) for specs in (plan.rtol, plan.atol, plan.y, plan.captures)
        )
        batch, state_size = plan.batch_shape, len(plan.controller.init_state(1.0))
        with mode, plan.device:
            flag, limit = torch.empty((), dtype=torch.bool), torch.empty((), dtype=torch.int64)
            counts = torch.empty((count_rows(plan), *batch), dtype=torch.int64)
            shapes = ((2 + state_size, *batch), (*batch, 2), (*batch, plan.stop_count), batch)
            numbers, ts, stops, direction = (torch.empty(shape, dtype=torch.float64) for shape in shapes)
            jumps = tuple(torch.empty_like(stops, dtype=torch.bool) for _ in range(plan.jumps))
        before = LoopCarry(flag, numbers, counts, (*y, *(y if plan.has_carry else ())))
        return ForwardInputs(flag, limit, limit, before, ts, stops, jumps, direction, rtol, atol, y, captures)


class _ForwardFunctions:
    """The functions that are recorded."""

    def __init__(self, plan: Plan, graph: FieldGraph) -> None:
        self.plan, self.graph = plan, graph
        self.evaluations_at_start = self.evaluations_in_body = 0

    def _problem(self, x: ForwardInputs) -> Problem:
        plan = self.plan
        f = under_vjp(plan, self.graph) if plan.saves_matmuls else self.graph
        stops = StopTimes(x.stops, x.jumps[0] if x.jumps else None, StopRule.from_controller(plan.controller))
        return Problem(
            vector_field(plan, f, x.captures), all_contiguous(x.y0), x.ts, stops, x.direction, plan.method,
            plan.controller, x.rtol, x.atol, plan.batched, 0, traced=True,
        )  # fmt: skip

    def begin(self, x: ForwardInputs) -> LoopCarry:
        p = self._problem(x)
        row = torch.zeros((), dtype=torch.int64, device=self.plan.device)
        start = LoopState.start(p, BatchStopTracker(p))
        none = (torch.zeros_like(start.attempts),) * self.plan.jumps
        new = LoopCarry.pack(start, row, x.fresh, none, self.plan.column_major)
        self.evaluations_at_start = p.f.calls
        at = tree_map(lambda a, b: torch.where(x.fresh, a, b), new, x.before)
        go_on = (at.counts[4] == Status.RUNNING).any()
        return at._replace(go_on=go_on, leaves=all_to_loop_layout(at.leaves, self.plan.column_major))

    def body(self, at: LoopCarry, x: ForwardInputs) -> tuple[LoopCarry, Leaves]:
        """One attempt: the next state, and what goes on the tape."""
        plan, p = self.plan, self._problem(x)
        before = at._replace(leaves=all_contiguous(at.leaves)).unpack(len(plan.y))
        after, attempt = before.iterate(p, BatchStopTracker(p), x.max_steps)
        recorded = self._tape_row(before.state, attempt) if plan.rows else ()
        self.evaluations_in_body = p.f.calls
        row = at.counts[0].flatten()[0] + attempt.accept.any()
        go_on = (after.state.status == Status.RUNNING).any()
        if plan.rows:
            go_on = go_on & (row < x.rows)
        jumps = (at.counts[7] + (attempt.accept & attempt.jumps),) if plan.jumps else ()
        return LoopCarry.pack(after, row, go_on, jumps, plan.column_major), recorded

    def _tape_row(self, s: BatchState, attempt: BatchAttempt) -> Leaves:
        """What goes on the tape, in the order of `tape_tensors`."""
        t1 = torch.where(attempt.accept, attempt.t1, s.t)
        flags = [attempt.accept] if self.plan.batched else []
        flags += [torch.as_tensor(s.jumped), attempt.accept & attempt.jumps] if self.plan.jumps else []
        polynomial = [c for cs in attempt.polynomial() for c in cs] if self.plan.dense else []
        return all_to_loop_layout((*s.y, *s.carry, s.t, t1, *flags, *polynomial), self.plan.column_major)


def forward_graph(plan: Plan, graph: FieldGraph) -> RecordedLoop:
    """The steps of a solve, until it ends or the tape is full: (`ForwardInputs`, the tape) -> `LoopCarry`."""
    mode, functions = fake_mode(), _ForwardFunctions(plan, graph)
    inputs = ForwardInputs.fakes(plan, mode)
    begin = record_graph(functions.begin, [inputs], mode)
    carried = [n.meta["val"] for n in output_nodes(begin)]
    body = record_graph(functions.body, [LoopCarry.from_flat(carried), inputs], mode, keep_unused=plan.saves_matmuls)
    saved = expensive_matmuls(body, free=1) if plan.saves_matmuls else []
    rows = row_specs(saved)
    return_values(body, saved)
    replace_tanh(body, mode)
    body = rewrite_matmuls(body, len(carried), mode, plan.column_major)
    saved_tensors = saved_tape(plan, saved, mode)
    with mode:
        tape = [*tape_tensors(plan, inputs.y0), *saved_tensors]
    if tape:
        body = write_outputs_to_tape(add_inputs(body, tape), len(tape), 2, mode)
    evaluations = (functions.evaluations_at_start, functions.evaluations_in_body)
    begin = add_inputs(begin, tape)
    return RecordedLoop(begin, body, None, mode, len(carried), evaluations, rows)
