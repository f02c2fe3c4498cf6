"""The gated recurrent unit in continuous time."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ...core.validate import boolean, describe, integer, number


@final
class GRUField(nn.Module):
    """dh/dt = rate (1 - z) (g - h), with the gates r, z and the candidate g of a GRU. De Brouwer et al. 2019.

    A solution that begins in [-1, 1] stays there, and moves at most by 2 rate in a unit of time. In the paper rate is
    1: what that allows depends on the unit of time.

    hidden: size of h. inputs: a module that gives what the gates see beside h, (B, hidden) -> (B, width); None: h
    alone. width: of what it gives. minimal: one gate in the place of r and z (Zhou et al. 2016). Called as f(t, h) with
    h (..., hidden); t is not used.

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self, hidden: int, inputs: nn.Module | None = None, width: int = 0, minimal: bool = False, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.rate = positive("rate", rate)
        hidden, self.minimal = integer("hidden", hidden), boolean("minimal", minimal)
        width = integer("width", width, 1) if inputs is not None else 0
        self.inputs = inputs
        self.gates = nn.Linear(hidden + width, hidden if minimal else 2 * hidden)
        self.candidate = nn.Linear(hidden + width, hidden)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        given = [] if self.inputs is None else [self.inputs(h)]
        gates = torch.sigmoid(self.gates(torch.cat([h, *given], -1)))
        reset, keep = (gates, gates) if self.minimal else gates.chunk(2, -1)
        candidate = torch.tanh(self.candidate(torch.cat([reset * h, *given], -1)))
        return self.rate * (1 - keep) * (candidate - h)

    def extra_repr(self) -> str:
        return f"minimal={self.minimal}, rate={self.rate}"


def positive(name: str, value: float) -> float:
    """A positive, finite number."""
    result = number(name, value)
    if not 0 < result < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {describe(value)}")
    return result
