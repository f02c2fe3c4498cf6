"""A hidden state between observations: the flow of a field over gaps of each sample's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...api.solve import Solver
from ...core.validate import function_of
from ..layer import layer_times

# so short a solve is done sooner than the tape of the default gradient is set up
_DEFAULTS: dict[str, Any] = {"method": "midpoint", "step": 0.5, "gradient": "backprop"}
_MOST_PARTS = 1000


class GapFlow(nn.Module):
    """h(t1), h(t2), ... where dh/dt = field(t, h) from h(t0), for times of each sample's own.

    All samples are in one solve, in a variable u that counts the gaps: between t_j and t_(j+1) the equation is dh/du =
    (t_(j+1) - t_j) field(t, h). A gap of no length changes nothing. solve_options: of `odenet.solve` in u, in which
    every gap has length 1. Without rtol, atol or controller the steps are constant, by default method="midpoint",
    step=0.5, gradient="backprop"; with one of them all other defaults are those of `odenet.solve`. All samples then
    share their steps, unless per_sample=True. longest: where neither they nor `step` are given, a longer gap is solved
    in equal parts of at most this length, whatever the other samples' gaps are. The field is called as field(t, h) with
    t (B,), h (B, H).
    """

    def __init__(self, field: nn.Module, longest: float = 0.1, **solve_options: Unpack[SolveOptions]) -> None:
        super().__init__()
        self.field = function_of("field", field, "field(t, h)", 2)
        adaptive = {"rtol", "atol", "controller"} & solve_options.keys()
        self.longest = math.inf if adaptive or "step" in solve_options else longest
        self.solve_options = cast(SolveOptions, solve_options if adaptive else _DEFAULTS | solve_options)
        self._over_one = Solver(self._slope, **self.solve_options)

    def forward(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """h at t1: (B, H), from h (B, H); t0, t1: (B,)."""
        if not h.numel():  # a solve needs a state
            return h
        ends, gap = layer_times((0.0, 1.0), h.dtype, h.device), t1 - t0
        for begin, part in self._parts(gap):
            h = self._over_one(h, ends, (t0 + begin, part)).y1
        return h

    def _parts(self, gap: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the parts of the gaps (B,) begin, and how long they are; a sample with fewer has some of no length."""
        count = (gap.detach().abs() / self.longest).ceil().clamp(min=1.0)
        most = float(count.max())
        if most > _MOST_PARTS:
            raise ValueError(
                f"a gap is {float(gap.detach().abs().max()):.4g} long in the scale of the model, in which the training "
                "data run from 0 to 1: call fit_normalizer with data that are about as long, ask for no ts that far "
                "from the rows, or give rtol= or step= of a solve"
            )
        for k in range(int(most)):
            begin, end = (k / count).clamp(max=1.0), ((k + 1) / count).clamp(max=1.0)
            yield begin * gap, (end - begin) * gap

    def trajectory(self, h: Tensor, t0: Tensor, ts: Tensor) -> Tensor:
        """h at ts (B, Q): (B, Q, H)."""
        states: list[Tensor] = []
        for t in ts.unbind(1):
            h = self(h, t0, t)
            states.append(h)
            t0 = t
        return torch.stack(states, 1) if states else h.new_zeros(len(h), 0, h.shape[1])

    def _slope(self, u: Tensor, h: Tensor, t0: Tensor, gap: Tensor) -> Tensor:
        return gap[:, None] * self.field(t0 + u * gap, h)
