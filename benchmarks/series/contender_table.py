"""Contenders on random fields: their steps by turns, and a table of times and errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from torch import Tensor

from ..shared.errors import value_or_error
from ..shared.measured_rows import Row, mean_and_range, values
from ..shared.tables import NONE, markdown_table

# seed and scale of the weights: the larger, the more steps
FIELDS = ((0, 1.0), (1, 1.5), (2, 2.0), (3, 2.5), (4, 3.0))
SECONDS, FIRST = "seconds", "seconds of the first step"

Step = Callable[[], Sequence[Tensor]]
"""A training step: the loss and its gradient."""


def started(part: str, case: str, contenders: Mapping[str, Callable[[], Step]]) -> tuple[dict[str, Step], list[Row]]:
    """The steps of those that can be run, each after its first one, and a row for each: seconds, or why not."""
    steps: dict[str, Step] = {}
    rows: list[Row] = []
    for label, start in contenders.items():
        begin = time.perf_counter()
        step, note = value_or_error(lambda start=start: _after_first(start()))
        rows.append((part, case, label, FIRST, time.perf_counter() - begin if step else None, note))
        if step is not None:
            steps[label] = step
    return steps, rows


def _after_first(step: Step) -> Step:
    step()
    return step


def relative_difference(mine: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The 2-norm of the difference over that of the exact numbers, all of them together."""
    pairs = [(a.detach().double().flatten(), b.detach().double().flatten()) for a, b in zip(mine, exact, strict=True)]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def table(rows: Sequence[Row], part: str, cases: Sequence[str], base: str, errors: Sequence[str]) -> str:
    """Times as geometric means over the cases, with ranges, those over `base`, and the largest errors."""
    lines: list[list[str]] = []
    for label in dict.fromkeys(r[2] for r in rows if r[0] == part):
        seconds = {x: {c: values(rows, part, c, x, SECONDS) for c in cases} for x in (label, base)}
        mine = {c: median(s) for c, s in seconds[label].items() if s}
        ratios = [s / median(seconds[base][c]) for c, s in mine.items() if seconds[base][c]]
        largest = [[v for c in cases for v in values(rows, part, c, label, name)] for name in errors]
        note = next((r[5] for r in rows if r[0] == part and r[2] == label and r[5]), "")
        lines.append(
            [
                label,
                mean_and_range([1e3 * s for s in mine.values()], ".3g"),
                mean_and_range(ratios, ".2f"),
                *(f"{max(numbers):.0e}" if numbers else NONE for numbers in largest),
                note,
            ]
        )
    return markdown_table(["contender", "ms", f"time over that of {base}", *errors, "note"], lines)


def first_steps(rows: Sequence[Row], part: str) -> str:
    """Seconds of the first steps, which compile what is compiled."""
    found = {r[2]: [s[4] for s in rows if s[:1] + s[2:4] == (part, r[2], FIRST) and s[4] is not None] for r in rows}
    said = [f"{label} {max(seconds):.1f}" for label, seconds in found.items() if seconds and "compiled" in label]
    return f"Seconds of the first step, which compiles: {', '.join(said)}.\n" if said else ""
