"""What is measured of one contender on one field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Median and range over the turns, in seconds. over: the median in units of the floor."""

    seconds: float
    fastest: float
    slowest: float
    over: float | None


@dataclass(frozen=True)
class Row:
    """One contender on one field.

    forward, train: times of a forward pass alone and of a training step. nfe, accepted: of the forward solve, the mean
    where each sample has its own; None where the library does not say. y_error, gradient_error: relative, to a float64
    solve at a thousandth of the tolerance. difference: of the gradient, from the eager one of this library. cold,
    again: seconds of the first gradient of a process, with empty compile caches and with those of the process before;
    cold_process, again_process: of the whole process. memory: growth of the peak by a training step, bytes. note: what
    is different, or why a number is missing.
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


@dataclass(frozen=True)
class Ratio:
    """One target. value: None where it could not be measured. least: whether the target is a least or a most."""

    what: str
    over: str
    value: float | None
    target: float
    least: bool = True

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target if self.least else self.value <= self.target
