"""Runs a solve by its compiled graphs: forward over one tape after another, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..core.lanes import Number
from ..core.leaves import Leaves, version
from ..core.status import Status
from ..engine.advance import State
from ..engine.integrate import Request, Solved
from ..engine.loop import Outcome
from ..engine.problem import Problem
from ..gradients.attach import attach
from ..gradients.base import Gradient, Stats, Trajectory, direct
from ..gradients.taped import once_more, unpacked
from .autotune import refuse_slower
from .capture import FieldGraph
from .forward_graph import Packed
from .outputs import Chunk, Outputs
from .passes.column_layout import LARGE, all_arranged, all_by_rows, few
from .plan import Look, Plan, powers_of, tape_for
from .plan_cache import PLANS, captured, refuse, settings, slots_for
from .tape_pool import Shelf

KEEPING = 64  # rows of a tape that keeps products: its memory is asked for at once
KEPT_BYTES = 2**28  # of products; later steps compute theirs again


@dataclass
class Run:
    """A solve by its libraries, as far as its backward pass wants it.

    y: y0, detached, as the loop holds it. tolerances: rtol of each leaf, and then atol. keys: of the others, by which
    gradients are told apart. held: those of them that ask for a gradient, beside `inputs`. versions: of the others, at
    the solve.
    """

    p: Problem
    plan: Plan
    graph: FieldGraph
    y: Leaves
    tolerances: list[Tensor]
    others: list[Tensor]
    keys: list[int]
    inputs: Sequence[Tensor]
    held: Sequence[Tensor]
    versions: list[int]
    chunks: list[Chunk] = field(default_factory=list)

    def refuse_changed(self) -> None:
        """Raise RuntimeError where a tensor that f uses is not what it was: the steps would be others."""
        for x, before in zip(self.others, self.versions, strict=True):
            if version(x) != before:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that f uses has been modified by an inplace operation between "
                    "the solve and its backward pass: change it afterwards, or let f use a copy, x.clone()"
                )


def solve_compiled(p: Problem, how: Gradient, request: Request) -> Trajectory:
    """The trajectory of p. Raises NotCompilableError, or an error of whatever compiles, where eager solving is left."""
    refuse(p, how, request)
    graph, others = captured(p)

    def way(p: Problem, request: Request) -> Trajectory:
        return _solved(p, graph, others, request)

    refuse_slower(graph, p, how, others, way)
    return way(p, request)


def _solved(p: Problem, graph: FieldGraph, others: list[Tensor], request: Request) -> Trajectory:
    recording = not direct()
    differentiable = [recording and x.requires_grad for x in others]
    inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
    given = {id(x) for x in p.f.differentiable_args}
    held = tuple(x for x, wanted in zip(others, differentiable, strict=True) if wanted and id(x) not in given)
    attached = recording and any(x.requires_grad for x in (*inputs, *held))
    wanted = differentiable if attached else [False] * len(others)
    columns = graph.largest <= LARGE and all(few(y.shape) for y in p.y0)
    y = all_arranged([y.detach() for y in p.y0], columns)
    looks = [Look.of(x, w) for x, w in zip(others, wanted, strict=True)]
    tolerances = _tensors((*p.rtol, *p.atol), p.direction.device)
    plan = _plan(p, y, columns, looks, tolerances, request, attached)
    keys, versions = [id(x) for x in others], [version(x) for x in others]
    run = Run(p, plan, graph, y, tolerances, [x.detach() for x in others], keys, inputs, held, versions)
    with torch.no_grad():
        outcome = _forward(run, attached)
        outputs = Outputs(p, plan, run.chunks, outcome.state.y)
        ys = outputs.ys()
        pieces = outputs.pieces() if request.dense else None
    stats = Stats.of(outcome)
    solved = Solved(ys, outcome.state.y, pieces, outcome)
    values: Sequence[Tensor] = (*ys, *outcome.state.y, *(() if pieces is None else pieces.flat()))
    if attached:
        values = attach(partial(_backward, run, outputs, stats), partial(once_more, p, request), values, inputs, held)
    return unpacked(p, values, solved, stats)


def _plan(
    p: Problem, y: Leaves, columns: bool, others: Sequence[Look], tolerances: Sequence[Tensor], request: Request,
    attached: bool,
) -> Plan:  # fmt: skip
    inner = p.ts.shape[-1] > 2 or request.dense
    dense = (inner and not p.stops.rule.every_output) or request.dense
    slots = slots_for(p.y0, powers_of(p.method) if dense else 0) if attached or inner else 0
    keeps = attached and not columns  # small products are computed again in no time
    stops, (rtol, atol) = p.stops.times.shape[-1], (tolerances[: len(y)], tolerances[len(y) :])
    return Plan(
        p.method, p.controller, settings(p), p.batched, p.f.dtypes, p.f.time_dtype,
        y=tuple(map(Look.of, y)), others=tuple(others),
        rtol=tuple(map(Look.of, rtol)), atol=tuple(map(Look.of, atol)),
        stops=1 << (stops - 1).bit_length(), slots=min(slots, KEEPING) if keeps else slots, keeps=keeps,
        starts=inner, dense=dense, columns=columns,
    )  # fmt: skip


def _tensors(tolerances: Sequence[float | Tensor], device: torch.device) -> list[Tensor]:
    return [x if isinstance(x, Tensor) else _constant(float(x), device) for x in tolerances]


@lru_cache(maxsize=256, typed=True)  # 1, 1.0 and True are three tensors
def _constant(value: bool | int | float, device: torch.device, shape: tuple[int, ...] = ()) -> Tensor:
    """A number for a library to read; making a tensor takes longer than many an operation on it."""
    with torch.inference_mode(False):
        # filled, as copying it from the host would wait for the device
        dtype = torch.float64 if isinstance(value, float) else torch.int64 if type(value) is int else torch.bool
        return torch.full(shape, value, dtype=dtype, device=device)


def _forward(run: Run, and_back: bool) -> Outcome:
    p, plan, device = run.p, run.plan, run.plan.device
    library, left = PLANS.forward(plan, run.graph, and_back), KEPT_BYTES
    if plan.keeps and PLANS.backward(plan, run.graph).kept != library.kept:
        left = 0  # both directions must see the same products
    ts, stops = p.ts.detach(), p.stops.times.detach()
    if plan.stops > stops.shape[-1]:  # the last time again and again
        stops = torch.cat([stops, stops[..., -1:].expand(*stops.shape[:-1], plan.stops - stops.shape[-1])], -1)
    ends = ts.contiguous() if ts.shape[-1] == 2 else torch.stack([ts[..., 0], ts[..., -1]], -1)
    y = run.y
    rest = [ends, stops.contiguous(), p.direction, *run.tolerances, *y]
    numbers = _constant(0.0, device, (2 + len(p.controller.memory(1.0)), *plan.lane))
    leaves = (*y, *y) if plan.carries else y
    packed = Packed(_constant(True, device), numbers, _constant(0, device, (6, *plan.lane)), leaves)
    fresh, most = _constant(True, device), _constant(p.max_steps, device)
    while True:
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in library.kept)
        room = min(plan.slots, left // size if size else plan.slots)
        if plan.keeps and not room:
            plan = replace(plan, keeps=False)
            library = PLANS.forward(plan, run.graph, and_back)
            room = plan.slots
        tape, shelf = tape_for(plan, y), Shelf(plan.slots, library.kept, device)
        given = [fresh, most, _constant(room, device), *packed[:3], *packed.leaves, *rest, *run.others]
        out = library.run([*given, *tape, *shelf.tensors], None)
        packed = Packed.from_flat(out)
        told = (packed.counts[:, 0] if p.batched else packed.counts).tolist()
        rows, status = told[0], told[4]
        if plan.slots and rows:
            run.chunks.append(Chunk(plan, rows, tape, shelf))
            left -= rows * size
        if status != Status.RUNNING and not (p.batched and bool((packed.counts[4] == Status.RUNNING).any())):
            return _outcome(p, packed, told, library.calls)
        packed.counts[0] = 0  # of the next tape
        fresh = _constant(False, device)


def _outcome(p: Problem, packed: Packed, counts: list[int], calls: tuple[int, int]) -> Outcome:
    """counts: those of `packed`, of a joint solve. calls: evaluations at the start and in each attempt."""
    if p.batched:
        s, attempts, accepted = packed.counted(len(p.y0))
        nfe = torch.where(attempts > 0, calls[0] + calls[1] * attempts, 0)
        return Outcome(s, nfe, accepted, attempts - accepted)
    (_, attempts, accepted, stop, status, _), (t, h, *memory) = counts, packed.numbers.tolist()
    n, leaves = len(p.y0), packed.leaves
    y, carry = all_by_rows(leaves[:n]), leaves[n:]
    s = State(t, packed.numbers[0], h, y, carry, tuple(memory), stop, False, status)
    return Outcome(s, (calls[0] + calls[1] * attempts) * (attempts > 0), accepted, attempts - accepted)


def _backward(run: Run, outputs: Outputs, stats: Stats, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    run.refuse_changed()
    plan, n = run.plan, len(run.p.y0)
    bars = outputs.bars(cotangents)
    y_bar: Sequence[Tensor] = all_arranged(bars.end, plan.columns)
    carry_bar: Sequence[Tensor] = [torch.zeros_like(b) for b in y_bar] if plan.carries else []
    found: dict[int, Tensor] = {}
    needed = [key for key, look in zip(run.keys, plan.others, strict=True) if look.needed]
    count: Number = 0
    outside = 0
    used = 2 * n if carry_bar else n
    for k in range(len(run.chunks) - 1, -1, -1):
        chunk, extra = run.chunks[k], bars.rows[k] if bars.rows else []
        library = PLANS.backward(chunk.plan, run.graph)
        tape = chunk.tape[: used + 2 + plan.batched]
        taken = tape[-1][: chunk.rows].sum(0) if plan.batched else chunk.rows
        tape += chunk.shelf.tensors
        counts = [_constant(chunk.rows, plan.device), _constant(k == 0, plan.device)]
        out = library.run([*counts, *y_bar, *carry_bar, *extra, *run.others, *tape], chunk.rows)
        y_bar, carry_bar, totals = out[:n], out[n:used], out[used:]
        for key, total in zip(needed, totals, strict=True):
            found[key] = found[key] + total if key in found else total
        count = count + library.calls[1] * taken
        outside = library.calls[0]
    stats["backward_nfe"] = count + outside * (count > 0)
    y_bar = [a + b for a, b in zip(y_bar, bars.start, strict=True)] if bars.start else y_bar
    rest = [found.get(id(x)) for x in (*run.inputs[n + 2 :], *run.held)]
    return [*y_bar, None, None, *rest]
