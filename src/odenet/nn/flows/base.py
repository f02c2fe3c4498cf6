"""The base distribution of a flow; None stands for the standard normal."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...core.validate import describe
from ..call_order import takes
from .batches import event_size


def checked_base(base: Any) -> Any:
    """The base itself: None, a distribution of whole samples, or a function that gives one for a context."""
    if base is None or (callable(base) and not isinstance(base, (Distribution, type))):
        return base
    if not isinstance(base, Distribution):
        raise TypeError(
            "base must be a torch.distributions.Distribution, a module that gives one for a context, or None; "
            f"got {describe(base)}"
        )
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
        if of_field is not None and shape[-1:] != of_field:
            raise ValueError(f"the field is of dim={dim}, and event_shape={shape}")
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
    base: Any,
    event: tuple[int, ...],
    count: int,
    args: tuple[Tensor, ...],
    like: Tensor | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples of the base (count, *event). like: gives the dtype, and the device of the standard normal.

    Raises ValueError where the base needs a gradient, which samples without `rsample` do not have.
    """
    if base is None:
        like = torch.empty(0) if like is None else like
        return torch.randn(count, *event, dtype=like.dtype, device=like.device, generator=generator)
    distribution = _distribution(base, args)
    shape = torch.Size(() if distribution.batch_shape else (count,))
    with _seeded(generator):
        z = distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
    z = z if like is None else z.to(like.dtype)
    if torch.is_grad_enabled() and not distribution.has_rsample and distribution.log_prob(z).requires_grad:
        raise ValueError(
            f"base needs a gradient, and a {type(distribution).__name__} has no rsample: its samples have none. Take a "
            "base with rsample, fix its parameters, or use sample"
        )
    return z


@contextmanager
def _seeded(generator: torch.Generator | None) -> Generator[None]:
    """Distributions of PyTorch draw from the global state: seeded by the generator, and restored."""
    if generator is None:
        yield
        return
    devices = [generator.device] if generator.device.type == "cuda" else []
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _distribution(base: Any, args: tuple[Tensor, ...]) -> Distribution:
    if isinstance(base, Distribution):
        return base
    if not takes(base, len(args)):
        raise TypeError(
            "base is called with the context, as base(context), and takes none"
            if args
            else "base is called as base(), without a context, and needs one: give context= (FlowMatching gives none)"
        )
    found: Any = base(*args)
    if not isinstance(found, Distribution):
        raise TypeError(f"base must give a torch.distributions.Distribution when it is called; got {describe(found)}")
    return found
