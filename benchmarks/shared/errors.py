"""Errors of one measurement, which become a note in its table row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotApplicableError(Exception):
    """A library does not offer what is measured; the message says why."""


def value_or_error(work: Callable[[], T]) -> tuple[T | None, str]:
    """Return the value of `work` and "", or None and a one-line error message."""
    try:
        return work(), ""
    except ImportError as error:
        return None, f"not installed: {error.name}"
    except NotApplicableError as error:
        return None, str(error)
    except Exception as error:  # a long run goes on; the row of what failed carries the message
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
