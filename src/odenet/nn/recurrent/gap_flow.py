"""A hidden state between observations: the flow of a field over gaps of each sample's own."""

from __future__ import annotations

from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...api.solve import Solver

# so short a solve is done sooner than the tape of the default gradient is set up
_DEFAULTS: dict[str, Any] = {"method": "midpoint", "step": 0.5, "gradient": "backprop"}


class GapFlow(nn.Module):
    """h(t1), h(t2), ... where dh/dt = field(t, h) from h(t0), for times of each sample's own.

    All samples share one solve, in a variable u that counts the gaps: between t_j and t_(j+1) the equation is dh/du =
    (t_(j+1) - t_j) field(t, h). A gap of no length changes nothing. solve_options: of `odenet.solve` in u, in which
    every gap has length 1; by default two midpoint steps a gap, with gradient="backprop". The field is called as
    field(t, h) with t (B,), h (B, H).
    """

    def __init__(self, field: nn.Module, **solve_options: Unpack[SolveOptions]) -> None:
        super().__init__()
        self.field = field
        chosen = {"rtol", "atol", "step", "controller"} & solve_options.keys()
        self.solve_options = cast(SolveOptions, solve_options if chosen else _DEFAULTS | solve_options)
        self._over_one = Solver(self._slope, **self.solve_options)

    def forward(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """h at t1: (B, H), from h (B, H); t0, t1: (B,)."""
        if not len(h):  # a batch of no samples, which solve refuses
            return h
        ends = torch.tensor([0.0, 1.0], dtype=h.dtype, device=h.device)
        return self._over_one(h, ends, (t0, t1 - t0)).y1

    def trajectory(self, h: Tensor, t0: Tensor, ts: Tensor) -> Tensor:
        """h at ts (B, Q): (B, Q, H)."""
        states: list[Tensor] = []
        for t in ts.unbind(1):
            h = self(h, t0, t)
            states.append(h)
            t0 = t
        return torch.stack(states, 1)

    def _slope(self, u: Tensor, h: Tensor, t0: Tensor, gap: Tensor) -> Tensor:
        return gap[:, None] * self.field(t0 + u * gap, h)
