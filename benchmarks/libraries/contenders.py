"""Every contender, in the order of the tables. A library is imported when its contender starts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from . import odenet_solver, torchdiffeq_solver
from .contender import METHOD, Contender, Solver
from .problems import Field, Problem

EAGER, COMPILED, COMPAT = "odenet, eager", "odenet, compiled", "odenet.compat odeint"
ODEINT, ADJOINT = "torchdiffeq odeint", "torchdiffeq odeint_adjoint"
CHECKPOINTED, BACKSOLVE = "diffrax, checkpointed", "diffrax, backsolve"


def _odenet(**options: Any) -> Callable[[Problem], Solver]:
    def start(problem: Problem) -> Solver:
        tolerance = problem.field.tolerance
        how = {"method": METHOD, "rtol": tolerance, "atol": tolerance, "gradient": "discrete"}
        return odenet_solver.start(problem, **how, **options)

    return start


def _torchdiffeq(module: str, function: str) -> Callable[[Problem], Solver]:
    return lambda problem: torchdiffeq_solver.start(problem, module, function)


def _other(module: str, *args: Any) -> Callable[[Problem], Solver]:
    return lambda problem: import_module(f".{module}", __package__).start(problem, *args)


CONTENDERS = (
    Contender(EAGER, _odenet()),
    Contender(COMPILED, _odenet(compile=True), compiled=True),
    Contender(COMPAT, _torchdiffeq("odenet.compat.torchdiffeq", "odeint")),
    Contender(ODEINT, _torchdiffeq("torchdiffeq", "odeint")),
    Contender(ADJOINT, _torchdiffeq("torchdiffeq", "odeint_adjoint")),
    Contender("torchode", _other("torchode_solver", False)),
    Contender("torchode joint backsolve", _other("torchode_solver", True)),
    Contender(CHECKPOINTED, _other("diffrax_solver", "Dopri5", "RecursiveCheckpointAdjoint"), compiled=True),
    Contender(BACKSOLVE, _other("diffrax_solver", "Dopri5", "BacksolveAdjoint"), compiled=True),
    Contender("SciPy solve_ivp RK45", _other("scipy_solver"), kinds=("lotka", "spiral")),
)


def contenders_on(field: Field) -> list[Contender]:
    """Return the contenders that are measured on a field."""
    return [c for c in CONTENDERS if c.kinds is None or field.kind in c.kinds]


def by_label(label: str) -> Contender:
    return next(c for c in CONTENDERS if c.label == label)
