"""The built-in solver classes, by method name."""

from __future__ import annotations

from typing import Any

import torch

from ...methods import METHODS, ExplicitRK, ImplicitRK
from .adaptive_solvers import RKAdaptiveStepsizeODESolver, ScipyWrapperODESolver
from .fixed_solvers import (
    AdamsBashforth,
    AdamsBashforthMoulton,
    FixedGridDIRKODESolver,
    FixedGridFIRKODESolver,
    MethodSolver,
)
from .solver_functions import ButcherTableau


def _fixed(name: str, method: str) -> type[MethodSolver]:
    base = METHODS[method]
    body: dict[str, Any] = {"order": base.order, "method": base, "__doc__": f"One {method} step."}
    if not isinstance(base, ImplicitRK):
        return type(name, (MethodSolver,), body)
    table, wide = base.tableau, torch.float64
    body["tableau"] = ButcherTableau(
        torch.tensor(table.c, dtype=wide), [torch.tensor(row, dtype=wide) for row in table.a],
        torch.tensor(table.b, dtype=wide), torch.zeros(0, dtype=wide),
    )  # fmt: skip
    diagonal = all(len(block) == 1 for block in table.blocks)
    base_class: Any = FixedGridDIRKODESolver if diagonal else FixedGridFIRKODESolver
    return type(name, (base_class,), body)


def _adaptive(name: str, method: str, middle: tuple[float, ...] | None = None) -> type[RKAdaptiveStepsizeODESolver]:
    """A pair with torchdiffeq's tableau: rows without the first stage; the last stage is the slope at the end.

    middle: weights of the slopes for the middle of a step, if the pair's dense output has none.
    """
    base = METHODS[method]
    assert isinstance(base, ExplicitRK) and base.tableau.error is not None
    table, wide = base.tableau, torch.float64
    c, a, b, error = table.c[1:], table.a[1:], table.b, table.error or ()
    if not table.fsal:
        c, a, b, error = (*c, 1.0), (*a, b), (*b, 0.0), (*error, 0.0)
    if middle is None and table.dense is not None:
        middle = tuple(sum(x * 0.5 ** (d + 1) for d, x in enumerate(row)) for row in table.dense)
    if middle is None:  # from the cubic Hermite polynomial
        middle = (b[0] / 2 + 1 / 8, *(x / 2 for x in b[1:-1]), b[-1] / 2 - 1 / 8)
    scale = 2 / 3 if method == "dopri5" else 1.0  # Shampine's embedded formula; this library uses the pair's own
    tableau = ButcherTableau(
        torch.tensor(c, dtype=wide), [torch.tensor(row, dtype=wide) for row in a],
        torch.tensor(b, dtype=wide), scale * torch.tensor(error, dtype=wide),
    )  # fmt: skip
    body = {"order": base.order, "tableau": tableau, "mid": torch.tensor(middle, dtype=wide)}
    return type(name, (RKAdaptiveStepsizeODESolver,), body | {"__doc__": f"The pair {method}."})


# For dopri8 without extra evaluations: the weights of least norm that meet the order conditions up to order 5.
_MIDDLE_OF_DOPRI8 = (
    *(0.040736722706027365, 0.0, 0.0, 0.0, 0.0, 0.14569877189269792, 0.23498887102372557, 0.07725446379852215),
    *(0.0157551622074502, -0.015169356578658963, -5.237877533816049e-05, *[0.0002625812418579096] * 3),
)

ADAPTIVE = {
    "dopri8": _adaptive("Dopri8Solver", "dopri8", _MIDDLE_OF_DOPRI8),
    "dopri5": _adaptive("Dopri5Solver", "dopri5"),
    "tsit5": _adaptive("Tsit5Solver", "tsit5"),
    "bosh3": _adaptive("Bosh3Solver", "bosh3"),
    "fehlberg2": _adaptive("Fehlberg2", "fehlberg2"),
    "adaptive_heun": _adaptive("AdaptiveHeunSolver", "heun"),
}
EXPLICIT = {
    "euler": _fixed("Euler", "euler"),
    "midpoint": _fixed("Midpoint", "midpoint"),
    "heun2": _fixed("Heun2", "heun"),
    "heun3": _fixed("Heun3", "heun3"),
    "rk4": _fixed("RK4", "rk4_38"),
}
IMPLICIT = {
    "implicit_euler": _fixed("ImplicitEuler", "implicit_euler"),
    "implicit_midpoint": _fixed("ImplicitMidpoint", "implicit_midpoint"),
    "trapezoid": _fixed("Trapezoid", "trapezoid"),
    "radauIIA3": _fixed("RadauIIA3", "radauIIA3"),
    "gl4": _fixed("GaussLegendre4", "gl4"),
    "radauIIA5": _fixed("RadauIIA5", "radauIIA5"),
    "gl6": _fixed("GaussLegendre6", "gl6"),
    "sdirk2": _fixed("SDIRK2", "sdirk2"),
    "trbdf2": _fixed("TRBDF2", "trbdf2"),
}
ADAMS = {
    "explicit_adams": AdamsBashforth,
    "implicit_adams": AdamsBashforthMoulton,
    "fixed_adams": AdamsBashforthMoulton,
}
SCIPY = "scipy_solver"

BUILT_IN: dict[str, Any] = {**ADAPTIVE, **EXPLICIT, **ADAMS, **IMPLICIT, SCIPY: ScipyWrapperODESolver}
