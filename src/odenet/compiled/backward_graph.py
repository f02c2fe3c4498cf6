"""The graph of the exact backward pass over a tape."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.field import VectorField
from ..core.leaves import Leaves, flatten, select, tree_map
from ..methods.base import StepInput
from .capture import FieldGraph
from .graph_recording import Recorded, fake_mode, record, widened
from .passes.column_layout import all_arranged, all_by_rows
from .passes.matmul_passes import rewritten
from .passes.saved_matmuls import costly, looks_of, shelf_for, taken
from .plan import Plan, exchanged, field_of, powers_of, tape_for


class Tape(NamedTuple):
    """What a step is taken again from. accept: of lanes, where they have steps of their own."""

    y: Leaves
    carry: Leaves
    t0: Tensor
    t1: Tensor
    accept: Leaves


class Bars(NamedTuple):
    """Cotangents. left: how many steps are still to be pulled through. others: of those that want theirs."""

    left: Tensor
    y: Leaves
    carry: Leaves
    others: Leaves


class Inputs(NamedTuple):
    """What a library is given.

    first: row 0 is the start of the solve. y, carry: their cotangents at the end. starts, powers: those of the states
    at the starts of the steps (with `Plan.starts`), and of the polynomials (with `Plan.dense`), row by row.
    """

    rows: Tensor
    first: Tensor
    y: Leaves
    carry: Leaves
    starts: Leaves
    powers: Coefficients
    others: Leaves
    tape: Tape


def backward(plan: Plan, graph: FieldGraph) -> Recorded:
    """The steps of a tape in reverse order, each taken again and pulled through.

    (`Inputs`, products that were kept) -> cotangents of y and the carry at row 0, of y alone where that is the start of
    the solve, and of the others that want theirs.
    """
    mode, back = fake_mode(), _Back(plan, graph)
    given = back.fakes(mode)
    with mode:
        left = torch.empty_like(given.rows)
        bars = Bars(left, given.y, given.carry, tuple(torch.empty_like(given.others[i]) for i in plan.wanted))
    begun = record(back.begin, [given], mode)
    turned = record(back.turn, [bars, given], mode, unused=plan.keeps)
    carried, before = len(flatten(bars)[0]), len(flatten(given[:6])[0])
    kept = costly(turned, free=carried + before) if plan.keeps else []
    shelf = shelf_for(plan, kept, mode)
    turned = widened(turned, shelf)
    taken(turned, kept, mode)
    turned = rewritten(turned, carried, mode, plan.columns)
    ended = widened(record(back.end, [bars, given], mode), shelf)
    calls = (back.calls_at_end, back.calls_in_turn)
    return Recorded(widened(begun, shelf), turned, ended, mode, carried, calls, looks_of(shelf), counted=True)


class _Back:
    """The functions that are recorded."""

    def __init__(self, plan: Plan, graph: FieldGraph) -> None:
        self.plan, self.graph = plan, graph
        self.calls_at_end = self.calls_in_turn = 0

    def fakes(self, mode: object) -> Inputs:
        plan, n = self.plan, len(self.plan.y)
        y, others = (tuple(look.fake(mode) for look in looks) for looks in (plan.y, plan.others))
        powers, carry = powers_of(plan.method) if plan.dense else 0, y if plan.carries else ()
        with mode, plan.device:  # pyright: ignore
            rows, first = torch.empty((), dtype=torch.int64), torch.empty((), dtype=torch.bool)
            flat = tape_for(plan, y)
        like, at = tuple(flat[:n]), n + len(carry)
        tape = Tape(like, tuple(flat[n:at]), flat[at], flat[at + 1], tuple(flat[at + 2 : at + 2 + plan.batched]))
        return Inputs(rows, first, y, carry, like if plan.starts else (), (like,) * powers, others, tape)

    def _field(self, others: Leaves, wanted: Leaves) -> VectorField:
        return field_of(self.plan, self.graph, exchanged(self.plan, others, wanted))

    def _wanted(self, others: Leaves) -> Leaves:
        return tuple(others[i] for i in self.plan.wanted)

    def begin(self, x: Inputs) -> Bars:
        return Bars(x.rows, x.y, x.carry, tuple(torch.zeros_like(o) for o in self._wanted(x.others)))

    def turn(self, at: Bars, x: Inputs) -> Bars:
        """One step back."""
        method, columns = self.plan.method, self.plan.columns
        left = at.left - 1
        row = left.unsqueeze(0)
        here, starts, powers = tree_map(lambda t: t.index_select(0, row).squeeze(0), (x.tape, x.starts, x.powers))
        powers = tuple(all_by_rows(c) for c in powers)
        bars = all_by_rows((*at.y, *at.carry))

        def step(y: Leaves, carry: Leaves, wanted: Leaves) -> tuple[Leaves, Coefficients]:
            f = self._field(x.others, wanted)
            told = StepInput(f, here.t0, here.t1, y, carry)
            made = method.step(told)
            dense = method.dense(told, made) if powers else ()
            self.calls_in_turn = f.calls
            return (*made.y, *made.carry), dense

        wanted = self._wanted(x.others)
        _, pull = torch.func.vjp(step, all_by_rows(here.y), all_by_rows(here.carry), wanted)  # pyright: ignore
        none = tuple(torch.zeros_like(b) for b in bars)
        (accept,) = here.accept or (True,)  # lanes that did not take the step stand still
        y, carry, others = pull((select(accept, bars, none), powers))
        if self.plan.batched:
            still = select(accept, none, bars)
            y, carry = _sums(y, still[: len(y)]), _sums(carry, still[len(y) :])
        y = _sums(y, all_by_rows(starts)) if starts else y
        return Bars(left, all_arranged(y, columns), all_arranged(carry, columns), _sums(at.others, others))

    def end(self, at: Bars, x: Inputs) -> tuple[Leaves, Leaves, Leaves]:
        """Through the first carry, where row 0 is the first step."""
        if not at.carry:
            return at.y, (), at.others
        y0, t0 = all_by_rows(tuple(t[0] for t in x.tape.y)), x.tape.t0[0]

        def init(y: Leaves, wanted: Leaves) -> Leaves:
            f = self._field(x.others, wanted)
            carry = self.plan.method.init(f, t0, y)
            self.calls_at_end = f.calls
            return carry

        _, pull = torch.func.vjp(init, y0, self._wanted(x.others))  # pyright: ignore
        nothing: Leaves = tuple(torch.zeros_like(b) for b in y0)
        pulled = pull(tuple(torch.where(x.first, b, n) for b, n in zip(all_by_rows(at.carry), nothing, strict=True)))
        y, others = tree_map(lambda g: torch.where(x.first, g, 0.0), pulled)
        y = all_arranged(_sums(all_by_rows(at.y), y), self.plan.columns)
        return y, at.carry, _sums(at.others, others)


def _sums(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x + y for x, y in zip(a, b, strict=True))
