"""Wall time of a forward and a backward pass: every gradient, and diffrax, on one MLP with one number of steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from ..libraries import odenet_solver
from ..libraries.contender import Call, Output, Solver
from ..libraries.problems import Problem, build, mlp_field
from ..shared.errors import value_or_error
from ..shared.timing import interleave
from .gradient_options import AGAIN, BASE, GradientOption, cost_options

METHOD = "tsit5"  # in both libraries
STEP = 1 / 16  # a power of two: its sums are exact, so both libraries take the same number of steps


@dataclass(frozen=True)
class Size:
    """Sizes of an MLP, of its state (batch, dim), and the number of steps."""

    name: str
    batch: int
    dim: int
    hidden: int
    steps: int

    def describe(self) -> str:
        return f"{self.name}: batch {self.batch}, dim {self.dim}, hidden {self.hidden}, {self.steps} steps"


SIZES = (Size("small", 64, 4, 32, 100), Size("medium", 256, 64, 256, 100), Size("large", 512, 256, 1024, 20))
QUICK = (Size("small", 64, 4, 32, 20),)


@dataclass(frozen=True)
class Cost:
    """Wall time of one forward and one backward pass in seconds; None with a note that says why.

    seconds, fastest, slowest: median and range of the turns. ratio, ratio_again: medians of the ratios to BASE and to
    AGAIN in the same turn. nfe, backward_nfe, checkpoints: None where the library does not count them. difference:
    relative 2-norm of the difference of its gradients from those of BASE.
    """

    size: str
    label: str
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    ratio: float | None = None
    ratio_again: float | None = None
    target: float | None = None
    nfe: int | None = None
    backward_nfe: int | None = None
    checkpoints: int | None = None
    difference: float | None = None
    note: str = ""


def _starts(problem: Problem, options: Sequence[GradientOption], steps: int) -> dict[str, Callable[[], Solver]]:
    """Return what prepares each gradient of odenet, and each of diffrax, by label."""

    def of_odenet(option: GradientOption) -> Callable[[], Solver]:
        return lambda: odenet_solver.start(problem, method=METHOD, step=STEP, gradient=option.make())

    def of_diffrax(adjoint: str, **how: int) -> Callable[[], Solver]:
        def start() -> Solver:
            module = import_module("benchmarks.libraries.diffrax_solver")
            return module.start(problem, "Tsit5", adjoint, STEP, **how)

        return start

    few = max(1, steps // 10)
    return {o.label: of_odenet(o) for o in options} | {
        "diffrax checkpointed, default": of_diffrax("RecursiveCheckpointAdjoint"),
        "diffrax checkpointed, checkpoints=N/10": of_diffrax("RecursiveCheckpointAdjoint", checkpoints=few),
        "diffrax backsolve": of_diffrax("BacksolveAdjoint"),
    }


def measure_size(size: Size, options: Sequence[GradientOption], seed: int, device: str, turns: int) -> list[Cost]:
    """Return a row for each gradient."""
    field = mlp_field(size.name, size.batch, size.dim, size.hidden, size.steps * STEP)
    problem = build(field, seed, device)
    calls: dict[str, Call] = {}
    outputs: dict[str, Output] = {}
    notes: dict[str, str] = {}
    for label, start in _starts(problem, options, size.steps).items():
        solver, notes[label] = value_or_error(start)
        if solver is None or solver.train is None:
            continue
        output, notes[label] = value_or_error(solver.train)
        if output is not None:
            calls[label], outputs[label] = solver.train, output
            if output.stats["accepted"] != size.steps:
                notes[label] = f"took {output.stats['accepted']} steps"
    seconds = interleave(calls, turns, shortest=0.0 if turns < 3 else 0.2, title=f"cost, {size.name}")
    targets = {o.label: o.target for o in options}
    return [_row(size.name, label, seconds, outputs, targets.get(label), note) for label, note in notes.items()]


def _row(
    size: str,
    label: str,
    seconds: dict[str, list[float]],
    outputs: dict[str, Output],
    target: float | None,
    note: str,
) -> Cost:
    if label not in seconds:
        return Cost(size, label, target=target, note=note)
    mine, stats = seconds[label], outputs[label].stats
    # turn by turn: in one turn both met the machine in the same state
    ratio, ratio_again = (
        statistics.median(a / b for a, b in zip(mine, seconds[base], strict=True)) if base in seconds else None
        for base in (BASE, AGAIN)
    )
    difference = None
    if BASE in outputs and label != BASE:
        reference = outputs[BASE].flat_gradient()
        difference = float((outputs[label].flat_gradient() - reference).norm() / reference.norm())
    counts = {name: stats.get(name) for name in ("nfe", "backward_nfe", "checkpoints")}
    times = {"seconds": statistics.median(mine), "fastest": min(mine), "slowest": max(mine)}
    ratios = {"ratio": ratio, "ratio_again": ratio_again, "difference": difference}
    return Cost(size, label, target=target, note=note, **times, **ratios, **counts)


def measure(seed: int, device: str, quick: bool) -> list[Cost]:
    sizes, turns = (QUICK, 2) if quick else (SIZES, 9)
    return [row for s in sizes for row in measure_size(s, cost_options(s.steps), seed, device, turns)]
