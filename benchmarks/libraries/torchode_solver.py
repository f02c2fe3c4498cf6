"""torchode: each sample has its own steps, and the state is (B, n)."""

from __future__ import annotations

from typing import Any

import torchode  # pyright: ignore[reportMissingImports]  (the extra `bench`)
from torch import Tensor, nn

from ..shared.errors import NotApplicableError
from .contender import Solver, torch_solver
from .problems import Problem


class _FlatField(nn.Module):
    """f on a state (B, n), with every differentiable tensor among its parameters."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.f, self.shape = problem.f, problem.y0.shape[1:]
        self.rates = nn.ParameterList([nn.Parameter(x.detach()) for x in problem.args])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y.reshape(-1, *self.shape), *self.rates).flatten(1)


def start(problem: Problem, joint: bool) -> Solver:
    """Prepare backpropagation, or the adjoint that takes joint steps for the whole batch."""
    if joint and len(problem.ts) > 2:
        raise NotApplicableError("its joint adjoint takes no output times between the ends")
    field, f = problem.field, _FlatField(problem)
    term = torchode.ODETerm(f)
    control: Any = torchode.IntegralController(field.tolerance, field.tolerance, term=term)
    step: Any = torchode.Dopri5(term=term)
    adjoint = torchode.JointBacksolveAdjoint(term, step, control) if joint else torchode.AutoDiffAdjoint(step, control)
    solver = adjoint.to(problem.y0.device)
    y0: Any = problem.y0.detach().flatten(1).requires_grad_()
    ts: Any = problem.ts.expand(len(y0), -1)

    def solve() -> tuple[Tensor, Any]:
        sol = solver.solve(torchode.InitialValueProblem(y0=y0, t_eval=ts), term)
        if int(sol.status.max()) > 0:
            raise RuntimeError(f"torchode ended with status {int(sol.status.max())}")
        ys = sol.ys[:, 1:].transpose(0, 1).unflatten(2, problem.y0.shape[1:])
        return ys, {"nfe": sol.stats["n_f_evals"], "accepted": sol.stats["n_accepted"]}

    note = "one step size for all systems" if joint else "each sample has its own steps"
    inputs = (y0, *problem.weights.values(), *f.rates)
    return torch_solver(problem, solve, inputs, note if joint == field.per_sample else "")
