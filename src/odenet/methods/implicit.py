"""The one implicit Runge-Kutta step."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, forward_mode, moved, spread_over
from ..core.rows import Rows
from .base import Field, Method, Step
from .implicit_tableau import ImplicitTableau
from .newton import attached, newton
from .stages import Equations


@final
class ImplicitRK(Method):
    """An implicit Runge-Kutta method given by its tableau. Hairer & Wanner II, IV.8 and, for diagonal ones, IV.6.

    The stages of a step are found by Newton's method to rounding, and differentiated by the implicit function theorem,
    to second derivatives.
    Systems of few unknowns are factorised, larger ones solved without a matrix by GMRES: then with per_sample a
    sample's last bits depend on those beside it. max_iters: of Newton's method, in a step; beyond, it warns.
    """

    error_order = None
    derivatives = 1

    def __init__(self, tableau: ImplicitTableau, max_iters: int = 100) -> None:
        if isinstance(max_iters, bool) or not isinstance(max_iters, int) or max_iters < 1:
            raise ValueError(f"max_iters must be an int of at least 1; got {max_iters!r}")
        self.tableau, self.max_iters = tableau, max_iters
        self.name, self.order, self.stages = tableau.name, tableau.order, tableau.stages

    def __repr__(self) -> str:
        return f"ImplicitRK({self.name})"

    def smooth(self) -> ImplicitRK:
        other = copy.copy(self)
        other.derivatives = 2
        return other

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return ()

    def step(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> Step:
        table, rows = self.tableau, Rows(y, t0.ndim == 1)
        times = [t0 if c == 0.0 else t1 if c == 1.0 else t0 + c * (t1 - t0) for c in table.c]
        dt = (t1 - t0).to(rows.dtype).reshape(-1, 1)
        start = rows.join(y)
        first = f(t0, y)  # the first stage of some, and where the iteration of all the others begins
        guess = rows.join(first).detach()
        slopes: list[Tensor] = []
        for block in table.blocks:
            i = block[0]
            base = [self._partial(start, dt, table.a[k], slopes) for k in block]
            if len(block) == 1 and table.a[i][i] == 0.0:
                known = first if table.c[i] == 0.0 else f(times[i], rows.part(base[0]))
                slopes.append(rows.join(known))
                continue
            square = [[table.a[k][j] for j in block] for k in block]
            equations = Equations(f, rows, [times[k] for k in block], base, dt, square)
            x = newton(equations, torch.stack([guess] * len(block), 1), start.detach(), self.max_iters, self.name)
            if torch.is_grad_enabled() or forward_mode():
                x = attached(equations, x, self.derivatives)
            slopes.extend(x.unbind(1))
        return Step(moved(y, spread_over(t1 - t0, y), table.b, [rows.part(k) for k in slopes]), (), ())

    def error(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Leaves | None:
        return None

    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        return hermite(spread_over(t1 - t0, y), y, step.y, f(t0, y), f(t1, step.y))

    @staticmethod
    def _partial(start: Tensor, dt: Tensor, row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
        """What a stage starts from: y and the stages before its block."""
        for c, k in zip(row, slopes, strict=False):
            if c != 0.0:
                start = start + dt * (c * k)
        return start
