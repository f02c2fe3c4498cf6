"""The graph of the exact backward pass over a tape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..core.field import VectorField
from ..core.leaves import Leaves, select
from ..methods.base import StepInput
from .capture import FieldGraph
from .columns import all_arranged, all_by_rows, tape_of
from .kept import costly, taken
from .plan import Plan, Recorded, Values, bare, carry_of, field_of, powers_of
from .products import rewritten
from .trace import Joined, fake_mode, record, widened


def backward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a tape in reverse order, each taken again and pulled through.

    Inputs: rows in use, whether row 0 is the start of the solve; cotangents of y and the carry; those of the states at
    the starts of the steps (with `starts`) and of the polynomials (with `dense`), row by row; the others; the tape.
    Outputs: cotangents of y and the carry at row 0, of y where the carry has been pulled to it, and of the others that
    want theirs.
    """
    mode, back = fake_mode(), _Back(plan, graph)
    n, y = back.n, [look.fake(mode) for look in plan.y]
    others, carry = [look.fake(mode) for look in plan.others], list(carry_of(plan, mode))
    with mode, plan.device:
        rows, first = torch.empty((), dtype=torch.int64), torch.empty((), dtype=torch.bool)
        lanes = [torch.empty((plan.slots, *plan.lane), dtype=torch.float64) for _ in range(2)]
        accept = [torch.empty((plan.slots, *plan.lane), dtype=torch.bool)] if plan.batched else []
        tape = [tape_of(x, plan.slots, plan.columns) for x in (*y, *carry)] + lanes + accept
        extra = [torch.empty_like(x) for x in tape[: n * plan.starts]]
        extra += [torch.empty_like(x) for _ in range(back.powers) for x in tape[:n]]
    totals = [others[i] for i in back.wanted]
    carried, start = [rows, *y, *carry, *totals], [*tape[:n], tape[n + len(carry)]]
    turned = record(back.turn, [*carried, *extra, *others, *tape], mode, unused=plan.keeps)
    kept = costly(turned, free=len(carried) + len(extra)) if plan.keeps else []
    shelf = _shelf(plan, kept, mode)
    tape += shelf
    turned = widened(turned, shelf)
    taken(turned, kept)
    turned = rewritten(turned, len(carried), mode, plan.columns)
    ended = record(back.end, [first, *y, *carry, *totals, *others, *start], mode)
    go = record(lambda i, *x: (i >= 0,), [*carried, *extra, *others, *tape], mode)
    zeros = record(lambda *x: tuple(torch.zeros_like(x[i]) for i in back.wanted), others, mode)
    begun = record(lambda i, *x: (i - 1, *x), [rows, *y, *carry], mode)
    fakes = [rows, first, *y, *carry, *extra, *others, *tape]
    whole = Joined(fakes)
    x = Values(whole.inputs)
    (count, first_node), bars = x.take(2), x.take(n + len(carry))
    rest, given, tapes = x.take(len(extra)), x.take(len(others)), x.take(len(tape))
    last, sums = whole.then(begun, [count, *bars]), whole.then(zeros, given)
    out = whole.loop(bare(go), turned, [*last, *sums], [*rest, *given, *tapes])[1:]
    final = whole.then(ended, [first_node, *out, *given, *tapes[:n], tapes[n + len(carry)]])
    calls, looks = (back.calls_at_end, back.calls_in_turn), tuple((tuple(x.shape[1:]), x.dtype) for x in shelf)
    return Recorded(whole.done([*out[: n + len(carry)], *final]), fakes, mode, calls, looks, counted=True)


def _shelf(plan: Plan, kept: list[Node], mode: Any) -> list[Tensor]:
    with mode:
        values = [n.meta["val"] for n in kept]
        return [x.new_empty((plan.slots, *x.shape)) for x in values]


class _Back:
    """The functions that are recorded, each of tensors in the order that `backward` says."""

    def __init__(self, plan: Plan, graph: FieldGraph) -> None:
        self.plan, self.graph, self.n = plan, graph, len(plan.y)
        self.carry = self.n if plan.carries else 0
        self.wanted = [i for i, look in enumerate(plan.others) if look.needed]
        self.powers = powers_of(plan.method) if plan.dense else 0
        self.calls_at_end = self.calls_in_turn = 0

    def _field(self, others: Leaves, wanted: Leaves) -> VectorField:
        every = list(others)
        for i, x in zip(self.wanted, wanted, strict=True):
            every[i] = x
        return field_of(self.plan, self.graph, every)

    def turn(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One step back."""
        plan, n, x = self.plan, self.n, Values(inputs)
        i, bars, total = x.one(), all_by_rows(x.take(n + self.carry)), x.take(len(self.wanted))
        extra, others = x.take(n * plan.starts + n * self.powers), x.take(len(plan.others))
        row = i.unsqueeze(0)
        at = Values([t.index_select(0, row).squeeze(0) for t in x.values[x.at :]])
        y, carry = (all_by_rows(at.take(count)) for count in (n, self.carry))
        t0, t1 = at.one(), at.one()
        extras = Values([t.index_select(0, row).squeeze(0) for t in extra])
        start_bars, coefficient_bars = (all_by_rows(extras.take(count)) for count in (n * plan.starts, self.powers * n))

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            x = Values(inputs)
            y, carry = x.take(n), x.take(self.carry)
            f = self._field(others, x.take(len(self.wanted)))
            at = StepInput(f, t0, t1, y, carry)
            made = plan.method.step(at)
            out = (*made.y, *made.carry)
            if self.powers:
                out += tuple(c for cs in plan.method.dense(at, made) for c in cs)
            self.calls_in_turn = f.calls
            return out

        _, pull = torch.func.vjp(step, *y, *carry, *(others[i] for i in self.wanted))  # pyright: ignore
        if plan.batched:  # lanes that did not take the step stand still
            accept, none = at.one(), tuple(torch.zeros_like(b) for b in bars)
            pulled = pull((*select(accept, bars, none), *coefficient_bars))
            passed = select(accept, none, bars)
            pulled = (*(a + b for a, b in zip(pulled, passed, strict=False)), *pulled[len(passed) :])
        else:
            pulled = pull((*bars, *coefficient_bars))
        new_y = pulled[:n]
        if plan.starts:
            new_y = tuple(a + b for a, b in zip(new_y, start_bars, strict=True))
        sums = tuple(a + b for a, b in zip(total, pulled[n + self.carry :], strict=True))
        return (i - 1, *all_arranged((*new_y, *pulled[n : n + self.carry]), plan.columns), *sums)

    def end(self, first: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Through the first carry, where row 0 is the first step."""
        n, x = self.n, Values(inputs)
        y_bar, carry_bar = all_by_rows(x.take(n)), all_by_rows(x.take(self.carry))
        total, others = x.take(len(self.wanted)), x.take(len(self.plan.others))
        y, t0 = all_by_rows(tuple(t[0] for t in x.take(n))), x.one()[0]
        if not self.carry:
            return (*y_bar, *total)

        def init(*inputs: Tensor) -> Leaves:
            f = self._field(others, tuple(inputs[n:]))
            out = self.plan.method.init(f, t0, tuple(inputs[:n]))
            self.calls_at_end = f.calls
            return out

        _, pull = torch.func.vjp(init, *y, *(others[i] for i in self.wanted))  # pyright: ignore
        pulled = pull(tuple(torch.where(first, b, torch.zeros_like(b)) for b in carry_bar))
        return tuple(a + b for a, b in zip((*y_bar, *total), pulled, strict=True))
