"""Cells of tables over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from ..shared.tables import NONE


def mean_and_spread(values: Sequence[float | None], form: str) -> str:
    """The mean and, of more than one value, the standard deviation; without those that are None."""
    known = [v for v in values if v is not None]
    if not known:
        return NONE
    return f"{mean(known):{form}}" + (f" ± {stdev(known):{form.lstrip('+')}}" if len(known) > 1 else "")
