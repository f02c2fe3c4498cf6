"""The graph of the steps forward, taken down on a tape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.status import Status
from ..engine.advance import Clock, State, attempt, settle
from ..engine.drive import start
from ..engine.problem import Problem, Stops
from .capture import FieldGraph
from .kept import costly, shown
from .plan import Look, Plan, Recorded, Values, bare, carry_of, contiguous_strides, field_of, outputs_of
from .products import rewritten
from .trace import Joined, fake_mode, record, widened, written


def _problem(plan: Plan, graph: FieldGraph, x: Values) -> tuple[Problem, Leaves]:
    """The problem from its tensors: ts, stops, direction, rtol, atol, y0, others. And the others."""
    n = len(plan.y)
    ts, stops, direction = x.take(3)
    rtol, atol, y0, others = x.take(n), x.take(n), x.take(n), x.take(len(plan.others))
    p = Problem(
        field_of(plan, graph, others), y0, ts, Stops(stops, None), direction, plan.method, plan.controller, rtol, atol,
        plan.batched, 0, traced=True,
    )  # fmt: skip
    return p, others


def _problem_fakes(plan: Plan, mode: Any) -> list[Tensor]:
    with mode:
        ts = torch.empty((*plan.lane, 2), dtype=torch.float64)
        stops = torch.empty((*plan.lane, plan.stops), dtype=torch.float64)
        direction = torch.empty(plan.lane, dtype=torch.float64)
    looks = (*plan.rtol, *plan.atol, *plan.y, *plan.others)
    return [ts, stops, direction, *(look.fake(mode) for look in looks)]


def _state(s: State) -> tuple[Tensor, ...]:
    return (s.t, s.h, *s.memory, s.stop, s.status, *s.y, *s.carry)


def forward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a solve, until it ends or the tape is full.

    Inputs: fresh, max_steps, rows of the tape to use, attempts, accepted; h, status, memory and carry to go on with
    where not fresh; those of the problem; the tape. Outputs: rows in use, attempts, accepted, and the state.
    """
    mode = fake_mode()
    problem = _problem_fakes(plan, mode)
    with mode:
        lane = torch.empty(plan.lane, dtype=torch.float64)
        counts = [torch.empty(plan.lane, dtype=torch.int64) for _ in range(3)]
        limits = [torch.empty((), dtype=torch.int64) for _ in range(2)]
        head = [torch.empty((), dtype=torch.bool), *limits, *counts[:2]]
    memory = len(plan.controller.memory(1.0))
    carry = list(carry_of(plan, mode))
    given = [lane, counts[2], *(torch.empty_like(lane) for _ in range(memory)), *carry]
    calls = [0, 0]

    def begin(fresh: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        x = Values(rest)
        h, status, kept, carried = x.one(), x.one(), x.take(memory), x.take(len(carry))
        p, _ = _problem(plan, graph, x)
        s = start(p, Clock(p))
        calls[0] = p.f.calls
        s = s._replace(
            h=torch.where(fresh, s.h, h),
            status=torch.where(fresh, s.status, status),
            memory=tuple(torch.where(fresh, a, b) for a, b in zip(s.memory, kept, strict=True)),
            carry=tuple(torch.where(fresh, a, b) for a, b in zip(s.carry, carried, strict=True)),
        )
        go = (s.status == Status.RUNNING).any()
        return (torch.zeros((), dtype=torch.int64), go, *_state(s))

    def turn(*inputs: Tensor) -> tuple[Tensor, ...]:
        x = Values(inputs)
        row, _, attempts, accepted = x.take(4)
        t, h, kept, stop, status = x.one(), x.one(), x.take(memory), x.one(), x.one()
        y, carried, most, room = x.take(len(plan.y)), x.take(len(carry)), x.one(), x.one()
        p, _ = _problem(plan, graph, x)
        s = State(t, t, h, y, carried, kept, stop, False, status)
        clock = Clock(p)
        move, verdict = attempt(p, clock, s)
        tape: list[Tensor] = []
        if plan.slots:
            t1 = torch.where(move.accept, move.t1, t)
            tape = [*y, *carried, t, t1, *([move.accept] if plan.batched else [])]
            if plan.dense:
                tape += [c for cs in move.polynomial() for c in cs]
        attempts = attempts + (status == Status.RUNNING)
        accepted = accepted + move.accept
        s = settle(p, clock, s, move, verdict)
        calls[1] = p.f.calls
        running = s.status == Status.RUNNING
        s = s._replace(status=torch.where(running & (attempts >= most), int(Status.MAX_STEPS), s.status))
        row = row + move.accept.any()
        go = (s.status == Status.RUNNING).any()
        if plan.slots:
            go = go & (row < room)
        return (row, go, attempts, accepted, *_state(s), *tape)

    first = record(begin, [head[0], *given, *problem], mode)
    states = [n.meta["val"] for n in outputs_of(first)][2:]
    carried = [head[1], head[0], *counts[:2], *states]
    turned = record(turn, [*carried, *limits, *problem], mode, unused=plan.keeps)
    kept = costly(turned, free=1) if plan.keeps else []
    shown(turned, kept)
    turned = rewritten(turned, len(carried), mode)
    after = [n.meta["val"] for n in outputs_of(turned)][len(carried) :]
    tape = [Look((plan.slots, *x.shape), contiguous_strides((plan.slots, *x.shape)), x.dtype).fake(mode) for x in after]
    # the graph of a turn gets the tape as inputs; it is written, not read
    turned = widened(turned, tape)
    turned = written(turned, len(tape), at=0) if tape else turned
    go = record(lambda *x: (x[1].clone(),), [*carried, *limits, *problem, *tape], mode)
    fakes = [*head, *given, *problem, *tape]
    whole = Joined(fakes)
    x = Values(whole.inputs)
    (fresh, *bounds, attempts, accepted), others = x.take(5), x.take(len(given))
    rest, tape_nodes = x.take(len(problem)), x.take(len(tape))
    row, going, *state = whole.then(first, [fresh, *others, *rest])
    copies = whole.then(record(lambda *x: x, counts[:2], mode), [attempts, accepted])
    out = whole.loop(bare(go), turned, [row, going, *copies, *state], [*bounds, *rest, *tape_nodes])
    looks = tuple((tuple(x.shape[1:]), x.dtype) for x in tape[len(tape) - len(kept) :])
    return Recorded(whole.done([out[0], *out[2:]]), fakes, mode, (calls[0], calls[1]), looks)
