"""Features of a time, for attention."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ...core.validate import boolean, integer

_PERIODS = 2.0, 1 / 32  # the longest and the shortest, in times scaled to [0, 1]


@final
class TimeFeatures(nn.Module):
    """A time as (..., size) numbers: one linear in it, the others sines. Shukla and Marlin 2021, section 3.1.

    Frequencies are in geometric progression, in pairs with phases a quarter turn apart. learned: they are where
    training begins; False: they stay.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, size: int, learned: bool = True) -> None:
        super().__init__()
        ratio = torch.arange(integer("size", size)) // 2 / max(1, (size - 1) // 2)
        longest, shortest = _PERIODS
        frequency = 2 * math.pi / longest * (longest / shortest) ** ratio
        phase = torch.arange(size) % 2 * (math.pi / 2)
        frequency[0] = 1.0
        for name, value in (("frequency", frequency), ("phase", phase)):
            if boolean("learned", learned):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None] * self.frequency + self.phase
        return torch.cat([angle[..., :1], angle[..., 1:].sin()], -1)
