"""The base distribution of a flow; None stands for the standard normal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ...core.validate import describe
from .batches import event_size


def checked_base(base: Any) -> Any:
    """The base itself: None, a distribution of whole samples, or a module that gives one for a context."""
    if base is None or (isinstance(base, nn.Module) and not isinstance(base, Distribution)):
        return base
    if not isinstance(base, Distribution):
        raise TypeError(f"base must be a torch.distributions.Distribution, or None; got {describe(base)}")
    if not base.event_shape:
        raise ValueError(
            f"base must be a distribution of whole samples: its event_shape is () and its batch_shape "
            f"{tuple(base.batch_shape)}; wrap it, as in torch.distributions.Independent(base, 1)"
        )
    if base.batch_shape:
        raise ValueError(f"base must be one distribution; its batch_shape is {tuple(base.batch_shape)}")
    return base


def first_event_shape(given: Any, base: Any, field: Any) -> tuple[int, ...] | None:
    """The event shape as far as it is known without data."""
    dim = getattr(field, "dim", None)
    of_field = (dim,) if isinstance(dim, int) and not isinstance(dim, bool) else None
    of_base = tuple(base.event_shape) if isinstance(base, Distribution) else None
    if given is not None:
        shape = event_size(given)
        if of_base not in (None, shape):
            raise ValueError(f"event_shape={shape} is not that of the base, {of_base}")
        return shape
    if of_base is not None and of_field is not None and of_base[-1:] != of_field:
        raise ValueError(f"the field is of dim={dim}, and the base has events of shape {of_base}")
    return of_base or of_field


def base_log_prob(base: Any, z: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    """log-density of z (B, *event) under the base, (B,). args: the context."""
    if base is None:
        flat = z.flatten(1)
        return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2.0 * math.pi)
    log_prob = _distribution(base, args).log_prob(z)
    if log_prob.shape != z.shape[:1]:
        raise ValueError(
            f"base must give one log-density for each sample; its log_prob of shape {tuple(z.shape)} has shape "
            f"{tuple(log_prob.shape)}: wrap it, as in torch.distributions.Independent(base, 1)"
        )
    return log_prob


def base_samples(
    base: Any, event: tuple[int, ...], count: int, args: tuple[Tensor, ...], like: Tensor | None
) -> Tensor:
    """Samples of the base (count, *event). like: gives dtype and device of the standard normal."""
    if base is None:
        like = torch.empty(0) if like is None else like
        return torch.randn(count, *event, dtype=like.dtype, device=like.device)
    distribution = _distribution(base, args)
    shape = torch.Size(() if distribution.batch_shape else (count,))
    return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)


def _distribution(base: Any, args: tuple[Tensor, ...]) -> Distribution:
    return base if isinstance(base, Distribution) else base(*args)
