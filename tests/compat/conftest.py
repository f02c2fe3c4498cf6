"""The two packages that the same calls go through."""

from __future__ import annotations

from typing import Any

import pytest

from compat.sides import OURS, THEIRS


@pytest.fixture
def theirs() -> Any:
    return pytest.importorskip(THEIRS)


@pytest.fixture
def ours() -> Any:
    return pytest.importorskip(OURS)


@pytest.fixture(params=["theirs", "ours"])
def ode(request: pytest.FixtureRequest) -> Any:
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)
