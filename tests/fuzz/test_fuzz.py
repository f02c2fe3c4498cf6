"""Random calls of the public face: a right value or a documented error. tools/fuzz.py keeps a report of many."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings

from fuzz import strategies
from fuzz.calls import run
from fuzz.ledger import Ledger

COUNTS = {"valid": 50, "compat": 40, "layers": 15, "reports": 4, "wrong": 150, "fields": 80, "commands": 25}
MORE = 5 if "ODENET_NEW_CASES" in os.environ else 1


def calls(kind: str, count: int) -> None:
    ledger = Ledger()

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(strategies.KINDS[kind][0])
    def each(call: Any) -> None:
        note(f"python tools/fuzz.py --call {str(call)!r}")
        run(call, ledger)

    each()
    assert sum(ledger.ends.values()) >= count // 2


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_random_calls(kind: str) -> None:
    calls(kind, COUNTS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_many_random_calls(kind: str) -> None:
    calls(kind, 4 * MORE * COUNTS[kind])
