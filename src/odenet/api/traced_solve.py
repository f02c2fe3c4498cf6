"""A solve that is traced into the caller's graph: `torch.compile` or `torch.export` of a model."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch

from ..core.field_protocols import UserField
from ..core.leaves import Leaves, in_working_precision, time_dtype
from ..core.save_function import SaveFunction
from ..core.status import Status
from ..engine.loop import guesses_first_step
from ..engine.problem import Problem
from ..gradients import Adjoint, Backprop, Discrete, Forward, Gradient
from ..gradients.gradient import Stats
from ..tracing.dynamo_entry import exporting, scalar_outputs_allowed
from ..tracing.traced_adjoint import solve_traced_adjoint
from ..tracing.traced_field import TracedField, with_cloned_tensors
from ..tracing.unrolled import known_steps, solve_unrolled
from ..tracing.while_loop import TracedEnd, differentiable_steps, traced_loop, without_state
from . import state_checks
from .option_types import SolveOptions
from .options import Options
from .solution import Solution

_assert_async: Any = torch._assert_async  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def traceable(o: Options) -> bool:
    """True when a solve with these options can be traced; others break the graph and run eagerly."""
    observed = o.events or o.progress or o.callbacks is not None or o.save_steps
    if observed or o.per_sample or o.dense or not o.method.traceable:
        return False
    if isinstance(o.gradient, Discrete):
        return o.gradient.checkpoints is None and o.gradient.memory is None
    if isinstance(o.gradient, Adjoint):
        return o.gradient.callbacks is None
    return isinstance(o.gradient, (Backprop, Forward))


def solve(
    f: UserField,
    y0: Any,
    ts: Any,
    *,
    args: tuple[Any, ...] = (),
    host_ts: Sequence[float] | None = None,
    **options: Unpack[SolveOptions],
) -> Solution | None:
    """`odenet.solve` as traceable operations; None if its options do not allow that.

    Checks that need values are left out, and a failure raises no error: `ys` and `y1` are NaN from the failure on, and
    `status`, a tensor, holds its code. Counts are tensors, too. host_ts: ts as numbers if they are known: an export
    with a constant step size then has no loop.
    """
    o = Options.from_keywords(**options)
    if not traceable(o):
        return None
    _, leaves = state_checks.state(y0, False)
    user_ts = state_checks.times(ts, False, leaves[0])
    # Inductor of PyTorch 2.13 gets the gradient of times through the differentiated loop wrong; aot_eager has it right
    if user_ts.requires_grad and torch.is_grad_enabled() and not isinstance(o.gradient, Adjoint):
        return None
    if any(getattr(getattr(o.controller, k, None), "requires_grad", False) for k in ("step_ts", "jump_ts")):
        return None
    working = in_working_precision(leaves)
    rtol = state_checks.tolerance("rtol", o.rtol, y0, working)
    atol = state_checks.tolerance("atol", o.atol, y0, working)
    dtypes = tuple(x.dtype for x in leaves)
    field: Any = TracedField(with_cloned_tensors(f), y0, dtypes, time_dtype(user_ts, working), tuple(args))
    engine_ts = user_ts.to(torch.float32 if user_ts.device.type == "mps" else torch.float64)
    p = Problem.build(
        field, working, engine_ts, o.controller, method=o.method, rtol=rtol, atol=atol, max_steps=o.max_steps
    )
    p = replace(p, traced=True)
    host_ts = _numbers(ts) if host_ts is None else host_ts
    without_loop = _unrolled(p, _rounded(host_ts, user_ts.dtype)) if exporting() and host_ts is not None else None
    result = without_loop or _with_loop(p, o.gradient, f, tuple(args))
    if result is None:
        return None
    y1, ys, end = result
    save = None if o.save is None else SaveFunction(o.save, False)
    outputs = field.pack(ys) if save is None else save.pack(save.over_times(user_ts, ys, field.pack, tuple(args)))
    t1 = torch.where(end.status == int(Status.SUCCESS), user_ts[-1], end.t.detach().to(user_ts.dtype))
    return Solution(user_ts, outputs, field.pack(y1), t1, _stats(p, end), end.status)


def _numbers(ts: Any) -> Sequence[float] | None:
    """ts as floats; None for a tensor or an array."""
    plain = isinstance(ts, (list, tuple)) and all(isinstance(t, (int, float)) for t in ts)
    return [float(t) for t in ts] if plain else None


def _rounded(times: Sequence[float], dtype: torch.dtype) -> list[float]:
    """The times rounded to this dtype."""
    return [struct.unpack("f", struct.pack("f", t))[0] if dtype == torch.float32 else t for t in times]


def _unrolled(p: Problem, times: Sequence[float]) -> tuple[Leaves, Leaves, TracedEnd] | None:
    """y1, ys and the end without a loop; None unless the steps are known and few."""
    steps = known_steps(p, times)
    if steps is None:
        return None
    count = torch.full((), len(steps))
    return (*solve_unrolled(p, times, steps), TracedEnd(p.ts[-1], count * 0, count, count * 0))


def _with_loop(
    p: Problem, gradient: Gradient, f: UserField, args: tuple[Any, ...]
) -> tuple[Leaves, Leaves, TracedEnd] | None:
    """y1, ys and the end by PyTorch's loop operator; None if the graph may not read counts off tensors."""
    if not torch.is_grad_enabled() or not _requires_grad(p):
        with torch.no_grad():
            loop = traced_loop(p, True, False)
        return loop.end.nan_if_failed(loop.last.state.y), loop.ys, loop.end
    _refuse_random(p)
    if isinstance(gradient, Adjoint):
        return solve_traced_adjoint(p, gradient, f, args)
    if not scalar_outputs_allowed():
        return None
    with torch.no_grad():
        q = replace(p, y0=tuple(x.detach() for x in p.y0))
        loop = traced_loop(q if p.controller.adaptive else without_state(q), False, True)
    return (*differentiable_steps(p, loop), loop.end)


def _refuse_random(p: Problem) -> None:
    """Make the graph raise if f draws random numbers: the backward pass would evaluate f with other numbers.

    Compares two evaluations at the start, which the compiler merges into one for an f that draws none.
    """
    with torch.no_grad():
        pairs = zip(p.f(p.ts[0], p.y0), p.f(p.ts[0], p.y0), strict=True)
        same = torch.stack([((a == b) | (a != a)).all() for a, b in pairs]).all()
    _assert_async(
        same,
        "f draws random numbers (as Dropout does in training): inside torch.compile a backward pass would draw others. "
        "Draw them once, outside f, and hand them over through args, or use f.eval()",
    )


def _requires_grad(p: Problem) -> bool:
    """True when y0, ts, stop times, args or a captured tensor of f requires a gradient."""
    return any(x.requires_grad for x in (*p.y0, p.ts, p.stops.times, *p.f(p.ts[0], p.y0)))


def _stats(p: Problem, end: TracedEnd) -> Stats:
    """The counts. f is evaluated at the start, for the first step size, and in the stages of each step attempt."""
    fsal = len(p.method.init(lambda t, y: y, p.ts[0], p.y0)) > 0
    at_start, zero = fsal + guesses_first_step(p) * (2 - fsal), end.accepted * 0
    nfe = (end.accepted + end.rejected) * (p.method.num_stages - fsal) + at_start
    counts = {"nfe": nfe, "accepted": end.accepted, "rejected": end.rejected}
    return Stats(counts, njev=zero, nlu=zero, backward_nfe=zero)
