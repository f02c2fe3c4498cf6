"""torchdiffeq, and odenet's functions in its place."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from .contender import METHOD, Solver, torch_solver
from .problems import Problem


class _CountedField:
    """f(t, y, *args) as f(t, y), and the number of its calls: torchdiffeq does not count them."""

    def __init__(self, problem: Problem) -> None:
        self.f, self.args, self.calls = problem.f, problem.args, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.f(t, y, *self.args)


def start(problem: Problem, module: str, function: str) -> Solver:
    """Prepare odeint or odeint_adjoint of a module."""
    field, odeint = problem.field, getattr(importlib.import_module(module), function)
    options = {"adjoint_params": problem.inputs[1:]} if function == "odeint_adjoint" else {}

    def solve() -> tuple[Tensor, Any]:
        f = _CountedField(problem)
        ys = odeint(f, problem.y0, problem.ts, rtol=field.tolerance, atol=field.tolerance, method=METHOD, **options)
        return ys[1:], {"nfe": f.calls}

    return torch_solver(problem, solve, note="one step size for all systems" if field.per_sample else "")
