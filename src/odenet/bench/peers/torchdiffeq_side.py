"""torchdiffeq, and this library in its place."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..fields import Problem
from .runs import METHOD, Contender, Counted, Runs, torch_runs

ODEINT, ADJOINT, COMPAT = "torchdiffeq odeint", "torchdiffeq odeint_adjoint", "odenet.compat odeint"
_JOINT = "one step size for all systems"


def _start(problem: Problem, odeint: Callable[..., Tensor], **options: Any) -> Runs:
    field = problem.field

    def solve() -> tuple[Tensor, Any]:
        f = Counted(problem)
        ys = odeint(f, problem.y0, problem.ts, rtol=field.tolerance, atol=field.tolerance, method=METHOD, **options)
        return ys[1:], {"nfe": f.calls}

    return torch_runs(problem, solve, note=_JOINT if field.per_sample else "")


def _odeint(problem: Problem) -> Runs:
    return _start(problem, importlib.import_module("torchdiffeq").odeint)


def _adjoint(problem: Problem) -> Runs:
    adjoint = importlib.import_module("torchdiffeq").odeint_adjoint
    return _start(problem, adjoint, adjoint_params=problem.inputs[1:])


def _compat(problem: Problem) -> Runs:
    from ...compat import torchdiffeq

    return _start(problem, torchdiffeq.odeint)


CONTENDERS = (Contender(COMPAT, _compat), Contender(ODEINT, _odeint), Contender(ADJOINT, _adjoint))
