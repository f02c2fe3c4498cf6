"""The continuous adjoint of the Neural ODE paper (Chen et al. 2018, algorithm 1): the state is solved again backwards.

The gradient of parameters and args is kept out of the ODE's state: it is the integral of a^T df/dtheta along the
backward solution, by Gauss-Legendre quadrature on each step's dense output. So error control sees (y, a) alone, which
is the seminorm of Kidger, Chen & Lyons 2021, and no memory is spent on a parameter state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ..core.leaves import Leaves
from ..engine.integrate import Request, Solved, integrate
from ..engine.problem import Problem
from ..engine.recorders import Record
from .adjoint_field import CotangentField
from .continuous_adjoint import Backward, ContinuousAdjoint


@final
class Adjoint(ContinuousAdjoint):
    """The continuous adjoint, with the state solved again backwards from each output; memory constant in the steps.

    It drifts where the ODE is unstable backwards, as every dissipative one is. rtol, atol, method, norm, controller,
    max_steps: see `ContinuousAdjoint`.
    """

    name = "adjoint"

    def forwards(self, q: Problem, request: Request) -> tuple[Solved, Callable[[Leaves], Backward]]:
        solved = integrate(q, request, Record(q))
        return solved, lambda captured: Backward(self, q, CotangentField(q.f, captured))
