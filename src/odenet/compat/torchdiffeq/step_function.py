"""Clients' own fixed-step solvers, classes with `_step_func(func, t0, dt, t1, y0) -> (dy, f0)`, as methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from ...core.dense import Coefficients, hermite
from ...core.leaves import Leaves, spread_over
from ...methods.base import Field, Method, Step
from .inputs import Inputs


@final
class ByStepFunction(Method):
    """One step by a client's solver, which sees a tuple as one vector, and time running forwards."""

    error_order = None

    def __init__(self, name: str, solver: Any) -> None:
        self.name, self.solver, self.order = name, solver, int(getattr(type(solver), "order", 1))

    @staticmethod
    def of(name: str, kind: Any, options: dict[str, Any], inputs: Inputs) -> ByStepFunction:
        if not isinstance(kind, type) or not hasattr(kind, "_step_func"):
            raise ValueError(
                f"method={name!r} stands for {kind!r} in SOLVERS: a solver of your own must be a subclass of "
                "FixedGridODESolver that defines _step_func"
            )
        y0 = inputs.y0 if isinstance(inputs.y0, Tensor) else _joined(inputs.y0)
        return ByStepFunction(name, kind(func=inputs.func, y0=y0, rtol=inputs.rtol, atol=inputs.atol, **options))

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return ()

    def step(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> Step:
        shown = y[0] if len(y) == 1 else _joined(y)
        sign = -1.0 if bool(t1 < t0) else 1.0
        func = self._func(f, y, sign)
        start, end = sign * t0, sign * t1
        dt = (end - start).to(shown.abs().dtype)
        rise, _ = self.solver._step_func(func, start, dt, end, shown)
        return Step(_parted(shown + rise, y), (), ())

    def _func(self, f: Field, like: Leaves, sign: float) -> Callable[..., Tensor]:
        def func(t: Tensor, y: Tensor, *, perturb: Any = None) -> Tensor:
            slope = f(torch.as_tensor(sign * t), _parted(y, like))
            return sign * (slope[0] if len(slope) == 1 else _joined(slope))

        return func

    def error(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Leaves | None:
        return None

    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        return hermite(spread_over(t1 - t0, y), y, step.y, f(t0, y), f(t1, step.y))


def _joined(y: Leaves) -> Tensor:
    return torch.cat([x.reshape(-1) for x in y])


def _parted(flat: Tensor, like: Leaves) -> Leaves:
    if len(like) == 1:
        return (flat,)
    parts = flat.split([x.numel() for x in like])
    return tuple(part.reshape(x.shape) for part, x in zip(parts, like, strict=True))
