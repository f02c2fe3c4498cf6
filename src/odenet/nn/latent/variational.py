"""Terms of variational bounds, for a normal q of z0 and the prior N(0, I)."""

from __future__ import annotations

from math import inf, log

from torch import Tensor
from torch.distributions import Normal

from ...core.validate import integer, number


def kl_warmup(step: int, steps: int) -> float:
    """Weight of the divergence at a step of training: it rises evenly from 0 to 1, which it has from `steps` on.

    Bowman et al. 2016, "Generating sentences from a continuous space", section 3.1.
    """
    return min(1.0, integer("step", step, 0) / integer("steps", steps))


def checked_weight(kl_weight: float) -> float:
    """The weight of the divergence in a bound, finite and at least 0."""
    if not 0.0 <= number("kl_weight", kl_weight) < inf:
        raise ValueError(f"kl_weight must be a finite number, at least 0; got {kl_weight}")
    return kl_weight


def kl_to_standard_normal(q: Normal) -> Tensor:
    """KL(q | N(0, I)), summed over the last axis."""
    return (0.5 * (q.mean.square() + q.variance - 1.0) - q.stddev.log()).sum(-1)


def log_ratio_to_prior(q: Normal, z: Tensor) -> Tensor:
    """log N(z; 0, I) - log q(z), summed over the last axis."""
    u = (z - q.mean) / q.stddev
    return (0.5 * (u.square() - z.square()) + q.stddev.log()).sum(-1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """Log of the mean weight along the first axis. Burda et al. 2016, "Importance weighted autoencoders", eq. 8."""
    return log_weights.logsumexp(0) - log(len(log_weights))
