"""Which cases of a test `make test` runs, where all of them would take long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_unless(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test: all but those named are run by `make test-all` alone."""
    return [v if v in quick else _slow(v) for v in values]


def _slow(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)  # of several parameters, or of one
    return pytest.param(*values, marks=pytest.mark.slow)
