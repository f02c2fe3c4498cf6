"""Autograd through the solver's own operations."""

from __future__ import annotations

from typing import final

from ..engine.integrate import Request
from ..engine.problem import Problem
from .gradient import Gradient, Trajectory, solve_plain


@final
class Backprop(Gradient):
    """Stores every intermediate of every accepted step; exact for the numerical solution, to any order."""

    name = "backprop"

    def run(self, p: Problem, request: Request) -> Trajectory:
        return solve_plain(p, request)
