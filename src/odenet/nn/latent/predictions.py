"""What a latent ODE says about values at given times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictive distribution at times, in the units of the data; that of the prior has no axis B.

    ts: (B, Q). mean, std: (B, Q, C), of values as they would be observed, noise included. samples: (S, B, Q, C), such
    values; those of one number belong to one latent path. paths: (S, B, Q, C), the samples without noise. levels,
    quantiles: (levels, B, Q, C), exact for the S paths.
    """

    ts: Tensor
    mean: Tensor
    std: Tensor
    samples: Tensor
    paths: Tensor
    levels: tuple[float, ...]
    quantiles: Tensor
