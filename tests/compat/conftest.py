"""The two packages that get the same calls."""

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
    """Both packages, one after the other."""
    return request.getfixturevalue(request.param)
