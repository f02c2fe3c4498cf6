"""Runs the benchmark `gradients`."""

from __future__ import annotations

from collections.abc import Iterator

from ..shared.tables import Settings
from . import cost, exactness, gradient_figure, gradient_tables, memory, recomputation


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    yield "settings.json", settings.as_json()
    results = gradient_tables.Results(
        memory=memory.measure(settings.device, settings.quick),
        exactness=exactness.measure(settings.seed, settings.quick),
        cost=cost.measure(settings.seed, settings.device, settings.quick),
        recomputation=recomputation.measure(settings.quick),
    )
    yield "gradients.csv", gradient_tables.numbers(results)
    yield "gradients.png", gradient_figure.draw(results.memory, results.cost)
    yield "gradients.md", gradient_tables.page(results, settings)
