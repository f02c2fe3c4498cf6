"""torchode: every sample has its own steps; states are (B, n)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..fields import Problem
from ..results import DoesNotApplyError
from .runs import Contender, Runs, torch_runs


class _Flat(nn.Module):
    """f on states (B, n), with everything differentiable among its parameters."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.f, self.shape = problem.f, problem.y0.shape[1:]
        self.rates = nn.ParameterList([nn.Parameter(x.detach()) for x in problem.args])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y.reshape(-1, *self.shape), *self.rates).flatten(1)


def _autodiff(problem: Problem) -> Runs:
    import torchode  # pyright: ignore[reportMissingImports]  (the extra `bench`)

    note = "" if problem.field.per_sample else "each sample has its own steps"
    return _start(problem, lambda term, step, control: torchode.AutoDiffAdjoint(step, control), note)


def _joint(problem: Problem) -> Runs:
    import torchode  # pyright: ignore[reportMissingImports]

    if len(problem.ts) > 2:
        raise DoesNotApplyError("its joint adjoint takes no output times between the ends")
    note = "one step size for all systems" if problem.field.per_sample else ""
    return _start(problem, torchode.JointBacksolveAdjoint, note)


def _start(problem: Problem, adjoint: Any, note: str) -> Runs:
    import torchode  # pyright: ignore[reportMissingImports]

    field, flat = problem.field, _Flat(problem)
    term = torchode.ODETerm(flat)
    control = torchode.IntegralController(field.tolerance, field.tolerance, term=term)
    solver = adjoint(term, torchode.Dopri5(term=term), control).to(problem.y0.device)
    y0: Any = problem.y0.detach().flatten(1).requires_grad_()
    ts: Any = problem.ts.expand(len(y0), -1)

    def solve() -> tuple[Tensor, Any]:
        sol = solver.solve(torchode.InitialValueProblem(y0=y0, t_eval=ts), term)
        if int(sol.status.max()) > 0:
            raise RuntimeError(f"torchode ended with status {int(sol.status.max())}")
        ys = sol.ys[:, 1:].transpose(0, 1).unflatten(2, problem.y0.shape[1:])
        return ys, {"nfe": sol.stats["n_f_evals"], "accepted": sol.stats["n_accepted"]}

    inputs = (y0, *problem.weights.values(), *flat.rates)
    return torch_runs(problem, solve, inputs, note)


CONTENDERS = (Contender("torchode", _autodiff), Contender("torchode joint backsolve", _joint))
