"""The graph of the steps forward, taken down on a tape."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..control.stop_times import Stops, StopTimes
from ..core.leaves import Leaves
from ..core.status import Status
from ..engine.advance import Clock, State, attempt, settle
from ..engine.loop import start
from ..engine.problem import Problem
from .capture import FieldGraph
from .columns import all_arranged, all_by_rows, tape_of
from .kept import costly, shown
from .plan import Plan, Recorded, Values, as_if_pulled, bare, carry_of, field_of, outputs_of
from .products import rewritten
from .trace import Joined, fake_mode, record, widened, written


def _problem(plan: Plan, graph: FieldGraph, x: Values) -> tuple[Problem, Leaves]:
    """The problem from its tensors: ts, stops, direction, rtol, atol, y0, others. And the others."""
    n = len(plan.y)
    ts, stops, direction = x.take(3)
    rtol, atol, y0, others = x.take(n), x.take(n), all_by_rows(x.take(n)), x.take(len(plan.others))
    f = as_if_pulled(plan, graph) if plan.keeps else graph
    stopping = Stops(stops, None, StopTimes.of(plan.controller))
    p = Problem(
        field_of(plan, f, others), y0, ts, stopping, direction, plan.method, plan.controller, rtol, atol,
        plan.batched, 0, traced=True,
    )  # fmt: skip
    return p, others


def _problem_fakes(plan: Plan, mode: Any) -> list[Tensor]:
    with mode, plan.device:
        ts = torch.empty((*plan.lane, 2), dtype=torch.float64)
        stops = torch.empty((*plan.lane, plan.stops), dtype=torch.float64)
        direction = torch.empty(plan.lane, dtype=torch.float64)
    looks = (*plan.rtol, *plan.atol, *plan.y, *plan.others)
    return [ts, stops, direction, *(look.fake(mode) for look in looks)]


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
    def of(s: State, row: Tensor, attempts: Tensor, accepted: Tensor, go: Tensor, columns: bool) -> tuple[Tensor, ...]:
        numbers = torch.stack([s.t, s.h, *s.memory])
        rejected = torch.as_tensor(s.rejected, device=row.device).expand_as(s.status).to(row.dtype)
        counts = torch.stack([row.expand_as(attempts), attempts, accepted, s.stop, s.status, rejected])
        return (go, numbers, counts, *all_arranged((*s.y, *s.carry), columns))

    def state(self, n: int) -> State:
        """n: leaves of y."""
        t, h, *memory = self.numbers.unbind(0)
        stop, status, rejected = self.counts[3], self.counts[4], self.counts[5] != 0
        return State(t, t, h, self.leaves[:n], self.leaves[n:], tuple(memory), stop, False, status, (), rejected)


class _Forth:
    """The functions that are recorded. memory, carry: how many tensors the controller and the method have of each."""

    def __init__(self, plan: Plan, graph: FieldGraph, carry: int) -> None:
        self.plan, self.graph, self.carry = plan, graph, carry
        self.memory = len(plan.controller.memory(1.0))
        self.calls_at_start = self.calls_in_turn = 0

    def begin(self, fresh: Tensor, attempts: Tensor, accepted: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        plan, x = self.plan, Values(rest)
        (h, status, before), kept, carried = x.take(3), x.take(self.memory), all_by_rows(x.take(self.carry))
        p, _ = _problem(plan, self.graph, x)
        s = start(p, Clock(p))
        self.calls_at_start = p.f.calls
        s = s._replace(
            h=torch.where(fresh, s.h, h),
            status=torch.where(fresh, s.status, status),
            rejected=torch.where(fresh, s.rejected, before),
            memory=tuple(torch.where(fresh, a, b) for a, b in zip(s.memory, kept, strict=True)),
            carry=tuple(torch.where(fresh, a, b) for a, b in zip(s.carry, carried, strict=True)),
        )
        go = (s.status == Status.RUNNING).any()
        return Packed.of(
            s, torch.zeros((), dtype=torch.int64, device=plan.device), attempts, accepted, go, plan.columns
        )

    def turn(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        plan, x = self.plan, Values(inputs)
        packed = Packed(x.one(), x.one(), x.one(), all_by_rows(x.take(len(plan.y) + self.carry)))
        most, room = x.take(2)
        p, _ = _problem(plan, self.graph, x)
        s, attempts, accepted = packed.state(len(plan.y)), packed.counts[1], packed.counts[2]
        row = packed.counts[0].flatten()[0]
        clock = Clock(p)
        move, decision = attempt(p, clock, s)
        tape: list[Tensor] = []
        if plan.slots:
            t1 = torch.where(move.accept, move.t1, s.t)
            tape = [*s.y, *s.carry, s.t, t1, *([move.accept] if plan.batched else [])]
            if plan.dense:
                tape += [c for cs in move.polynomial() for c in cs]
            tape = list(all_arranged(tape, plan.columns))
        attempts = attempts + (s.status == Status.RUNNING)
        accepted = accepted + move.accept
        s = settle(p, clock, s, move, decision)
        self.calls_in_turn = p.f.calls
        running = s.status == Status.RUNNING
        s = s._replace(status=torch.where(running & (attempts >= most), int(Status.MAX_STEPS), s.status))
        row = row + move.accept.any()
        go = (s.status == Status.RUNNING).any()
        if plan.slots:
            go = go & (row < room)
        return (*Packed.of(s, row, attempts, accepted, go, plan.columns), *tape)


def forward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a solve, until it ends or the tape is full.

    Inputs: fresh, max_steps, rows of the tape to use, attempts, accepted; h, status, whether the last attempt was
    rejected, memory and carry to go on with where not fresh; those of the problem; the tape. Outputs: those of `Packed`
    but `go`.
    """
    mode = fake_mode()
    problem = _problem_fakes(plan, mode)
    with mode, plan.device:
        lane = torch.empty(plan.lane, dtype=torch.float64)
        counts = [torch.empty(plan.lane, dtype=torch.int64) for _ in range(3)]
        limits = [torch.empty((), dtype=torch.int64) for _ in range(2)]
        head = [torch.empty((), dtype=torch.bool), *limits, *counts[:2]]
        rejected = torch.empty(plan.lane, dtype=torch.bool)
    carry = list(carry_of(plan, mode))
    forth = _Forth(plan, graph, len(carry))
    given = [lane, counts[2], rejected, *(torch.empty_like(lane) for _ in range(forth.memory)), *carry]
    first = record(forth.begin, [head[0], *counts[:2], *given, *problem], mode)
    carried = [n.meta["val"] for n in outputs_of(first)]
    turned = record(forth.turn, [*carried, *limits, *problem], mode, unused=plan.keeps)
    kept = costly(turned, free=1) if plan.keeps else []
    shown(turned, kept)
    turned = rewritten(turned, len(carried), mode, plan.columns)
    after = [n.meta["val"] for n in outputs_of(turned)][len(carried) :]
    with mode:
        tape = [tape_of(x, plan.slots, plan.columns) for x in after]
    # the graph of a turn gets the tape as inputs; it is written, not read
    turned = widened(turned, tape)
    turned = written(turned, len(tape), lambda x: x[2].flatten()[:1]) if tape else turned
    go = record(lambda *x: (x[0].clone(),), [*carried, *limits, *problem, *tape], mode)
    fakes = [*head, *given, *problem, *tape]
    whole = Joined(fakes)
    x = Values(whole.inputs)
    (fresh, *bounds, attempts, accepted), others = x.take(5), x.take(len(given))
    rest, tape_nodes = x.take(len(problem)), x.take(len(tape))
    begun = whole.then(first, [fresh, attempts, accepted, *others, *rest])
    out = whole.loop(bare(go), turned, begun, [*bounds, *rest, *tape_nodes])
    looks = tuple((tuple(x.shape[1:]), x.dtype) for x in tape[len(tape) - len(kept) :])
    return Recorded(whole.done(out[1:]), fakes, mode, (forth.calls_at_start, forth.calls_in_turn), looks)
