"""Times, counts and errors of every contender on one field."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import odenet

from ..fields import Field, Problem, build
from ..passes import Call, Pass
from ..results import Tell, attempt
from ..timing import interleave
from . import contenders, floor
from .floor import Floor, mean
from .odenet_side import EAGER
from .rows import Row, Times
from .runs import Contender

LONGEST = 25.0  # seconds of the turns of one kind on one field
FINER = 1e-3  # the reference's tolerance, in units of the field's


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """y at the output times, and the gradient, flat: in float64, far below the tolerance."""
    fine = problem.double()
    field = problem.field
    # an order of 8 does not pay where f has kinks
    method = "dopri5" if field.kind == "conv" else "dopri8"
    tolerance = field.tolerance * FINER
    sol = odenet.solve(
        fine.f,
        fine.y0,
        fine.ts.tolist(),
        args=fine.args,
        method=method,
        rtol=tolerance,
        atol=tolerance,
        per_sample=field.per_sample,
        max_steps=100_000,
    )
    ys = sol.ys[:, 1:].transpose(0, 1) if field.per_sample else sol.ys[1:]
    grads = torch.autograd.grad(ys.square().sum(), fine.inputs)
    return ys.detach().cpu(), torch.cat([g.flatten() for g in grads]).cpu()


def relative(mine: Tensor, exact: Tensor) -> float:
    mine, exact = mine.detach().cpu().double(), exact.double()
    return float((mine - exact).norm() / exact.norm())


def _first(call: Call, label: str, notes: dict[str, list[str]], what: str) -> Pass | None:
    done, note = attempt(call)
    if note:
        notes[label].append(f"{what}{note}")
    return done


def _count(done: Pass, name: str) -> float | None:
    return mean(done.stats[name]) if name in done.stats else None


def measure(field: Field, seed: int, device: str, turns: int, tell: Tell) -> tuple[list[Row], Floor | None]:
    """One row a contender, and the floor from the eager contender's counts."""
    problem = build(field, seed, device)
    return measure_problem(problem, contenders.of(field), turns, tell)


def measure_problem(
    problem: Problem, those: Sequence[Contender], turns: int, tell: Tell
) -> tuple[list[Row], Floor | None]:
    exact, missing = attempt(lambda: reference(problem))
    notes: dict[str, list[str]] = {c.label: [] for c in those}
    solves: dict[str, Call] = {}
    steps: dict[str, Call] = {}
    rows = {c.label: Row(problem.field.name, c.label) for c in those}
    gradients: dict[str, Tensor] = {}
    for contender in those:
        label = contender.label
        runs, note = attempt(lambda c=contender: c.start(problem))
        if runs is None:
            notes[label].append(note)
            continue
        notes[label] += [runs.note] * bool(runs.note)
        done = _first(runs.forward, label, notes, "")
        if done is None:
            continue
        solves[label] = runs.forward
        rows[label] = _accuracy(rows[label], done, exact)
        step = _first(runs.train, label, notes, "training step: ") if runs.train else None
        if step is not None and runs.train:
            steps[label], gradients[label] = runs.train, step.flat()
    lowest, forward, train = _time(problem, rows, solves, steps, turns, tell)
    for label, row in rows.items():
        mine = gradients.get(label)
        rows[label] = replace(
            row,
            forward=_times(forward.get(label), lowest and lowest.forward),
            train=_times(train.get(label), lowest and lowest.train),
            gradient_error=None if mine is None or exact is None else relative(mine, exact[1]),
            difference=None if mine is None or label == EAGER or EAGER not in gradients else
            relative(mine, gradients[EAGER]),
            note="; ".join([*dict.fromkeys(notes[label]), *([f"reference: {missing}"] if missing else [])]),
        )  # fmt: skip
    return list(rows.values()), lowest


def _accuracy(row: Row, done: Pass, exact: tuple[Tensor, Tensor] | None) -> Row:
    error = relative(done.values(), exact[0]) if done.values and exact else None
    return replace(row, nfe=_count(done, "nfe"), accepted=_count(done, "accepted"), y_error=error)


def _time(
    problem: Problem, rows: dict[str, Row], solves: dict[str, Call], steps: dict[str, Call], turns: int, tell: Tell
) -> tuple[Floor | None, dict[str, list[float]], dict[str, list[float]]]:
    """Forward passes take turns with f, training steps with f and its VJP."""
    alone = floor.calls(problem)
    shortest = 0.0 if turns < 3 else 0.2

    def report(part: str) -> Callable[[int, int], None]:
        return lambda done, total: tell(f"{problem.field.name}, {part}", done, total)

    kinds = {"forward": ({floor.F: alone[floor.F]} | solves), "training step": {floor.VJP: alone[floor.VJP]} | steps}
    found = []
    for part, calls in kinds.items():
        found.append(interleave(calls, turns, shortest=shortest, longest=LONGEST, tell=report(part)))
        tell(f"{problem.field.name}, {part}", 1, 1)
    forward, train = found
    base = rows.get(EAGER)
    if base is None or base.nfe is None or base.accepted is None:
        return None, forward, train
    f, vjp = statistics.median(forward[floor.F]), statistics.median(train[floor.VJP])
    return Floor.of(f, vjp, base.nfe, base.accepted), forward, train


def _times(seconds: list[float] | None, lowest: float | None) -> Times | None:
    if not seconds:
        return None
    median = statistics.median(seconds)
    return Times(median, min(seconds), max(seconds), median / lowest if lowest else None)
