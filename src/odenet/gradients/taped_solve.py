"""What every gradient by a sweep has in common: solve with a tape, and attach the sweep to what was solved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.vector_field import VectorField
from ..engine.dense_solution import Interpolation
from ..engine.integrate import Request, Solved, integrate
from ..engine.problem import Problem
from ..engine.recorders import Pieces, Record
from ..engine.tape import Entry, Keeper, Tape
from .attach import attach
from .gradient import Stats, Trajectory, refuse_random
from .state_store import KeptGraphs


@dataclass
class Taken:
    """A solve that was taken down on a tape.

    q: the problem, detached. carry: at the end, until somebody takes it. graphs: those of some steps. times_needed:
    whether ts or stops ask for a gradient. shown: leaves of each output.
    """

    q: Problem
    entries: list[Entry]
    carry: Leaves | None
    graphs: KeptGraphs | None
    captured: Leaves
    stats: Stats
    times_needed: bool
    shown: int


def taped(
    p: Problem,
    request: Request,
    keeper: Keeper | None,
    graphs: KeptGraphs | None,
    pull: Callable[[Taken, Sequence[Tensor | None]], Sequence[Tensor | None]],
    replayed: bool = True,
) -> Trajectory:
    """The trajectory of p. `pull` is the backward pass.

    replayed: steps are taken again as they were, from a state at their start.
    """
    q = p.detached()
    given = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
    if graphs is not None:
        graphs.keep_first(q, p.times_move, any(x.requires_grad for x in given))
    with torch.no_grad():
        record = Record(q)
        tape = Tape(record, keeper, graphs, p.times_move)
        solved = integrate(q, request, record, (tape,), tape.attempt)
    stats = Stats.of(solved.outcome)
    used, spare = q.f.capture()
    captured = (*used, *spare)
    values = flat(solved)
    if any(x.requires_grad for x in (*given, *captured)):
        refuse_random(p, q.f, replayed)
        end = solved.outcome.state
        # copies of what is the caller's too, and may be changed in place
        carry = tuple(x.clone() if any(x is y for y in end.y) else x for x in end.carry)
        taken = Taken(q, tape.entries, carry, graphs, captured, stats, p.times_move, len(solved.ys))
        again = partial(once_more, p, request, like=q.f)
        values = attach(partial(pull, taken), again, values, given, used, spare)
    return replace(unpacked(p, values, solved, stats), field=q.f)


def once_more(p: Problem, request: Request, inputs: Sequence[Tensor], like: VectorField | None = None) -> Leaves:
    """The outputs of a solve, from other inputs (y0, ts, stops, args), in grad mode.

    like: the field of the solve before, whose random numbers are drawn again.
    """
    n, drew = len(p.y0), like or p.f
    p = replace(
        p,
        method=p.method.smooth(),
        y0=tuple(inputs[:n]),
        ts=inputs[n],
        stops=replace(p.stops, times=inputs[n + 1]),
        f=p.f.with_args(tuple(inputs[n + 2 :])),
    )
    with drew.drawing_from(drew.start_states):
        solved = integrate(p, request.again(), Record(p))
    return flat(solved)


def flat(solved: Solved) -> Leaves:
    """What is attached of a solve: ys, y1 and, with dense, the flat pieces."""
    return (*solved.ys, *solved.y1, *(() if solved.pieces is None else solved.pieces.flat()))


def unpacked(p: Problem, values: Sequence[Tensor], solved: Solved, stats: Stats) -> Trajectory:
    """The trajectory of the outputs `flat`, attached."""
    m, n = len(solved.ys), len(p.y0)
    dense = Interpolation.of(p, None if solved.pieces is None else Pieces.from_flat(values[m + n :], n))
    return Trajectory(tuple(values[:m]), tuple(values[m : m + n]), dense, solved.outcome, stats)
