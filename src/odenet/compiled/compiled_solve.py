"""Runs a solve by its libraries: forward over one tape after another, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..core.leaves import Leaves, version
from ..core.scalars import ScalarLike
from ..core.status import Status
from ..engine.integrate import NumericalSolution, Request
from ..engine.loop import Outcome
from ..engine.problem import Problem
from ..engine.step_attempt import State
from ..gradients.custom_vjp import custom_vjp
from ..gradients.gradient import Gradient, Stats, Trajectory, gradient_bypassed
from ..gradients.taped_solve import recompute_outputs, to_trajectory
from .autotune import Wanted, refuse_if_slower
from .field_graph import FieldGraph
from .forward_graph import LoopCarry, count_rows
from .outputs import Chunk, Outputs
from .passes.column_layout import LARGE_PRODUCT, all_contiguous, all_to_loop_layout, is_narrow
from .plan import Plan, TensorSpec, coefficient_count, tape_tensors
from .plan_cache import PLAN_CACHE, capture_field, refuse_unsupported, solver_settings, tape_rows
from .tape_pool import TapeBuffer

SAVING_ROWS = 64  # of a tape with saved products, whose memory is allocated at once
SAVED_BYTES = 2**28  # of products; the backward pass computes those of later steps again


@dataclass
class CompiledRun:
    """What the backward pass of a solve needs.

    y: y0, detached, in the layout of the loop. tolerances: rtol of each leaf, then atol. keys: identities of the
    captures, by which their gradients are found. held: captures that need a gradient and are not in `inputs`. versions:
    of the captures at the time of the solve.
    """

    p: Problem
    plan: Plan
    graph: FieldGraph
    y: Leaves
    tolerances: list[Tensor]
    captures: list[Tensor]
    keys: list[int]
    inputs: Sequence[Tensor]
    held: Sequence[Tensor]
    versions: list[int]
    chunks: list[Chunk] = field(default_factory=list[Chunk])

    def refuse_changed(self) -> None:
        """Raise RuntimeError if a tensor that f uses was modified since: the steps would be different."""
        for x, before in zip(self.captures, self.versions, strict=True):
            if version(x) != before:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that f uses has been modified by an inplace operation between "
                    "the solve and its backward pass: change it afterwards, or let f use a copy, x.clone()"
                )


def solve_compiled(p: Problem, how: Gradient, request: Request) -> Trajectory:
    """The trajectory of p. Raises NotCompilableError, or an error of a compiler, if the solve has to be eager."""
    refuse_unsupported(p, how, request)
    graph, captures = capture_field(p)

    def solve(p: Problem, request: Request) -> Trajectory:
        return _solve(p, graph, captures, request)

    refuse_if_slower(graph, p, how, captures, Wanted(_is_differentiated(p, captures), request.dense), solve)
    return solve(p, request)


def _is_differentiated(p: Problem, captures: Sequence[Tensor]) -> bool:
    """Whether something that the solution depends on asks for a gradient."""
    return not gradient_bypassed() and any(x.requires_grad for x in (*_inputs(p), *captures))


def _inputs(p: Problem) -> Sequence[Tensor]:
    return (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)


def _solve(p: Problem, graph: FieldGraph, captures: list[Tensor], request: Request) -> Trajectory:
    recording = not gradient_bypassed()
    differentiable = [recording and x.requires_grad for x in captures]
    inputs = _inputs(p)
    given = {id(x) for x in p.f.differentiable_args}
    held = tuple(x for x, wanted in zip(captures, differentiable, strict=True) if wanted and id(x) not in given)
    attached = _is_differentiated(p, captures)
    wanted = differentiable if attached else [False] * len(captures)
    column_major = graph.largest_product <= LARGE_PRODUCT and all(is_narrow(y.shape) for y in p.y0)
    y = all_to_loop_layout([y.detach() for y in p.y0], column_major)
    specs = [TensorSpec.of(x, w) for x, w in zip(captures, wanted, strict=True)]
    tolerances = _tensors((*p.rtol, *p.atol), p.direction.device)
    plan = _plan(p, y, column_major, specs, tolerances, request, attached)
    keys, versions = [id(x) for x in captures], [version(x) for x in captures]
    run = CompiledRun(p, plan, graph, y, tolerances, [x.detach() for x in captures], keys, inputs, held, versions)
    with torch.no_grad():
        outcome = _forward(run, attached)
        outputs = Outputs(p, plan, run.chunks, outcome.state.y)
        ys = outputs.ys()
        pieces = outputs.pieces() if request.dense else None
    stats = Stats.from_outcome(outcome)
    solved = NumericalSolution(ys, outcome.state.y, pieces, outcome)
    values: Sequence[Tensor] = (*ys, *outcome.state.y, *(() if pieces is None else pieces.flatten()))
    if attached:
        values = custom_vjp(
            partial(_backward, run, outputs, stats), partial(recompute_outputs, p, request), values, inputs, held
        )
    return to_trajectory(p, values, solved, stats)


def _plan(
    p: Problem, y: Leaves, column_major: bool, captures: Sequence[TensorSpec], tolerances: Sequence[Tensor],
    request: Request, attached: bool,
) -> Plan:  # fmt: skip
    inner = p.ts.shape[-1] > 2 or request.dense
    dense = (inner and not p.stops.rule.every_output) or request.dense
    rows = tape_rows(p.y0, coefficient_count(p.method) if dense else 0) if attached or inner else 0
    saves_matmuls = attached and not column_major  # small products are computed again in no time
    stops, (rtol, atol) = p.stops.times.shape[-1], (tolerances[: len(y)], tolerances[len(y) :])
    return Plan(
        p.method, p.controller, solver_settings(p), p.batched, p.f.dtypes, p.f.time_dtype,
        y=tuple(map(TensorSpec.of, y)), captures=tuple(captures),
        rtol=tuple(map(TensorSpec.of, rtol)), atol=tuple(map(TensorSpec.of, atol)),
        stop_count=1 << (stops - 1).bit_length(), jumps=p.stops.jumps is not None,
        rows=min(rows, SAVING_ROWS) if saves_matmuls else rows,
        saves_matmuls=saves_matmuls, step_starts=inner, dense=dense, column_major=column_major,
    )  # fmt: skip


def _tensors(tolerances: Sequence[float | Tensor], device: torch.device) -> list[Tensor]:
    return [x if isinstance(x, Tensor) else _constant(float(x), device) for x in tolerances]


@lru_cache(maxsize=256, typed=True)  # 1, 1.0 and True are three tensors
def _constant(value: bool | int | float, device: torch.device, shape: tuple[int, ...] = ()) -> Tensor:
    """A number as a tensor; making one takes longer than many an operation on it."""
    with torch.inference_mode(False):
        # `full`, as a copy from the host would wait for the device
        dtype = torch.float64 if isinstance(value, float) else torch.int64 if type(value) is int else torch.bool
        return torch.full(shape, value, dtype=dtype, device=device)


def _forward(run: CompiledRun, and_back: bool) -> Outcome:
    p, plan, device = run.p, run.plan, run.plan.device
    library, left = PLAN_CACHE.forward(plan, run.graph, and_back), SAVED_BYTES
    if plan.saves_matmuls and PLAN_CACHE.backward(plan, run.graph).saved_rows != library.saved_rows:
        left = 0  # the two directions see different operations
    ts, stops = p.ts.detach(), p.stops.times.detach()
    all_stops = [x if x.shape[-1] == plan.stop_count else _padded(x, plan.stop_count) for x in (stops, *_jumps(p))]
    ends = ts.contiguous() if ts.shape[-1] == 2 else torch.stack([ts[..., 0], ts[..., -1]], -1)
    y = run.y
    rest = [ends, *(x.contiguous() for x in all_stops), p.direction, *run.tolerances, *y]
    numbers = _constant(0.0, device, (2 + len(p.controller.init_state(1.0)), *plan.batch_shape))
    leaves = (*y, *y) if plan.has_carry else y
    state = LoopCarry(
        _constant(True, device), numbers, _constant(0, device, (count_rows(plan), *plan.batch_shape)), leaves
    )
    fresh, max_steps = _constant(True, device), _constant(p.max_steps, device)
    while True:
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in library.saved_rows)
        limit = min(plan.rows, left // size if size else plan.rows)
        if plan.saves_matmuls and not limit:
            plan = replace(plan, saves_matmuls=False)
            library = PLAN_CACHE.forward(plan, run.graph, and_back)
            limit = plan.rows
        tape, saved = tape_tensors(plan, y), TapeBuffer(plan.rows, library.saved_rows, device)
        inputs = [fresh, max_steps, _constant(limit, device), *state[:3], *state.leaves, *rest, *run.captures]
        state = LoopCarry.from_flat(library.run([*inputs, *tape, *saved.tensors], None))
        counts: list[int] = (state.counts[:, 0] if p.batched else state.counts).tolist()
        rows, status = counts[0], counts[4]
        if plan.rows and rows:
            run.chunks.append(Chunk(plan, rows, tape, saved))
            left -= rows * size
        if status != Status.RUNNING and not (p.batched and bool((state.counts[4] == Status.RUNNING).any())):
            return _outcome(p, plan, state, counts, library.evaluations)
        state.counts[0] = 0  # rows in use of the next tape
        fresh = _constant(False, device)


def _padded(stops: Tensor, count: int) -> Tensor:
    """With the last one again and again, up to `count` of them."""
    return torch.cat([stops, stops[..., -1:].expand(*stops.shape[:-1], count - stops.shape[-1])], -1)


def _jumps(p: Problem) -> Leaves:
    return () if p.stops.jumps is None else (p.stops.jumps,)


def _outcome(p: Problem, plan: Plan, at: LoopCarry, counts: list[int], evaluations: tuple[int, int]) -> Outcome:
    """counts: `at.counts` of a joint solve. evaluations: at the start, and in each attempt."""
    each = evaluations[1] - plan.restarts
    if p.batched:
        s, attempts, accepted = at.unpack(len(p.y0))
        restarts = at.counts[7] if plan.restarts else 0
        nfe = torch.where(attempts > 0, evaluations[0] + each * attempts + restarts, 0)
        return Outcome(s, nfe, accepted, attempts - accepted)
    (_, attempts, accepted, stop, status, _, *jumps), (t, h, *controller_state) = counts, at.numbers.tolist()
    restarts = jumps[1] if plan.restarts else 0
    n, leaves = len(p.y0), at.leaves
    y, carry = all_contiguous(leaves[:n]), leaves[n:]
    s = State(t, at.numbers[0], h, y, carry, tuple(controller_state), stop, False, status, (), False)
    nfe = (evaluations[0] + each * attempts + restarts) * (attempts > 0)
    return Outcome(s, nfe, accepted, attempts - accepted)


def _backward(
    run: CompiledRun, outputs: Outputs, stats: Stats, cotangents: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    run.refuse_changed()
    plan, n = run.plan, len(run.p.y0)
    given = outputs.tape_cotangents(cotangents)
    y: Sequence[Tensor] = all_to_loop_layout(given.end, plan.column_major)
    carry: Sequence[Tensor] = [torch.zeros_like(c) for c in y] if plan.has_carry else []
    found: dict[int, Tensor] = {}
    needed = [key for key, spec in zip(run.keys, plan.captures, strict=True) if spec.needs_grad]
    count: ScalarLike = 0
    evaluations_at_start = 0
    carried = 2 * n if carry else n
    for k in range(len(run.chunks) - 1, -1, -1):
        chunk, by_row = run.chunks[k], given.rows[k] if given.rows else []
        library = PLAN_CACHE.backward(chunk.plan, run.graph)
        tape = chunk.tape[: carried + 2 + plan.flag_count]
        accepted = tape[carried + 2][: chunk.rows].sum(0) if plan.batched else chunk.rows
        restarts = tape[-1][: chunk.rows].sum(0) if plan.restarts else 0
        tape += chunk.saved.tensors
        counts = [_constant(chunk.rows, plan.device), _constant(k == 0, plan.device)]
        counts += [run.p.direction] if plan.jumps else []
        out = library.run([*counts, *y, *carry, *by_row, *run.captures, *tape], chunk.rows)
        y, carry, totals = out[:n], out[n:carried], out[carried:]
        for key, total in zip(needed, totals, strict=True):
            found[key] = found[key] + total if key in found else total
        count = count + (library.evaluations[1] - plan.restarts) * accepted + restarts
        evaluations_at_start = library.evaluations[0]
    stats["backward_nfe"] = count + evaluations_at_start * (count > 0)
    y = [a + b for a, b in zip(y, given.start, strict=True)] if given.start else y
    rest = [found.get(id(x)) for x in (*run.inputs[n + 2 :], *run.held)]
    return [*y, None, None, *rest]
