"""The work-precision part of `odenet bench peers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..results import Tell
from . import figure, measure, table
from .problems import problems


def run(command: str, quick: bool, machine: Mapping[str, str | int], tell: Tell) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and give each file's name and content."""
    points, those = measure.measure(quick, tell), problems()
    yield "work_precision.csv", table.numbers(points)
    yield "work_precision.png", figure.draw(points, those)
    yield "work_precision.md", table.page(points, those, machine, command, quick, "work_precision.png")
