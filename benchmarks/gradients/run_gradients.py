"""Runs the benchmark `gradients`."""

from __future__ import annotations

from collections.abc import Iterator

from ..shared.tables import Settings
from . import cost, exactness, gradients_report, memory, recomputation


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    yield "settings.json", settings.as_json()
    results = gradients_report.Results(
        memory=memory.measure(settings.device, settings.quick),
        exactness=exactness.measure(settings.seed, settings.quick),
        cost=cost.measure(settings.seed, settings.device, settings.quick),
        recomputation=recomputation.measure(settings.quick),
    )
    yield "gradients.csv", gradients_report.numbers(results)
    yield "gradients.png", gradients_report.draw(results.memory, results.cost)
    yield "gradients.md", gradients_report.page(results, settings)
