"""Autograd through the solver's own operations."""

from __future__ import annotations

from dataclasses import replace
from typing import final

from ..engine.integrate import Request, integrate
from ..engine.pieces import Interpolation
from ..engine.problem import Problem
from ..engine.record import Record
from ..engine.vmapped import Lanewise
from .base import Gradient, Stats, Trajectory


def plain(p: Problem, request: Request) -> Trajectory:
    """Integrate in the caller's grad mode."""
    smooth = p.method.smooth()
    if smooth is not p.method:
        p = replace(p, method=smooth)
    solved = integrate(p, request, Lanewise(p) if p.traced else Record(p))
    dense = Interpolation.of(p, solved.pieces)
    return Trajectory(solved.ys, solved.y1, dense, solved.outcome, Stats.of(solved.outcome))


@final
class Backprop(Gradient):
    """Keeps every intermediate of every accepted step; exact for the numerical solution, to any order of derivative."""

    name = "backprop"

    def run(self, p: Problem, request: Request) -> Trajectory:
        return plain(p, request)
