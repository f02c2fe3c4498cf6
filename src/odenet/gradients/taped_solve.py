"""What every gradient by a sweep has in common: solve with a tape, and attach the sweep to what was solved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.vector_field import VectorField
from ..engine.dense_recorder import PiecewisePolynomial
from ..engine.dense_solution import Interpolation
from ..engine.integrate import NumericalSolution, Request, integrate
from ..engine.output_recorder import OutputRecorder
from ..engine.problem import Problem
from ..engine.tape import StepStore, Tape, TapeStep
from .attach import attach
from .gradient import Stats, Trajectory, refuse_random
from .state_store import StepGraphs


@dataclass
class TapedSolve:
    """A solve that was taken down on a tape.

    q: the problem, detached. carry: at the end, until somebody takes it. graphs: those of some steps. times_needed:
    whether ts or stops ask for a gradient. shown: leaves of each output.
    """

    q: Problem
    entries: list[TapeStep]
    carry: Leaves | None
    graphs: StepGraphs | None
    captured: Leaves
    stats: Stats
    times_needed: bool
    shown: int


def solve_with_tape(
    p: Problem,
    request: Request,
    keeper: StepStore | None,
    graphs: StepGraphs | None,
    pull: Callable[[TapedSolve, Sequence[Tensor | None]], Sequence[Tensor | None]],
    replayed: bool = True,
) -> Trajectory:
    """The trajectory of p. `pull` is the backward pass.

    replayed: steps are taken again as they were, from a state at their start.
    """
    q = p.detached()
    given = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
    if graphs is not None:
        graphs.keep_first(q, p.times_differentiable, any(x.requires_grad for x in given))
    with torch.no_grad():
        record = OutputRecorder(q)
        tape = Tape(record, keeper, graphs, p.times_differentiable)
        solved = integrate(q, request, record, (tape,), tape.try_step)
    stats = Stats.of(solved.outcome)
    used, spare = q.f.capture()
    captured = (*used, *spare)
    values = flat(solved)
    if any(x.requires_grad for x in (*given, *captured)):
        refuse_random(p, q.f, replayed)
        end = solved.outcome.state
        # copies of what is the caller's too, and may be changed in place
        carry = tuple(x.clone() if any(x is y for y in end.y) else x for x in end.carry)
        taken = TapedSolve(q, tape.steps, carry, graphs, captured, stats, p.times_differentiable, len(solved.ys))
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
        method=p.method.twice_differentiable(),
        y0=tuple(inputs[:n]),
        ts=inputs[n],
        stops=replace(p.stops, times=inputs[n + 1]),
        f=p.f.with_args(tuple(inputs[n + 2 :])),
    )
    with drew.with_random_states(drew.initial_random_states):
        solved = integrate(p, request.unobserved(), OutputRecorder(p))
    return flat(solved)


def flat(solved: NumericalSolution) -> Leaves:
    """What is attached of a solve: ys, y1 and, with dense, the flat pieces."""
    return (*solved.ys, *solved.y1, *(() if solved.pieces is None else solved.pieces.flatten()))


def unpacked(p: Problem, values: Sequence[Tensor], solved: NumericalSolution, stats: Stats) -> Trajectory:
    """The trajectory of the outputs `flat`, attached."""
    m, n = len(solved.ys), len(p.y0)
    dense = Interpolation.from_pieces(
        p, None if solved.pieces is None else PiecewisePolynomial.from_flat(values[m + n :], n)
    )
    return Trajectory(tuple(values[:m]), tuple(values[m : m + n]), dense, solved.outcome, stats)
