"""scipy_solver: the forward solve by SciPy's solve_ivp, the gradient by the continuous adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch

from ...core.leaves import Leaves
from ...core.status import Status
from ...engine.advance import State
from ...engine.integrate import NumericalSolution, Request
from ...engine.loop import Outcome
from ...engine.problem import Problem
from ...gradients import Adjoint, ContinuousAdjoint
from ...gradients.adjoint_field import AdjointField
from ...gradients.continuous_adjoint import AdjointSolve
from ...gradients.gradient import Stats, Trajectory, direct
from ...methods.state_matrix import StateMatrix


@final
class SciPy(ContinuousAdjoint):
    """A gradient whose forward solve is SciPy's. options: those of torchdiffeq's scipy_solver."""

    name = "scipy_solver"

    def __init__(self, options: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.solver = options.get("solver", "LSODA")
        self.limits = {key: options[key] for key in ("min_step", "max_step") if key in options}

    def run(self, p: Problem, request: Request) -> Trajectory:
        if direct():
            with torch.no_grad():
                found = self._solved(p.detached())
            return Trajectory(found.ys, found.y1, None, found.outcome, Stats.of(found.outcome))
        return super().run(p, request)

    def forwards(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        return self._solved(q), lambda captured: AdjointSolve(Adjoint(**vars_of(self)), q, AdjointField(q.f, captured))

    def _solved(self, q: Problem) -> NumericalSolution:
        try:
            from scipy.integrate import solve_ivp
        except ImportError:
            raise ImportError("method='scipy_solver' needs SciPy: pip install scipy") from None
        rows = StateMatrix(q.y0, False)
        before = q.f.calls

        def f(t: float, y: np.ndarray) -> np.ndarray:
            state = rows.part(torch.as_tensor(y, dtype=rows.dtype, device=q.ts.device)[None])
            return rows.join(q.f(q.ts.new_tensor(t), state))[0].cpu().numpy().astype(np.float64)

        rtol, atol = (self._flat(tol, q.y0, rows) for tol in (q.rtol, q.atol))
        ts = q.ts.cpu().numpy()
        start = rows.join(q.y0)[0].cpu().numpy().astype(np.float64)
        # min_step is LSODA's alone, and the others warn of it
        limits = {k: v for k, v in self.limits.items() if k == "max_step" or self.solver == "LSODA"}
        found: Any = solve_ivp(f, (ts[0], ts[-1]), start, self.solver, ts, rtol=rtol, atol=atol, **limits)
        if not found.success:
            raise AssertionError(
                f"SciPy's {self.solver} failed at t={found.t[-1] if len(found.t) else ts[0]!r}: {found.message}"
            )
        values = torch.as_tensor(found.y.T.copy(), dtype=rows.dtype, device=q.ts.device)
        ys = rows.part(values[:, None])
        y1 = tuple(y[-1] for y in ys)
        state = State(float(ts[-1]), q.ts[-1], 1.0, y1, (), (), 0, False, int(Status.SUCCESS), (), False)
        return NumericalSolution(ys, y1, None, Outcome(state, q.f.calls - before, len(found.t) - 1, 0))

    @staticmethod
    def _flat(tol: Any, y0: Leaves, rows: StateMatrix) -> float | np.ndarray:
        """One number where it is one (the implicit solvers take no more for rtol), else an array."""
        if all(isinstance(x, float) for x in tol) and len(set(tol)) == 1:
            return tol[0]
        full = [
            torch.as_tensor(x, dtype=torch.float64).expand(y.shape).to(y.device) for x, y in zip(tol, y0, strict=True)
        ]
        pairs = tuple(torch.complex(x, x) if y.is_complex() else x for x, y in zip(full, y0, strict=True))
        return rows.join(pairs)[0].cpu().numpy().astype(np.float64)


def vars_of(how: ContinuousAdjoint) -> dict[str, Any]:
    """The settings of the backward solve."""
    names = ("rtol", "atol", "method", "norm", "controller", "max_steps", "callbacks")
    return {name: getattr(how, name) for name in names}
