"""SciPy's solve_ivp in float64, without gradients, on fields that NumPy evaluates about as fast as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

from .contender import Output, Solver
from .problems import Problem


def numpy_field(problem: Problem) -> Callable[[float, Any], Any]:
    """Return f in NumPy, on the flat state."""
    shape = tuple(problem.y0.shape)
    args = [x.detach().cpu().double().numpy() for x in problem.args]
    weights = {name: x.detach().cpu().double().numpy() for name, x in problem.weights.items()}

    def lotka(t: float, y: Any) -> Any:
        (r,) = args
        prey, predators = y.reshape(shape).T
        meetings = prey * predators
        return np.stack([r[:, 0] * prey - r[:, 1] * meetings, r[:, 2] * meetings - r[:, 3] * predators], 1).ravel()

    def spiral(t: float, y: Any) -> Any:
        cube = y.reshape(shape) ** 3
        inner = np.tanh(cube @ weights["net.0.weight"].T + weights["net.0.bias"])
        return (cube @ weights["A"] + 0.1 * (inner @ weights["net.2.weight"].T + weights["net.2.bias"])).ravel()

    return {"lotka": lotka, "spiral": spiral}[problem.field.kind]


def start(problem: Problem) -> Solver:
    f, tolerance = numpy_field(problem), problem.field.tolerance
    y0, ts = problem.y0.detach().cpu().double().flatten().numpy(), problem.ts.cpu().double().numpy()

    def forward() -> Output:
        sol = solve_ivp(f, (ts[0], ts[-1]), y0, "RK45", ts[1:], rtol=tolerance, atol=tolerance)
        ys = torch.from_numpy(sol.y.T.copy()).view(-1, *problem.y0.shape)
        return Output({"nfe": sol.nfev}, lambda: ys)

    note = "float64, no gradient"
    return Solver(forward, None, f"{note}; one step size for all systems" if problem.field.per_sample else note)
