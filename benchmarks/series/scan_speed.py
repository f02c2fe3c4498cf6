"""A linear controlled equation by a parallel scan and by a solve: the same equation, by the length of the series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from odenet.nn import LinearCDE, NeuralCDE
from odenet.series import Series

from ..shared.measured_rows import Row, mean_and_range, values
from ..shared.tables import NONE, markdown_table
from ..shared.timing import interleave
from .contender_table import SECONDS, relative_difference
from .random_paths import CHANNELS, HIDDEN, random_walks

PART = "scan"
SAMPLES, LENGTHS, SEEDS, TURNS = 32, (100, 300, 1000, 3000, 10_000), (0, 1, 2), 5
LONG = 3000  # rows from which on one field is measured
SCAN, SOLVE = "LinearCDE", "NeuralCDE"
DIFFERENCE = "difference of the output"


def same_equation(seed: int) -> dict[str, LinearCDE | NeuralCDE]:
    """Both models, with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scan = LinearCDE(CHANNELS, HIDDEN, out=1)
        solve = NeuralCDE(CHANNELS, HIDDEN, out=1, field=scan.field, control="linear")
    solve.initial, solve.readout = scan.initial, scan.readout
    return {SCAN: scan, SOLVE: solve}


def training_step(model: LinearCDE | NeuralCDE, series: Series, targets: Tensor) -> Callable[[], object]:
    weights = list(model.parameters())
    return lambda: torch.autograd.grad((model(series) - targets).square().mean(), weights)


def measure(quick: bool) -> list[Row]:
    samples, lengths, seeds, turns = (3, (5, 9), SEEDS[:1], 1) if quick else (SAMPLES, LENGTHS, SEEDS, TURNS)
    rows: list[Row] = []
    for length in lengths:
        for seed in seeds if length < LONG else seeds[:1]:
            models, series = same_equation(seed), random_walks(samples, length, seed)
            targets = torch.randn(samples, 1, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                exact, solved = (models[label](series) for label in (SCAN, SOLVE))
            case = f"T = {length}"
            rows.append((PART, case, SOLVE, DIFFERENCE, relative_difference([solved], [exact]), ""))
            steps = {label: training_step(model, series, targets) for label, model in models.items()}
            seconds = interleave(steps, turns, longest=60.0, title=case)
            rows += [(PART, case, label, SECONDS, median(those), "") for label, those in seconds.items()]
    return rows


def medians(rows: Sequence[Row], label: str) -> dict[int, float]:
    """Seconds by length, the median over the seeds."""
    found = {case: values(rows, PART, case, label, SECONDS) for case in dict.fromkeys(r[1] for r in rows)}
    return {int(case.rsplit(" ", 1)[1]): median(seconds) for case, seconds in found.items() if seconds}


def section(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for case in dict.fromkeys(r[1] for r in rows if r[0] == PART and r[4] is not None):
        scan, solve = (values(rows, PART, case, label, SECONDS) for label in (SCAN, SOLVE))
        differences = values(rows, PART, case, SOLVE, DIFFERENCE)
        lines.append(
            [
                case.rsplit(" ", 1)[1],
                mean_and_range([1e3 * s for s in scan], ".3g"),
                mean_and_range([1e3 * s for s in solve], ".3g"),
                mean_and_range([a / b for a, b in zip(solve, scan, strict=True)], ".1f"),
                f"{max(differences):.0e}" if differences else NONE,
            ]
        )
    text = f"""\
## A linear equation: scan and solve

`{SCAN}({CHANNELS}, {HIDDEN})`, a product of matrix exponentials by a parallel scan, and `{SOLVE}` with its field on the
same straight path, with its default tolerances: the same equation and the same weights, batch {SAMPLES}, float32.
Forward, loss and backward; geometric mean and range over {len(SEEDS)} fields and random walks, one from T = {LONG:,}
on. Difference of the outputs, relative: the largest.
"""
    head = ["T", f"ms: {SCAN}", f"ms: {SOLVE}", f"{SOLVE} / {SCAN}", DIFFERENCE]
    return "\n".join([text, markdown_table(head, lines)])
