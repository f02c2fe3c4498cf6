"""Times, counts and errors of every contender on one field."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import odenet

from ..libraries.contender import Call, Contender
from ..libraries.contenders import EAGER
from ..libraries.problems import Problem
from ..shared.errors import value_or_error
from ..shared.timing import interleave
from .peer_rows import EvaluationCost, Row, Times, mean_count

LONGEST = 25.0  # seconds of the turns of one kind on one field
FINER = 1e-3  # the tolerance of the reference in units of the field's
F, VJP = "one f", "one f and its VJP"


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return y at the output times and the flat gradient, in float64, with errors far below the tolerance."""
    fine, field = problem.double(), problem.field
    # order 8 does not pay where f has kinks
    method, tolerance = "dopri5" if field.kind == "conv" else "dopri8", field.tolerance * FINER
    how: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance, "max_steps": 100_000}
    sol = odenet.solve(fine.f, fine.y0, fine.ts.tolist(), args=fine.args, per_sample=field.per_sample, **how)
    ys = sol.ys[:, 1:].transpose(0, 1) if field.per_sample else sol.ys[1:]
    gradients = torch.autograd.grad(ys.square().sum(), fine.inputs)
    return ys.detach().cpu(), torch.cat([g.flatten() for g in gradients]).cpu()


def relative_error(mine: Tensor, exact: Tensor) -> float:
    mine, exact = mine.detach().cpu().double(), exact.double()
    return float((mine - exact).norm() / exact.norm())


def _evaluations(problem: Problem) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the eager evaluation of f at y0, and that of f and its vector-Jacobian product."""
    y, inputs, t = problem.y0, problem.inputs, problem.ts[0]
    if problem.field.per_sample:
        t = t.expand(len(y))
    cotangent = torch.ones_like(y)

    def wait() -> None:
        if y.is_cuda:
            torch.cuda.synchronize()

    def f() -> None:
        with torch.no_grad():
            problem.f(t, y, *problem.args)
        wait()

    def vjp() -> None:
        torch.autograd.grad(problem.f(t, y, *problem.args), inputs, cotangent, allow_unused=True)
        wait()

    return f, vjp


@dataclass
class _Runnable:
    """The calls of a contender that ran once, with its row, its gradient and its notes."""

    row: Row
    forward: Call | None = None
    train: Call | None = None
    gradient: Tensor | None = None
    notes: list[str] = field(default_factory=list)


def _first_calls(problem: Problem, contender: Contender, exact: tuple[Tensor, Tensor] | None) -> _Runnable:
    """Return the contender after one solve and one training step."""
    found = _Runnable(Row(problem.field.name, contender.label))
    solver, note = value_or_error(lambda: contender.start(problem))
    found.notes.append(note or (solver.note if solver else ""))
    if solver is None:
        return found
    output, note = value_or_error(solver.forward)
    found.notes.append(note)
    if output is None:
        return found
    found.forward = solver.forward
    nfe, accepted = (mean_count(output.stats[n]) if n in output.stats else None for n in ("nfe", "accepted"))
    error = relative_error(output.ys(), exact[0]) if exact else None
    found.row = replace(found.row, nfe=nfe, accepted=accepted, y_error=error)
    if solver.train:
        output, note = value_or_error(solver.train)
        found.notes.append(f"training step: {note}" if note else "")
        if output is not None:
            found.train, found.gradient = solver.train, output.flat_gradient()
    return found


def _times(seconds: list[float] | None, cost: float | None) -> Times | None:
    if not seconds:
        return None
    median = statistics.median(seconds)
    return Times(median, min(seconds), max(seconds), median / cost if cost else None)


def compare(problem: Problem, contenders: Sequence[Contender], turns: int) -> tuple[list[Row], EvaluationCost | None]:
    """Return a row for each contender, and the cost of the evaluations by the counts of the eager one of odenet.

    Forward solves take turns with f, training steps with f and its vector-Jacobian product.
    """
    exact, missing = value_or_error(lambda: reference(problem))
    found = {c.label: _first_calls(problem, c, exact) for c in contenders}
    f, vjp = _evaluations(problem)
    forward = {F: f} | {label: one.forward for label, one in found.items() if one.forward}
    train = {VJP: vjp} | {label: one.train for label, one in found.items() if one.train}
    how = {"shortest": 0.0 if turns < 3 else 0.2, "longest": LONGEST}
    forward_seconds = interleave(forward, turns, title=f"{problem.field.name}, forward", **how)
    train_seconds = interleave(train, turns, title=f"{problem.field.name}, training step", **how)
    cost, eager = None, found.get(EAGER)
    if eager and eager.row.nfe is not None and eager.row.accepted is not None:
        medians = statistics.median(forward_seconds[F]), statistics.median(train_seconds[VJP])
        cost = EvaluationCost.of(*medians, eager.row.nfe, eager.row.accepted)
    base, rows = eager.gradient if eager else None, []
    for label, one in found.items():
        mine = one.gradient
        notes = [*one.notes, f"reference: {missing}" if missing else ""]
        rows.append(
            replace(
                one.row,
                forward=_times(forward_seconds.get(label), cost and cost.forward),
                train=_times(train_seconds.get(label), cost and cost.train),
                gradient_error=relative_error(mine, exact[1]) if mine is not None and exact else None,
                difference=None if mine is None or base is None or label == EAGER else relative_error(mine, base),
                note="; ".join(dict.fromkeys(filter(None, notes))),
            )
        )
    return rows, cost
