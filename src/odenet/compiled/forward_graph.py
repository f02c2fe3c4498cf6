"""The graph of the steps forward, taken down on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..control.stop_times import Stops, StopTimes
from ..core.leaves import Leaves, tree_map
from ..core.status import Status
from ..engine.advance import Clock, Move, State
from ..engine.problem import Problem
from ..engine.traced import Counted
from .capture import FieldGraph
from .graph_recording import Recorded, fake_mode, outputs_of, record, widened, written
from .passes.column_layout import all_arranged, all_by_rows
from .passes.matmul_passes import rewritten
from .passes.saved_matmuls import costly, looks_of, shelf_for, shown
from .plan import Plan, as_if_pulled, field_of, tape_for


class Packed(NamedTuple):
    """What a loop carries, in few tensors: each costs some calls of the runtime a turn.

    numbers: t, h and the controller's memory. counts: rows in use (the same for all lanes), attempts, accepted, stop,
    status, whether the last attempt was rejected.
    """

    go: Tensor
    numbers: Tensor
    counts: Tensor
    leaves: Leaves

    @staticmethod
    def of(at: Counted, row: Tensor, go: Tensor, columns: bool) -> Packed:
        s = at.state
        counts = (row.expand_as(s.stop), at.attempts, at.accepted, s.stop, s.status, s.rejected.to(row.dtype))
        leaves = all_arranged((*s.y, *s.carry), columns)
        return Packed(go, torch.stack([s.t, s.h, *s.memory]), torch.stack(counts), leaves)

    @staticmethod
    def from_flat(flat: Sequence[Tensor]) -> Packed:
        return Packed(flat[0], flat[1], flat[2], tuple(flat[3:]))

    def counted(self, n: int) -> Counted:
        """n: leaves of y."""
        t, h, *memory = self.numbers.unbind(0)
        _, attempts, accepted, stop, status, rejected = self.counts.unbind(0)
        y, carry = self.leaves[:n], self.leaves[n:]
        s = State(t, t, h, y, carry, tuple(memory), stop, False, status, (), rejected != 0)
        return Counted(s, attempts, accepted)


class Inputs(NamedTuple):
    """What a library is given, but the tape.

    fresh: a solve begins; else it goes on from `before`. most: max_steps. room: rows of the tape to use.
    """

    fresh: Tensor
    most: Tensor
    room: Tensor
    before: Packed
    ts: Tensor
    stops: Tensor
    direction: Tensor
    rtol: Leaves
    atol: Leaves
    y0: Leaves
    others: Leaves

    @staticmethod
    def fakes(plan: Plan, mode: Any) -> Inputs:
        rtol, atol, y, others = (
            tuple(look.fake(mode) for look in looks) for looks in (plan.rtol, plan.atol, plan.y, plan.others)
        )
        lane, memory = plan.lane, len(plan.controller.memory(1.0))
        with mode, plan.device:
            flag, limit = torch.empty((), dtype=torch.bool), torch.empty((), dtype=torch.int64)
            counts = torch.empty((6, *lane), dtype=torch.int64)
            shapes = ((2 + memory, *lane), (*lane, 2), (*lane, plan.stops), lane)
            numbers, ts, stops, direction = (torch.empty(shape, dtype=torch.float64) for shape in shapes)
        before = Packed(flag, numbers, counts, (*y, *(y if plan.carries else ())))
        return Inputs(flag, limit, limit, before, ts, stops, direction, rtol, atol, y, others)


class _Forth:
    """The functions that are recorded."""

    def __init__(self, plan: Plan, graph: FieldGraph) -> None:
        self.plan, self.graph = plan, graph
        self.calls_at_start = self.calls_in_turn = 0

    def _problem(self, x: Inputs) -> Problem:
        plan = self.plan
        f = as_if_pulled(plan, self.graph) if plan.keeps else self.graph
        stops = Stops(x.stops, None, StopTimes.of(plan.controller))
        return Problem(
            field_of(plan, f, x.others), all_by_rows(x.y0), x.ts, stops, x.direction, plan.method,
            plan.controller, x.rtol, x.atol, plan.batched, 0, traced=True,
        )  # fmt: skip

    def begin(self, x: Inputs) -> Packed:
        p = self._problem(x)
        row = torch.zeros((), dtype=torch.int64, device=self.plan.device)
        new = Packed.of(Counted.start(p, Clock(p)), row, x.fresh, self.plan.columns)
        self.calls_at_start = p.f.calls
        at = tree_map(lambda a, b: torch.where(x.fresh, a, b), new, x.before)
        go = (at.counts[4] == Status.RUNNING).any()
        return at._replace(go=go, leaves=all_arranged(at.leaves, self.plan.columns))

    def turn(self, at: Packed, x: Inputs) -> tuple[Packed, Leaves]:
        """One attempt, and what it takes down."""
        plan, p = self.plan, self._problem(x)
        before = at._replace(leaves=all_by_rows(at.leaves)).counted(len(plan.y))
        after, move = before.turn(p, Clock(p), x.most)
        taken = self._taken_down(before.state, move) if plan.slots else ()
        self.calls_in_turn = p.f.calls
        row = at.counts[0].flatten()[0] + move.accept.any()
        go = (after.state.status == Status.RUNNING).any()
        if plan.slots:
            go = go & (row < x.room)
        return Packed.of(after, row, go, plan.columns), taken

    def _taken_down(self, s: State, move: Move) -> Leaves:
        """In the order of `tape_for`."""
        t1 = torch.where(move.accept, move.t1, s.t)
        accept = [move.accept] if self.plan.batched else []
        polynomial = [c for cs in move.polynomial() for c in cs] if self.plan.dense else []
        return all_arranged((*s.y, *s.carry, s.t, t1, *accept, *polynomial), self.plan.columns)


def forward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a solve, until it ends or the tape is full: (`Inputs`, the tape) -> `Packed`."""
    mode, forth = fake_mode(), _Forth(plan, graph)
    given = Inputs.fakes(plan, mode)
    begun = record(forth.begin, [given], mode)
    carried = [n.meta["val"] for n in outputs_of(begun)]
    turned = record(forth.turn, [Packed.from_flat(carried), given], mode, unused=plan.keeps)
    kept = costly(turned, free=1) if plan.keeps else []
    shown(turned, kept)
    turned = rewritten(turned, len(carried), mode, plan.columns)
    shelf = shelf_for(plan, kept, mode)
    with mode:
        tape = [*tape_for(plan, given.y0), *shelf]
    if tape:  # written at the row that the counts say
        turned = written(widened(turned, tape), len(tape), 2, mode)
    calls = (forth.calls_at_start, forth.calls_in_turn)
    return Recorded(widened(begun, tape), turned, None, mode, len(carried), calls, looks_of(shelf))
