"""Autograd through the solver's own operations."""

from __future__ import annotations

from typing import final

from torch import Tensor

from ..core.leaves import Leaves
from ..engine.drive import Driver
from ..engine.integrate import Request, integrate
from ..engine.pieces import evaluate_pieces
from ..engine.problem import Problem
from ..engine.record import Record
from .base import Gradient, Stats, Trajectory


def plain(p: Problem, driver: Driver, request: Request) -> Trajectory:
    """Integrate in the caller's grad mode."""
    solved = integrate(p, driver, request, Record(p))
    pieces = solved.pieces

    def dense(t: Tensor) -> Leaves:
        assert pieces is not None
        return evaluate_pieces(pieces, t, p.direction, p.batched)

    outcome = solved.outcome
    return Trajectory(solved.ys, solved.y1, dense if request.dense else None, outcome, Stats.of(outcome))


@final
class Backprop(Gradient):
    """Keeps every intermediate of every accepted step; exact for the numerical solution, to any order of derivative."""

    name = "backprop"

    def run(self, p: Problem, driver: Driver, request: Request) -> Trajectory:
        return plain(p, driver, request)
