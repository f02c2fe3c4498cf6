"""odenet's own contenders."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import odenet

from ..fields import Problem
from .runs import METHOD, Contender, Runs, torch_runs

EAGER, COMPILED = "odenet, eager", "odenet, compiled"


def _start(problem: Problem, **options: Any) -> Runs:
    field = problem.field
    ts = problem.ts.tolist()

    def solve() -> tuple[Tensor, Any]:
        sol = odenet.solve(
            problem.f,
            problem.y0,
            ts,
            args=problem.args,
            method=METHOD,
            rtol=field.tolerance,
            atol=field.tolerance,
            per_sample=field.per_sample,
            gradient="discrete",
            **options,
        )
        return (sol.ys[:, 1:].transpose(0, 1) if field.per_sample else sol.ys[1:]), sol.stats

    return torch_runs(problem, solve)


CONTENDERS = (
    Contender(EAGER, _start),
    Contender(COMPILED, lambda problem: _start(problem, compile=True), compiled=True),
)
