"""One of the solves from event to event."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .gradients.base import Trajectory


@dataclass
class Leg:
    """One of the solves: from `start` to `end`, lanes, of those samples that were `going`."""

    found: Trajectory
    start: Tensor
    end: Tensor
    going: Tensor
