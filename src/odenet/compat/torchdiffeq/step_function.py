"""Fixed-step solver classes of other programs, with `_step_func(func, t0, dt, t1, y0) -> (dy, f0)`, as methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from ...core.leaves import Leaves
from ...methods.method import Field, Method, Step, StepInput
from .adjoint_norms import from_vector, to_vector
from .inputs import Inputs


@final
class StepFunctionMethod(Method):
    """A method whose step is that of another program's solver.

    The solver gets a tuple state as one vector, and times running forwards.
    """

    error_order = None

    def __init__(self, name: str, solver: Any) -> None:
        self.name, self.solver, self.order = name, solver, int(getattr(type(solver), "order", 1))

    @staticmethod
    def from_class(name: str, solver_class: Any, options: dict[str, Any], inputs: Inputs) -> StepFunctionMethod:
        if not isinstance(solver_class, type) or not hasattr(solver_class, "_step_func"):
            raise ValueError(
                f"SOLVERS[{name!r}] is {solver_class!r}: a custom solver must be a subclass of "
                "FixedGridODESolver that defines _step_func"
            )
        y0 = inputs.y0 if isinstance(inputs.y0, Tensor) else to_vector(inputs.y0)
        return StepFunctionMethod(
            name, solver_class(func=inputs.func, y0=y0, rtol=inputs.rtol, atol=inputs.atol, **options)
        )

    def step(self, at: StepInput) -> Step:
        vector = to_vector(at.y)
        sign = -1.0 if bool(at.t1 < at.t0) else 1.0
        func = self._func(at.f, at.y, sign)
        start, end = sign * at.t0, sign * at.t1
        dt = (end - start).to(vector.abs().dtype)
        increment, _ = self.solver._step_func(func, start, dt, end, vector)
        return Step(from_vector(vector + increment, at.y))

    def _func(self, f: Field, like: Leaves, sign: float) -> Callable[..., Tensor]:
        def func(t: Tensor, y: Tensor, *, perturb: Any = None) -> Tensor:
            slope = f(torch.as_tensor(sign * t), from_vector(y, like))
            return sign * to_vector(slope)

        return func
