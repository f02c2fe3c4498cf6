"""The progress of a benchmark: bars on a terminal, else a line for each part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

from .results import Tell


@contextmanager
def shown() -> Iterator[Tell]:
    """To report to, on stderr."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part)
            bars.update(tasks[part], completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{part}: measured")

        yield tell
