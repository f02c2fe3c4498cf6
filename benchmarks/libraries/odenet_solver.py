"""odenet."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import odenet

from .contender import Solver, torch_solver
from .problems import Problem


def start(problem: Problem, **options: Any) -> Solver:
    """Prepare odenet.solve. options: its method, its tolerances or step, its gradient, whether it compiles."""
    field, ts = problem.field, problem.ts.tolist()
    options["per_sample"] = field.per_sample

    def solve() -> tuple[Tensor, Any]:
        sol = odenet.solve(problem.f, problem.y0, ts, args=problem.args, **options)
        return (sol.ys[:, 1:].transpose(0, 1) if field.per_sample else sol.ys[1:]), sol.stats

    return torch_solver(problem, solve)
