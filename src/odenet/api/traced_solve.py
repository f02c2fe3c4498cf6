"""A solve inside a graph that the caller records: `torch.compile` of a model, `torch.export`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

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
from . import checks
from .options import Options
from .solution import Solution


def traceable(o: Options) -> bool:
    """Whether a solve with these options can be recorded; others break the graph and run between its parts."""
    watched = o.events or o.progress or o.callbacks is not None or o.save_steps
    if watched or o.per_sample or o.dense or not o.method.traceable:
        return False
    if isinstance(o.gradient, Discrete):
        return o.gradient.checkpoints is None and o.gradient.memory is None
    if isinstance(o.gradient, Adjoint):
        return o.gradient.callbacks is None
    return isinstance(o.gradient, (Backprop, Forward))


def solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    *,
    args: tuple[Any, ...] = (),
    host_ts: Sequence[float] | None = None,
    **options: Any,
) -> Solution | None:
    """`odenet.solve` as operations alone; None where its options do not allow that.

    What needs a value is not checked, and a failure is no error: `ys` and `y1` are NaN from there on, and `status`, a
    tensor, says why. Counts are tensors too. host_ts: ts as numbers, where they are known; an export with steps of
    constant size then has no loop.
    """
    o = Options.of(**options)
    if not traceable(o):
        return None
    _, leaves = checks.state(y0, False)
    given_ts = checks.times(ts, False, leaves[0])
    # Inductor of PyTorch 2.13 gets the gradient of times wrong through the differentiated loop (aot_eager has it right)
    if given_ts.requires_grad and torch.is_grad_enabled() and not isinstance(o.gradient, Adjoint):
        return None
    if any(getattr(getattr(o.controller, k, None), "requires_grad", False) for k in ("step_ts", "jump_ts")):
        return None
    working = in_working_precision(leaves)
    relative = checks.tolerance("rtol", o.rtol, y0, working)
    absolute = checks.tolerance("atol", o.atol, y0, working)
    dtypes = tuple(x.dtype for x in leaves)
    field: Any = TracedField(with_cloned_tensors(f), y0, dtypes, time_dtype(given_ts, working), tuple(args))
    precise = given_ts.to(torch.float32 if given_ts.device.type == "mps" else torch.float64)
    limits = {"rtol": relative, "atol": absolute, "max_steps": o.max_steps}
    p: Any = replace(Problem.build(field, working, precise, o.controller, method=o.method, **limits), traced=True)
    host_ts = _numbers(ts) if host_ts is None else host_ts
    written_out = _unrolled(p, _rounded(host_ts, given_ts.dtype)) if exporting() and host_ts is not None else None
    found = written_out or _run(p, o.gradient, f, tuple(args))
    if found is None:
        return None
    y1, ys, end = found
    kept = None if o.save is None else SaveFunction(o.save, False)
    shown = field.pack(ys) if kept is None else kept.pack(kept.over_times(given_ts, ys, field.pack, tuple(args)))
    t1 = torch.where(end.status == int(Status.SUCCESS), given_ts[-1], end.t.detach().to(given_ts.dtype))
    return Solution(given_ts, shown, field.pack(y1), t1, _stats(p, end), end.status)


def _numbers(ts: Any) -> Sequence[float] | None:
    plain = isinstance(ts, (list, tuple)) and all(isinstance(t, (int, float)) for t in ts)
    return [float(t) for t in ts] if plain else None


def _rounded(times: Sequence[float], dtype: torch.dtype) -> list[float]:
    """The numbers that a tensor of this dtype would hold."""
    return [struct.unpack("f", struct.pack("f", t))[0] if dtype == torch.float32 else t for t in times]


def _unrolled(p: Problem, times: Sequence[float]) -> tuple[Leaves, Leaves, TracedEnd] | None:
    """y1, ys and the end, where the steps are known and few."""
    steps = known_steps(p, times)
    if steps is None:
        return None
    count = torch.full((), len(steps))
    return (*solve_unrolled(p, times, steps), TracedEnd(p.ts[-1], count * 0, count, count * 0))


def _run(
    p: Any, how: Gradient, f: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Leaves, Leaves, TracedEnd] | None:
    if not torch.is_grad_enabled() or not _asks(p):
        with torch.no_grad():
            found = traced_loop(p, True, False)
        return found.end.nan_if_failed(found.last.state.y), found.ys, found.end
    _refuse_random(p)
    if isinstance(how, Adjoint):
        return solve_traced_adjoint(p, how, f, args)
    if not scalar_outputs_allowed():
        return None
    with torch.no_grad():
        q = replace(p, y0=tuple(x.detach() for x in p.y0))
        found = traced_loop(q if p.controller.adaptive else without_state(q), False, True)
    return (*differentiable_steps(p, found), found.end)


def _refuse_random(p: Any) -> None:
    """Raise, when the graph runs, where f draws random numbers: the steps of a backward pass would draw others.

    Two evaluations at the start are compared. Of an f that draws none the compiler makes one.
    """
    with torch.no_grad():
        pairs = zip(p.f(p.ts[0], p.y0), p.f(p.ts[0], p.y0), strict=True)
        same = torch.stack([((a == b) | (a != a)).all() for a, b in pairs]).all()
    torch._assert_async(  # pyright: ignore[reportPrivateImportUsage]
        same,
        "f draws random numbers (as Dropout does in training): inside torch.compile a backward pass would draw others. "
        "Draw them once, outside f, and hand them over through args, or use f.eval()",
    )


def _asks(p: Any) -> bool:
    """Whether anything that the solution depends on asks for a gradient; what f closes over too."""
    return any(x.requires_grad for x in (*p.y0, p.ts, p.stops.times, *p.f(p.ts[0], p.y0)))


def _stats(p: Problem, end: TracedEnd) -> Stats:
    """The counts; evaluations are those of the start, of the guess of the first step, and of the attempts."""
    fsal = len(p.method.init(lambda t, y: y, p.ts[0], p.y0)) > 0
    once, zero = fsal + guesses_first_step(p) * (2 - fsal), end.accepted * 0
    nfe = (end.accepted + end.rejected) * (p.method.num_stages - fsal) + once
    counts = {"nfe": nfe, "accepted": end.accepted, "rejected": end.rejected}
    return Stats(counts, njev=zero, nlu=zero, backward_nfe=zero)
