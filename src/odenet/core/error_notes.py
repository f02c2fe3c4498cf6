"""Notes that say what to do, on errors that PyTorch raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def add_note(words: str, note: str) -> Iterator[None]:
    """A RuntimeError from inside whose message has these words gets the note."""
    try:
        yield
    except RuntimeError as error:
        if words in str(error):
            error.add_note(note)
        raise
