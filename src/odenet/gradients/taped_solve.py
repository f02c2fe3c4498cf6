"""The forward solve of gradients that replay steps: solve with a tape, then attach a backward pass to the outputs."""

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
from .custom_vjp import custom_vjp
from .gradient import Stats, Trajectory, refuse_random
from .state_store import StepGraphs


@dataclass
class TapedSolve:
    """A solve with its tape: the input of a backward pass.

    problem: the detached problem. steps: the accepted steps.
    carry: at the end of the solve; a backward pass that overwrites it sets it to None.
    graphs: recorded graphs of some steps. captured: captured tensors, used ones first.
    time_grads_needed: True if output times or stop times require a gradient.
    num_outputs: number of leaves in ys.
    """

    problem: Problem
    steps: list[TapeStep]
    carry: Leaves | None
    graphs: StepGraphs | None
    captured: Leaves
    stats: Stats
    time_grads_needed: bool
    num_outputs: int


def solve_with_tape(
    p: Problem,
    request: Request,
    states: StepStore | None,
    graphs: StepGraphs | None,
    backward: Callable[[TapedSolve, Sequence[Tensor | None]], Sequence[Tensor | None]],
    replayed: bool = True,
) -> Trajectory:
    """The trajectory of p, differentiable by a backward pass over the tape.

    states, graphs: stores that receive each accepted step.
    backward: maps the solve and the cotangents of its flat outputs to cotangents of (y0, ts, stop times, args, captured
        tensors).
    replayed: True if the backward pass replays steps from stored states, so random numbers are drawn again.
    """
    detached = p.detached()
    inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
    if graphs is not None:
        graphs.record_first_evaluation(detached, p.times_differentiable, any(x.requires_grad for x in inputs))
    with torch.no_grad():
        recorder = OutputRecorder(detached)
        tape = Tape(recorder, states, graphs, p.times_differentiable)
        solved = integrate(detached, request, recorder, (tape,), tape.try_step)
    stats = Stats.from_outcome(solved.outcome)
    used, reachable = detached.f.capture()
    captured = (*used, *reachable)
    values = flat_outputs(solved)
    if any(x.requires_grad for x in (*inputs, *captured)):
        refuse_random(p, detached.f, replayed)
        end = solved.outcome.state
        # clone leaves that the caller also holds and may change in place
        carry = tuple(x.clone() if any(x is y for y in end.y) else x for x in end.carry)
        taped = TapedSolve(detached, tape.steps, carry, graphs, captured, stats, p.times_differentiable, len(solved.ys))
        recompute = partial(recompute_outputs, p, request, field=detached.f)
        values = custom_vjp(partial(backward, taped), recompute, values, inputs, used, reachable)
    return replace(to_trajectory(p, values, solved, stats), field=detached.f)


def recompute_outputs(
    p: Problem, request: Request, inputs: Sequence[Tensor], field: VectorField | None = None
) -> Leaves:
    """The flat outputs of a solve from new inputs (y0, ts, stop times, args), in grad mode.

    field: the field of the first solve, whose random states are used again.
    """
    n, drawing_field = len(p.y0), field or p.f
    p = replace(
        p,
        method=p.method.twice_differentiable(),
        y0=tuple(inputs[:n]),
        ts=inputs[n],
        stops=replace(p.stops, times=inputs[n + 1]),
        f=p.f.with_args(tuple(inputs[n + 2 :])),
    )
    with drawing_field.with_random_states(drawing_field.initial_random_states):
        solved = integrate(p, request.unobserved(), OutputRecorder(p))
    return flat_outputs(solved)


def flat_outputs(solved: NumericalSolution) -> Leaves:
    """The tensors of a solution that get attached: ys, y1 and, with dense=True, the flat pieces."""
    return (*solved.ys, *solved.y1, *(() if solved.pieces is None else solved.pieces.flatten()))


def to_trajectory(p: Problem, values: Sequence[Tensor], solved: NumericalSolution, stats: Stats) -> Trajectory:
    """The trajectory of attached flat outputs (see `flat_outputs`)."""
    m, n = len(solved.ys), len(p.y0)
    dense = Interpolation.from_pieces(
        p, None if solved.pieces is None else PiecewisePolynomial.from_flat(values[m + n :], n)
    )
    return Trajectory(tuple(values[:m]), tuple(values[m : m + n]), dense, solved.outcome, stats)
