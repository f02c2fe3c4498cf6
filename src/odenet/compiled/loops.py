"""The two graphs of a compiled solve: the steps forward, taken down on a tape, and the exact backward pass over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..control.base import Controller
from ..core.field import VectorField
from ..core.leaves import Leaves, flatten, select
from ..core.status import Status
from ..engine.advance import Clock, State, attempt, settle
from ..engine.drive import start
from ..engine.problem import Problem, Stops
from ..methods.base import Method
from .capture import FieldGraph
from .products import rewritten
from .trace import Joined, fake_mode, record, widened, written


@dataclass(frozen=True)
class Plan:
    """What is compiled: all of a solve that is not a tensor handed to it, and how those look.

    settings: of method and controller, as values. dtypes, time_dtype: of what f sees. y, others: shape, strides, dtype
    and whether a gradient is wanted, for each leaf and for each tensor that f uses beside t and y. stops: how many
    times end a step. slots: rows of a tape, 0 without one. starts: the states at the starts of the steps have
    cotangents of their own. dense: a tape holds each step's polynomial too, which has cotangents.
    """

    method: Method = field(compare=False)
    controller: Controller = field(compare=False)
    settings: tuple[Any, ...]
    batched: bool
    dtypes: tuple[torch.dtype, ...]
    time_dtype: torch.dtype
    y: tuple[Look, ...]
    others: tuple[Look, ...]
    rtol: tuple[Look, ...]
    atol: tuple[Look, ...]
    stops: int
    slots: int
    starts: bool
    dense: bool

    @property
    def lane(self) -> tuple[int, ...]:
        return (self.y[0].shape[0],) if self.batched else ()


@dataclass(frozen=True)
class Look:
    """How a tensor looks. needed: its gradient is wanted."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    needed: bool = False

    @staticmethod
    def of(x: Tensor, needed: bool = False) -> Look:
        return Look(tuple(x.shape), x.stride(), x.dtype, needed)

    def fake(self, mode: Any) -> Tensor:
        with mode:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)


@dataclass
class Recorded:
    """A graph ready to be compiled. calls: evaluations of f at the start (or end), and in each turn of the loop."""

    module: GraphModule
    fakes: list[Tensor]
    mode: Any
    calls: tuple[int, int]


class _Names:
    """Takes groups of values off a flat list, in order."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values, self.at = tuple(values), 0

    def take(self, count: int) -> tuple[Any, ...]:
        self.at += count
        return self.values[self.at - count : self.at]

    def one(self) -> Any:
        return self.take(1)[0]


def _field(plan: Plan, graph: FieldGraph, others: Sequence[Tensor]) -> VectorField:
    spec = flatten((0,) * len(plan.y))[1]
    names = [""] * len(plan.y)
    field = VectorField(lambda t, y: graph(t, y, others), spec, names, plan.dtypes, plan.time_dtype)
    field.checked = True
    return field


def _problem(plan: Plan, graph: FieldGraph, x: _Names) -> tuple[Problem, Leaves]:
    """The problem from its tensors: ts, stops, direction, rtol, atol, y0, others. And the others."""
    n = len(plan.y)
    ts, stops, direction = x.take(3)
    rtol, atol, y0, others = x.take(n), x.take(n), x.take(n), x.take(len(plan.others))
    p = Problem(
        _field(plan, graph, others), y0, ts, Stops(stops, None), direction, plan.method, plan.controller, rtol, atol,
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

    Inputs: fresh, max_steps, attempts, accepted; h, status, memory and carry to go on with where not fresh; those of
    the problem; the tape. Outputs: rows of the tape in use, attempts, accepted, and the state.
    """
    mode = fake_mode()
    problem = _problem_fakes(plan, mode)
    with mode:
        lane = torch.empty(plan.lane, dtype=torch.float64)
        counts = [torch.empty(plan.lane, dtype=torch.int64) for _ in range(3)]
        head = [torch.empty((), dtype=torch.bool), torch.empty((), dtype=torch.int64), *counts[:2]]
    memory = len(plan.controller.memory(1.0))
    carry = list(_carry(plan, mode))
    given = [lane, counts[2], *(torch.empty_like(lane) for _ in range(memory)), *carry]
    calls = [0, 0]

    def begin(fresh: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        x = _Names(rest)
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
        x = _Names(inputs)
        row, _, attempts, accepted = x.take(4)
        t, h, kept, stop, status = x.one(), x.one(), x.take(memory), x.one(), x.one()
        y, carried, most = x.take(len(plan.y)), x.take(len(carry)), x.one()
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
            go = go & (row < plan.slots)
        return (row, go, attempts, accepted, *_state(s), *tape)

    first = record(begin, [head[0], *given, *problem], mode)
    states = [n.meta["val"] for n in _outputs(first)][2:]
    carried = [head[1], head[0], head[2], head[3], *states]
    turned = rewritten(record(turn, [*carried, head[1], *problem], mode), len(carried), mode)
    after = [n.meta["val"] for n in _outputs(turned)][len(carried) :]
    tape = [Look((plan.slots, *x.shape), _contiguous((plan.slots, *x.shape)), x.dtype).fake(mode) for x in after]
    # the graph of a turn gets the tape as inputs; it is written, not read
    turned = widened(turned, tape)
    turned = written(turned, len(tape), at=0) if tape else turned
    go = record(lambda *x: (x[1].clone(),), [*carried, head[1], *problem, *tape], mode)
    fakes = [*head, *given, *problem, *tape]
    whole = Joined(fakes)
    x = _Names(whole.inputs)
    (fresh, most, attempts, accepted), others = x.take(4), x.take(len(given))
    rest, tape_nodes = x.take(len(problem)), x.take(len(tape))
    row, going, *state = whole.then(first, [fresh, *others, *rest])
    copies = whole.then(record(lambda *x: x, counts[:2], mode), [attempts, accepted])
    out = whole.loop(_unpacked(go), turned, [row, going, *copies, *state], [most, *rest, *tape_nodes])
    return Recorded(whole.done([out[0], *out[2:]]), fakes, mode, (calls[0], calls[1]))


def backward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a tape in reverse order, each taken again and pulled through.

    Inputs: rows in use, whether row 0 is the start of the solve; cotangents of y and the carry; those of the states at
    the starts of the steps (with `starts`) and of the polynomials (with `dense`), row by row; the others; the tape.
    Outputs: cotangents of y and the carry at row 0, of y where the carry has been pulled to it, and of the others that
    want theirs.
    """
    mode, n = fake_mode(), len(plan.y)
    y, others = [look.fake(mode) for look in plan.y], [look.fake(mode) for look in plan.others]
    carry = list(_carry(plan, mode))
    with mode:
        rows, first = torch.empty((), dtype=torch.int64), torch.empty((), dtype=torch.bool)
        lanes = [torch.empty((plan.slots, *plan.lane), dtype=torch.float64) for _ in range(2)]
        accept = [torch.empty((plan.slots, *plan.lane), dtype=torch.bool)] if plan.batched else []
        tape = [torch.empty((plan.slots, *x.shape), dtype=x.dtype) for x in (*y, *carry)] + lanes + accept
        powers = powers_of(plan.method) if plan.dense else 0
        extra = [torch.empty_like(x) for x in tape[: n * plan.starts]]
        extra += [torch.empty_like(x) for _ in range(powers) for x in tape[:n]]
    wanted = [i for i, look in enumerate(plan.others) if look.needed]
    totals = [others[i] for i in wanted]
    calls = [0, 0]

    def with_wanted(given: Leaves, wants: Leaves) -> VectorField:
        every = list(given)
        for i, x in zip(wanted, wants, strict=True):
            every[i] = x
        return _field(plan, graph, every)

    def turn(*inputs: Tensor) -> tuple[Tensor, ...]:
        x = _Names(inputs)
        i, y_bar, carry_bar, total = x.one(), x.take(n), x.take(len(carry)), x.take(len(wanted))
        bars, given, tapes = x.take(len(extra)), x.take(len(others)), x.take(len(tape))
        now = [t.index_select(0, i.unsqueeze(0)).squeeze(0) for t in (*tapes, *bars)]
        at = _Names(now)
        y, carried, t0, t1 = at.take(n), at.take(len(carry)), at.one(), at.one()
        accept = at.one() if plan.batched else True
        start_bars, coefficient_bars = at.take(n * plan.starts), at.take(powers * n)

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            x = _Names(inputs)
            y, carried, wants = x.take(n), x.take(len(carry)), x.take(len(wanted))
            f = with_wanted(given, wants)
            made = plan.method.step(f, t0, t1, y, carried)
            out = (*made.y, *made.carry)
            if powers:
                out += tuple(c for cs in plan.method.dense(f, t0, t1, y, made) for c in cs)
            calls[1] = f.calls
            return out

        through = select(accept, (*y_bar, *carry_bar), tuple(torch.zeros_like(b) for b in (*y_bar, *carry_bar)))
        passed = select(accept, tuple(torch.zeros_like(b) for b in (*y_bar, *carry_bar)), (*y_bar, *carry_bar))
        _, pull = torch.func.vjp(step, *y, *carried, *(given[i] for i in wanted))  # pyright: ignore
        pulled = pull((*through, *coefficient_bars))
        if plan.batched:
            pulled = (*(a + b for a, b in zip(pulled, passed, strict=False)), *pulled[len(passed) :])
        new_y = tuple(a + b for a, b in zip(pulled[:n], start_bars, strict=True)) if plan.starts else pulled[:n]
        sums = tuple(a + b for a, b in zip(total, pulled[n + len(carry) :], strict=True))
        return (i - 1, *new_y, *pulled[n : n + len(carry)], *sums)

    def end(first: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = _Names(inputs)
        y_bar, carry_bar, total, given = x.take(n), x.take(len(carry)), x.take(len(wanted)), x.take(len(others))
        y, t0 = tuple(t[0] for t in x.take(n)), x.one()[0]
        if not carry:
            return (*y_bar, *total)

        def init(*inputs: Tensor) -> Leaves:
            f = with_wanted(given, tuple(inputs[n:]))
            out = plan.method.init(f, t0, tuple(inputs[:n]))
            calls[0] = f.calls
            return out

        _, pull = torch.func.vjp(init, *y, *(given[i] for i in wanted))  # pyright: ignore
        pulled = pull(tuple(torch.where(first, b, torch.zeros_like(b)) for b in carry_bar))
        return tuple(a + b for a, b in zip((*y_bar, *total), pulled, strict=True))

    carried = [rows, *y, *carry, *totals]
    turned = rewritten(record(turn, [*carried, *extra, *others, *tape], mode), len(carried), mode)
    ended = record(end, [first, *y, *carry, *totals, *others, *tape[:n], tape[n + len(carry)]], mode)
    go = record(lambda i, *x: (i >= 0,), [*carried, *extra, *others, *tape], mode)
    zeros = record(lambda *x: tuple(torch.zeros_like(x[i]) for i in wanted), others, mode)
    fakes = [rows, first, *y, *carry, *extra, *others, *tape]
    whole = Joined(fakes)
    x = _Names(whole.inputs)
    (count, first_node), y_bar, carry_bar = x.take(2), x.take(n), x.take(len(carry))
    rest, given, tapes = x.take(len(extra)), x.take(len(others)), x.take(len(tape))
    last = whole.then(record(lambda i, *x: (i - 1, *x), [rows, *y, *carry], mode), [count, *y_bar, *carry_bar])
    sums = whole.then(zeros, given)
    out = whole.loop(_unpacked(go), turned, [*last, *sums], [*rest, *given, *tapes])[1:]
    final = whole.then(ended, [first_node, *out, *given, *tapes[:n], tapes[n + len(carry)]])
    return Recorded(whole.done([*out[: n + len(carry)], *final]), fakes, mode, (calls[0], calls[1]))


def _carry(plan: Plan, mode: Any) -> Leaves:
    """What the method carries from step to step, for its looks."""
    with mode, torch.no_grad():
        y = tuple(look.fake(mode) for look in plan.y)
        t = torch.empty(plan.lane, dtype=torch.float64)
        return tuple(torch.empty_like(x) for x in plan.method.init(lambda t, y: y, t, y))


def powers_of(method: Method) -> int:
    """How many coefficients the method's polynomial has."""
    with torch.no_grad():
        y, t0, t1 = (torch.zeros(1),), torch.zeros(()), torch.ones(())
        step = method.step(lambda t, y: y, t0, t1, y, method.init(lambda t, y: y, t0, y))
        return len(method.dense(lambda t, y: y, t0, t1, y, step))


def _outputs(module: GraphModule) -> list[torch.fx.Node]:
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    return list(output.args[0])  # pyright: ignore


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _unpacked(go: GraphModule) -> GraphModule:
    """The graph with its one output bare, as a loop's condition has it."""
    (output,) = (n for n in go.graph.nodes if n.op == "output")
    output.args = (output.args[0][0],)
    go.recompile()
    return go
