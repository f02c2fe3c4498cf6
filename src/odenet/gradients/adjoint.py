"""The continuous adjoint of the Neural ODE paper (Chen et al. 2018, algorithm 1): the state is solved again backwards.

The gradient of parameters and args stays outside the ODE's state. It is the integral of a^T df/dtheta along the
backward solution, by Gauss-Legendre quadrature on the dense output of each step. So error control sees (y, a) alone,
which is the seminorm of Kidger, Chen & Lyons 2021, and no memory is spent on a parameter state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ..core.leaves import Leaves
from ..engine.integrate import NumericalSolution, Request, integrate
from ..engine.output_recorder import OutputRecorder
from ..engine.problem import Problem
from .adjoint_field import AdjointField
from .continuous_adjoint import AdjointSolve, ContinuousAdjoint


@final
class Adjoint(ContinuousAdjoint):
    """The continuous adjoint that solves the state again backwards from each output.

    Memory is constant in the number of steps. The backward state drifts where the ODE is unstable backwards, as every
    dissipative ODE is. rtol, atol, method, norm, controller, max_steps: see `ContinuousAdjoint`.
    """

    name = "adjoint"

    def solve_forward(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        solved = integrate(q, request, OutputRecorder(q))
        return solved, lambda captured: AdjointSolve(self, q, AdjointField(q.f, captured))
