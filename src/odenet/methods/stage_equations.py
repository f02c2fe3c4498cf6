"""The equations of the coupled stages of an implicit step.

With the slopes X = (k_1 ... k_m) as rows, (B, m, n), and F_i(X) = f(t_i, base_i + dt sum_j a_ij k_j), the equations are
X = F(X). The derivative of X - F(X) is M = I - dt (a_ij J_i), with J_i the Jacobian df/dy at stage i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..core.leaves import forward_mode
from .matrix_layout import MatrixLayout
from .method import Field


@dataclass
class StageEquations:
    """X = F(X) for m stages.

    layout: of the state as a matrix (B, n). times: of the stages, () or (B,) each. base: the terms that do not depend
    on X in the states of the stages, (B, n) each. dt: (B, 1). a: the m x m block of the tableau.
    """

    f: Field
    layout: MatrixLayout
    times: list[Tensor]
    base: list[Tensor]
    dt: Tensor
    a: Sequence[Sequence[float]]

    def detached(self) -> StageEquations:
        """The same equations without autograd graph and without forward-mode tangents."""

        def primal(x: Tensor) -> Tensor:
            return forward_ad.unpack_dual(x).primal.detach() if forward_mode() else x.detach()

        times, base = [primal(t) for t in self.times], [primal(y) for y in self.base]
        return replace(self, times=times, base=base, dt=primal(self.dt))

    def increments(self, x: Tensor) -> Tensor:
        """z_i = dt sum_j a_ij x_j, (B, m, n)."""
        if len(self.a) == 1:
            return self.dt[..., None] * self.a[0][0] * x
        return self.dt[..., None] * (x.new_tensor(self.a)[None, :, :, None] * x[:, None]).sum(2)

    def slopes_of_increments(self, z: Tensor, default: Tensor) -> Tensor:
        """The X with `increments(X)` = z; `default` for samples with dt = 0. All (B, m, n)."""
        inverse = torch.linalg.inv(torch.tensor(self.a, dtype=torch.float64)).to(z)
        nonzero = self.dt[..., None] != 0
        x = (inverse[None, :, :, None] * z[:, None]).sum(2) / torch.where(nonzero, self.dt[..., None], 1.0)
        return torch.where(nonzero, x, default)

    def states(self, x: Tensor) -> list[Tensor]:
        """y_i = base_i + dt sum_j a_ij x_j, (B, n) each."""
        states: list[Tensor] = []
        for base, row in zip(self.base, self.a, strict=True):
            total = sum(k * c for k, c in zip(x.unbind(1), row, strict=True) if c != 0.0)
            states.append(base + self.dt * total)
        return states

    def slopes(self, states: Sequence[Tensor]) -> list[Tensor]:
        """f(t_i, y_i), (B, n) each."""
        return [
            self.layout.to_matrix(self.f(t, self.layout.to_leaves(y))) for t, y in zip(self.times, states, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """F(X), (B, m, n)."""
        return torch.stack(self.slopes(self.states(x)), 1)

    def evaluate_with_graph(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The states, as leaves of a new graph, and the slopes, with a graph from each state to its slope."""
        with torch.enable_grad():
            states = [y.detach().requires_grad_() for y in self.states(x)]
            return states, self.slopes(states)

    def transposed_product(self, vjps: Sequence[Tensor | None], w: Tensor) -> Tensor:
        """M^T w, (B, m, n), from the VJPs J_i^T w_i, (B, n) each."""
        columns: list[Tensor] = []
        for j, w_j in enumerate(w.unbind(1)):
            total: Tensor | None = None
            for vjp, row in zip(vjps, self.a, strict=True):
                if row[j] != 0.0 and vjp is not None:
                    total = vjp * row[j] if total is None else total + vjp * row[j]
            columns.append(w_j if total is None else w_j - self.dt * total)
        return torch.stack(columns, 1)
