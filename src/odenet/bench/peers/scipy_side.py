"""SciPy's solve_ivp, where the field is small enough for NumPy to be a fair way to write it: no gradient, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..fields import Problem
from ..passes import Pass
from ..results import DoesNotApplyError
from .runs import Contender, Runs


def _field(problem: Problem) -> Callable[[float, Any], Any]:
    """f in NumPy on the flat state."""
    shape = tuple(problem.y0.shape)
    if problem.field.kind == "lotka":
        r = problem.args[0].detach().cpu().double().numpy()

        def lotka(t: float, y: Any) -> Any:
            prey, predators = y.reshape(shape).T
            meetings = prey * predators
            return np.stack([r[:, 0] * prey - r[:, 1] * meetings, r[:, 2] * meetings - r[:, 3] * predators], 1).ravel()

        return lotka
    if problem.field.kind == "spiral":
        w = {name: x.detach().cpu().double().numpy() for name, x in problem.weights.items()}

        def spiral(t: float, y: Any) -> Any:
            cube = y.reshape(shape) ** 3
            inner = np.tanh(cube @ w["net.0.weight"].T + w["net.0.bias"])
            return (cube @ w["A"] + 0.1 * (inner @ w["net.2.weight"].T + w["net.2.bias"])).ravel()

        return spiral
    raise DoesNotApplyError("this field is not written in NumPy here")


def _start(problem: Problem) -> Runs:
    from scipy.integrate import solve_ivp

    f = _field(problem)
    y0, ts = problem.y0.detach().cpu().double().flatten().numpy(), problem.ts.cpu().double().numpy()
    tolerance = problem.field.tolerance

    def forward() -> Pass:
        sol = solve_ivp(f, (ts[0], ts[-1]), y0, "RK45", ts[1:], rtol=tolerance, atol=tolerance)
        ys = torch.from_numpy(sol.y.T.copy()).view(-1, *problem.y0.shape)
        return Pass(list, {"nfe": sol.nfev}, lambda: ys)

    note = "float64, no gradient"
    return Runs(forward, None, f"{note}; one step size for all systems" if problem.field.per_sample else note)


CONTENDERS = (Contender("SciPy solve_ivp RK45", _start, kinds=("lotka", "spiral")),)
