"""Runs the benchmark `gpu`."""

from __future__ import annotations

from collections.abc import Iterator

from ..libraries.problems import choose
from ..peers import run_peers
from ..shared.tables import Settings
from . import kernel_launches


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    text = ""
    for name, content in run_peers.run(settings, "gpu"):
        yield name, content
        text = str(content) if name == "gpu.md" else text
    fields = choose(settings.quick, settings.only)
    rows = [row for field in fields for row in kernel_launches.measure(field, settings.seed)]
    yield "gpu.md", f"{text}\n{kernel_launches.section(rows)}"
