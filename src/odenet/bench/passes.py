"""One forward, or forward and backward, pass, of whichever library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """gradients: gives those to y0 and the weights, in the order of the parameters. stats: counts of the solve.

    values: gives the solution at the output times after the first, (T, B, ...), where it is asked for.
    """

    gradients: Callable[[], list[Tensor]]
    stats: Mapping[str, Any]
    values: Callable[[], Tensor] | None = None

    def flat(self) -> Tensor:
        return torch.cat([x.detach().cpu().flatten() for x in self.gradients()])


Call = Callable[[], Pass]
Start = Callable[[], Call]  # prepares: imports, copies weights
