"""Notes with the cure, added to errors that PyTorch raises."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def add_note(text: str, note: str) -> Generator[None]:
    """Add the note to a RuntimeError that is raised in this context and whose message contains `text`."""
    try:
        yield
    except RuntimeError as error:
        if text in str(error):
            error.add_note(note)
        raise
