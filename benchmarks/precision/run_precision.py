"""Runs the benchmark `precision`."""

from __future__ import annotations

from collections.abc import Iterator

from ..shared.tables import Settings
from . import precision_report, sweep


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    points = sweep.measure(settings.quick)
    yield "work_precision.csv", precision_report.numbers(points)
    yield "work_precision.png", precision_report.draw(points)
    yield "work_precision.md", precision_report.page(points, settings)
