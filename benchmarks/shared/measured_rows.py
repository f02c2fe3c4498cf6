"""Rows of measurements: a number of a contender on a case, or a note that says why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean, median

from .tables import NONE

COLUMNS = ("part", "case", "contender", "quantity", "value", "note")

Row = tuple[str, str, str, str, float | None, str]
"""Of the CSV: COLUMNS."""


def values(rows: Sequence[Row], *key: str) -> list[float]:
    """The numbers of a part, case, contender and quantity."""
    return [r[4] for r in rows if r[:4] == key and r[4] is not None]


def milliseconds(seconds: Sequence[float]) -> str:
    """Median and range."""
    if not seconds:
        return NONE
    low, middle, high = (f"{v * 1e3:.3g}" for v in (min(seconds), median(seconds), max(seconds)))
    return f"{middle} ({low} to {high})"


def mean_and_range(numbers: Sequence[float], form: str) -> str:
    """Geometric mean and range."""
    if not numbers:
        return NONE
    low, middle, high = (format(v, form) for v in (min(numbers), geometric_mean(numbers), max(numbers)))
    return f"{middle} ({low} to {high})"


def ratio_line(ratios: Sequence[float]) -> list[str]:
    """Least, median and largest, and the geometric mean."""
    if not ratios:
        return [NONE] * 4
    return [f"{v:.2f}" for v in (min(ratios), median(ratios), max(ratios), geometric_mean(ratios))]


def note_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each note of a part and contender."""
    return sorted({f"- {r[0]}, {r[2]}: {r[5]}" for r in rows if r[5]})
