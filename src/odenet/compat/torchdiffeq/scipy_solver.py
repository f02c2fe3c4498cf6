"""scipy_solver: the forward solve by SciPy's solve_ivp, the gradient by the continuous adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch

from ...core.leaves import Leaves
from ...core.status import Status
from ...engine.integrate import NumericalSolution, Request
from ...engine.loop import Outcome
from ...engine.problem import Problem
from ...engine.step_attempt import State
from ...gradients import Adjoint, ContinuousAdjoint
from ...gradients.adjoint_field import AdjointField
from ...gradients.continuous_adjoint import AdjointSolve
from ...gradients.gradient import Stats, Trajectory, gradient_bypassed
from ...methods.matrix_layout import MatrixLayout

if TYPE_CHECKING:
    import numpy as np  # comes with SciPy: this module is imported where neither is installed


@final
class SciPy(ContinuousAdjoint):
    """A gradient whose forward solve is SciPy's. options: those of torchdiffeq's scipy_solver."""

    name = "scipy_solver"

    def __init__(self, options: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.solver = options.get("solver", "LSODA")
        self.limits = {key: options[key] for key in ("min_step", "max_step") if key in options}

    def run(self, p: Problem, request: Request) -> Trajectory:
        if gradient_bypassed():
            with torch.no_grad():
                result = self._solve_ivp(p.detached())
            return Trajectory(result.ys, result.y1, None, result.outcome, Stats.from_outcome(result.outcome))
        return super().run(p, request)

    def solve_forward(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        return self._solve_ivp(q), lambda captured: AdjointSolve(
            Adjoint(**backward_settings(self)), q, AdjointField(q.f, captured)
        )

    def _solve_ivp(self, q: Problem) -> NumericalSolution:
        try:
            from scipy.integrate import solve_ivp
        except ImportError:
            raise ImportError("method='scipy_solver' needs SciPy: pip install scipy") from None
        matrix = MatrixLayout(q.y0, False)
        before = q.f.calls

        def f(t: float, y: np.ndarray) -> np.ndarray:
            state = matrix.to_leaves(torch.as_tensor(y, dtype=matrix.dtype, device=q.ts.device)[None])
            return matrix.to_matrix(q.f(q.ts.new_tensor(t), state))[0].cpu().double().numpy()

        rtol, atol = (self._flat(tol, q.y0, matrix) for tol in (q.rtol, q.atol))
        ts = q.ts.cpu().numpy()
        start = matrix.to_matrix(q.y0)[0].cpu().double().numpy()
        # only LSODA has min_step; other solvers warn about it
        limits = {k: v for k, v in self.limits.items() if k == "max_step" or self.solver == "LSODA"}
        result: Any = solve_ivp(f, (ts[0], ts[-1]), start, self.solver, ts, rtol=rtol, atol=atol, **limits)
        if not result.success:
            raise AssertionError(
                f"SciPy's {self.solver} failed at t={result.t[-1] if len(result.t) else ts[0]!r}: {result.message}"
            )
        values = torch.as_tensor(result.y.T.copy(), dtype=matrix.dtype, device=q.ts.device)
        ys = matrix.to_leaves(values[:, None])
        y1 = tuple(y[-1] for y in ys)
        state = State(float(ts[-1]), q.ts[-1], 1.0, y1, (), (), 0, False, int(Status.SUCCESS), (), False)
        return NumericalSolution(ys, y1, None, Outcome(state, q.f.calls - before, len(result.t) - 1, 0))

    @staticmethod
    def _flat(tol: Any, y0: Leaves, matrix: MatrixLayout) -> float | np.ndarray:
        """One number if all tolerances are equal (for rtol, implicit solvers accept nothing else), else an array."""
        if all(isinstance(x, float) for x in tol) and len(set(tol)) == 1:
            return tol[0]
        full = [
            torch.as_tensor(x, dtype=torch.float64).expand(y.shape).to(y.device) for x, y in zip(tol, y0, strict=True)
        ]
        pairs = tuple(torch.complex(x, x) if y.is_complex() else x for x, y in zip(full, y0, strict=True))
        return matrix.to_matrix(pairs)[0].cpu().double().numpy()


def backward_settings(gradient: ContinuousAdjoint) -> dict[str, Any]:
    """The settings of the backward solve, as arguments of `Adjoint`."""
    names = ("rtol", "atol", "method", "norm", "controller", "max_steps", "callbacks")
    return {name: getattr(gradient, name) for name in names}
