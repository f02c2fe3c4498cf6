"""Rows of the benchmark `peers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

STAGES = 6  # of dopri5: the first slope of a step is the last one of the step before


def mean_count(count: Any) -> float:
    """Return the mean of a count that may be one for each sample."""
    return float(count.double().mean()) if isinstance(count, Tensor) else float(count)


@dataclass(frozen=True)
class EvaluationCost:
    """Seconds that the evaluations of f take by themselves.

    f: one evaluation. vjp: one evaluation and its vector-Jacobian product. forward: nfe evaluations. train: on top of
    them a vjp for each stage of each accepted step. The counts of a batch with steps of its own for each sample are
    means.
    """

    f: float
    vjp: float
    forward: float
    train: float

    @staticmethod
    def of(f: float, vjp: float, nfe: float, accepted: float) -> EvaluationCost:
        forward = nfe * f
        return EvaluationCost(f, vjp, forward, forward + accepted * STAGES * vjp)


@dataclass(frozen=True)
class Times:
    """Median and range over the turns, in seconds. over: the median in units of the cost of the evaluations."""

    seconds: float
    fastest: float
    slowest: float
    over: float | None


@dataclass(frozen=True)
class Row:
    """One contender on one field; a number that could not be measured is None, with a note that says why.

    forward, train: times of a solve without a gradient, and of a training step. nfe, accepted: counts of the forward
    solve, means where each sample has its own. y_error, gradient_error: relative, against a float64 solve at a
    thousandth of the tolerance. difference: of the gradient, from the eager one of odenet. cold, again: seconds of the
    first gradient of a process, with empty compile caches and with those of the process before; cold_process,
    again_process: of the whole process. memory: growth of the peak by a training step, in bytes.
    """

    field: str
    label: str
    forward: Times | None = None
    train: Times | None = None
    nfe: float | None = None
    accepted: float | None = None
    y_error: float | None = None
    gradient_error: float | None = None
    difference: float | None = None
    cold: float | None = None
    again: float | None = None
    cold_process: float | None = None
    again_process: float | None = None
    memory: int | None = None
    note: str = ""
