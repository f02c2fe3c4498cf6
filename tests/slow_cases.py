"""Which cases of a test `make test` runs, where all of them would take long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_unless(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test: all but those named are run by `make test-all` alone."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
