"""Runs the benchmark `series`, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from ..shared.tables import Settings

# the module of each part, whose `run(settings)` yields the name and the content of each of its files
PARTS = {
    "batching": "batching_cost",
    "clinical": "clinical_prediction",
    "vowels": "series_classes",
    "hopper": "motion_prediction",
    "spirals": "spiral_forecasts",
    "speed": "series_speed",
}


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file; those of a part when it ends."""
    for part in settings.only or PARTS:
        yield from import_module(f".{PARTS[part]}", __package__).run(settings)
