"""The graph of the exact backward pass over a tape."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.field_protocols import Field
from ..core.leaves import Leaves, select
from ..core.pytrees import flatten, tree_map
from ..core.vector_field import VectorField
from ..engine.advance import restarted_carry
from ..engine.one_sided import OneSidedField
from ..methods.method import StepInput
from .field_graph import FieldGraph
from .graph_recording import RecordedLoop, add_inputs, fake_mode, record_graph
from .passes.column_layout import all_contiguous, all_to_loop_layout
from .passes.matmul_passes import rewrite_matmuls
from .passes.saved_matmuls import expensive_matmuls, read_saved, row_specs, saved_tape
from .passes.tanh import replace_tanh
from .plan import Plan, coefficient_count, substitute, tape_tensors, vector_field


class StepTape(NamedTuple):
    """The tensors (rows, ...) from which a step is computed again.

    accepted: if each sample has its own steps. jumped_and_jumps: whether f jumps at t0, and at t1, if it jumps at all.
    """

    y: Leaves
    carry: Leaves
    t0: Tensor
    t1: Tensor
    accepted: Leaves
    jumped_and_jumps: Leaves


class Cotangents(NamedTuple):
    """The tensors that the loop carries. remaining: steps to go. captures: of those that need a gradient."""

    remaining: Tensor
    y: Leaves
    carry: Leaves
    captures: Leaves


class BackwardInputs(NamedTuple):
    """The inputs of a backward library.

    first: whether row 0 is the start of the solve. direction: of time, if f jumps. y, carry: their cotangents at the
    end. starts, polynomials: the cotangents, row by row, of the states at the starts of the steps (`Plan.step_starts`)
    and of the polynomials (`Plan.dense`).
    """

    rows: Tensor
    first: Tensor
    direction: Leaves
    y: Leaves
    carry: Leaves
    starts: Leaves
    polynomials: Coefficients
    captures: Leaves
    tape: StepTape


def backward_graph(plan: Plan, graph: FieldGraph) -> RecordedLoop:
    """The VJPs of the steps on a tape, last step first.

    (`BackwardInputs`, saved products) -> cotangents of y and the carry at row 0 (of y alone at the start of the solve),
    and of the captures that need a gradient.
    """
    mode, functions = fake_mode(), _BackwardFunctions(plan, graph)
    inputs = functions.fakes(mode)
    with mode:
        remaining, captures = torch.empty_like(inputs.rows), functions.differentiated(inputs.captures)
        cotangents = Cotangents(remaining, inputs.y, inputs.carry, tuple(torch.empty_like(x) for x in captures))
    begin = record_graph(functions.begin, [inputs], mode)
    body = record_graph(functions.body, [cotangents, inputs], mode, keep_unused=plan.saves_matmuls)
    carried, before = len(flatten(cotangents)[0]), len(flatten(inputs[:7])[0])
    saved = expensive_matmuls(body, free=carried + before) if plan.saves_matmuls else []
    tape = saved_tape(plan, saved, mode)
    rows, body = row_specs(saved), add_inputs(body, tape)
    read_saved(body, saved, mode)
    replace_tanh(body, mode)
    body = rewrite_matmuls(body, carried, mode, plan.column_major)
    end = add_inputs(record_graph(functions.end, [cotangents, inputs], mode), tape)
    evaluations = (functions.evaluations_at_end, functions.evaluations_in_body)
    begin = add_inputs(begin, tape)
    return RecordedLoop(begin, body, end, mode, carried, evaluations, rows, counted=True)


class _BackwardFunctions:
    """The functions that are recorded."""

    def __init__(self, plan: Plan, graph: FieldGraph) -> None:
        self.plan, self.graph = plan, graph
        self.evaluations_at_end = self.evaluations_in_body = 0

    def fakes(self, mode: Any) -> BackwardInputs:
        plan, n = self.plan, len(self.plan.y)
        y, captures = (tuple(spec.fake(mode) for spec in specs) for specs in (plan.y, plan.captures))
        coefficients, carry = coefficient_count(plan.method) if plan.dense else 0, y if plan.has_carry else ()
        with mode, plan.device:
            rows, first = torch.empty((), dtype=torch.int64), torch.empty((), dtype=torch.bool)
            flat = tape_tensors(plan, y)
        like, at = tuple(flat[:n]), n + len(carry)
        flags = tuple(flat[at + 2 : at + 2 + plan.flag_count])
        times = flat[at], flat[at + 1]
        tape = StepTape(like, tuple(flat[n:at]), *times, flags[: plan.batched], flags[plan.batched :])
        starts = like if plan.step_starts else ()
        direction = (times[0][0],) if plan.jumps else ()
        return BackwardInputs(rows, first, direction, y, carry, starts, (like,) * coefficients, captures, tape)

    def _field(self, captures: Leaves, differentiated: Leaves) -> VectorField:
        return vector_field(self.plan, self.graph, substitute(self.plan, captures, differentiated))

    def _one_sided(self, f: VectorField, at: StepTape, direction: Leaves) -> Field:
        """f for one step, by its one-sided limits where it jumps."""
        if not direction:
            return f
        return OneSidedField(f, direction[0], at.t0, at.t1, *at.jumped_and_jumps)

    def differentiated(self, captures: Leaves) -> Leaves:
        return tuple(captures[i] for i in self.plan.differentiated)

    def begin(self, x: BackwardInputs) -> Cotangents:
        zeros = tuple(torch.zeros_like(c) for c in self.differentiated(x.captures))
        return Cotangents(x.rows, x.y, x.carry, zeros)

    def body(self, at: Cotangents, x: BackwardInputs) -> Cotangents:
        """The VJP of one step."""
        method, column_major = self.plan.method, self.plan.column_major
        remaining = at.remaining - 1
        row = remaining.unsqueeze(0)
        read = (x.tape, x.starts, x.polynomials)
        here, starts, polynomials = tree_map(lambda t: t.index_select(0, row).squeeze(0), read)
        polynomials = tuple(all_contiguous(c) for c in polynomials)
        cotangents = all_contiguous((*at.y, *at.carry))

        def step(y: Leaves, carry: Leaves, differentiated: Leaves) -> tuple[Leaves, Coefficients]:
            f = self._field(x.captures, differentiated)
            given = StepInput(self._one_sided(f, here, x.direction), here.t0, here.t1, y, carry)
            result = method.step(given)
            dense = method.dense(given, result) if polynomials else ()
            carry = result.carry
            for jumps in here.jumped_and_jumps[1:]:
                carry = restarted_carry(method, f, x.direction[0], here.t1, result, jumps)
            self.evaluations_in_body = f.calls
            return (*result.y, *carry), dense

        primals = all_contiguous(here.y), all_contiguous(here.carry), self.differentiated(x.captures)
        vjp = cast(Any, torch.func.vjp(step, *primals)[1])
        zeros = tuple(torch.zeros_like(c) for c in cotangents)
        (accepted,) = here.accepted or (True,)  # the state of a sample that rejected the step stays
        y, carry, captures = vjp((select(accepted, cotangents, zeros), polynomials))
        if self.plan.batched:
            unchanged = select(accepted, zeros, cotangents)
            y, carry = _add(y, unchanged[: len(y)]), _add(carry, unchanged[len(y) :])
        y = _add(y, all_contiguous(starts)) if starts else y
        y, carry = all_to_loop_layout(y, column_major), all_to_loop_layout(carry, column_major)
        return Cotangents(remaining, y, carry, _add(at.captures, captures))

    def end(self, at: Cotangents, x: BackwardInputs) -> tuple[Leaves, Leaves, Leaves]:
        """The VJP of the first carry, if row 0 is the first step."""
        if not at.carry:
            return at.y, (), at.captures
        first: StepTape = tree_map(lambda t: t[0], x.tape)
        y0, t0 = all_contiguous(first.y), first.t0

        def init(y: Leaves, differentiated: Leaves) -> Leaves:
            f = self._field(x.captures, differentiated)
            carry = self.plan.method.init(self._one_sided(f, first, x.direction), t0, y)
            self.evaluations_at_end = f.calls
            return carry

        vjp = cast(Any, torch.func.vjp(init, y0, self.differentiated(x.captures))[1])
        zeros: Leaves = tuple(torch.zeros_like(b) for b in y0)
        carry = all_contiguous(at.carry)
        pulled = vjp(tuple(torch.where(x.first, c, zero) for c, zero in zip(carry, zeros, strict=True)))
        y, captures = tree_map(lambda g: torch.where(x.first, g, 0.0), pulled)
        y = all_to_loop_layout(_add(all_contiguous(at.y), y), self.plan.column_major)
        return y, at.carry, _add(at.captures, captures)


def _add(a: Leaves, b: Leaves) -> Leaves:
    return tuple(x + y for x, y in zip(a, b, strict=True))
