"""The methods for one step: their contract (`Method`), and the built-in ones by name (`METHODS`).

method: the contract.
explicit, tableau: explicit Runge-Kutta methods. tableaus: the coefficients of all Runge-Kutta methods.
implicit, implicit_tableau: implicit Runge-Kutta methods. Their equations: stage_equations, jacobian, matrix_layout.
    Solved to round-off: newton; to the tolerance: simplified_newton, newton_cache. Linear systems: linear_solvers,
    block_eigensystem, gmres. A wrong Jacobian: jacobian_check.
adams, adams_coefficients: linear multistep methods. exponential_multistep, interpolation_weights: samplers of flow and
    diffusion models. reversible_method: the method of `Reversible`.
"""

from ..core.status import StepStatus
from .adams import Adams
from .explicit import ExplicitRK
from .exponential_multistep import DPMSolverPP, UniPC
from .implicit import ImplicitRK
from .implicit_tableau import ImplicitTableau
from .method import Cache, Counts, Method, Step, StepInput, StepSizeHint, Tolerances
from .tableau import Tableau
from .tableaus import (
    bosh3,
    dirk,
    dopri5,
    dopri8,
    esdirk,
    euler,
    fehlberg2,
    gauss_legendre,
    heun,
    kvaerno,
    midpoint,
    radau,
    ralston,
    rk4,
    tsit5,
)

_EXPLICIT = (
    euler.TABLEAU,
    midpoint.TABLEAU,
    heun.HEUN,
    ralston.TABLEAU,
    fehlberg2.TABLEAU,
    heun.HEUN3,
    bosh3.TABLEAU,
    rk4.RK4,
    rk4.RK4_38,
    dopri5.TABLEAU,
    tsit5.TABLEAU,
    dopri8.TABLEAU,
)
_IMPLICIT = (
    radau.IMPLICIT_EULER,
    gauss_legendre.IMPLICIT_MIDPOINT,
    dirk.TRAPEZOID,
    dirk.SDIRK2,
    dirk.TRBDF2,
    radau.RADAU_IIA3,
    gauss_legendre.GL4,
    radau.RADAU_IIA5,
    kvaerno.KVAERNO3,
    kvaerno.KVAERNO5,
    esdirk.ESDIRK54,
    gauss_legendre.GL6,
)

_ADAMS = (Adams(), Adams(implicit=True))

METHODS: dict[str, Method] = {m.name: m for m in (*map(ExplicitRK, _EXPLICIT), *map(ImplicitRK, _IMPLICIT), *_ADAMS)}

__all__ = [
    "METHODS",
    "Adams",
    "Cache",
    "Counts",
    "DPMSolverPP",
    "ExplicitRK",
    "ImplicitRK",
    "ImplicitTableau",
    "Method",
    "Step",
    "StepInput",
    "StepSizeHint",
    "StepStatus",
    "Tableau",
    "Tolerances",
    "UniPC",
]
