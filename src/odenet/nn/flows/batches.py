"""Samples and contexts of a flow in one batch: (..., *event) as (B, *event), and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.torch_func import all_true, transforming
from ...core.validate import describe, integer

_PRECISE = (torch.float32, torch.float64)


class OfEvents(nn.Module):
    """Base of flows: the event shape is given, or that of the first samples seen."""

    _event_shape_known: tuple[int, ...] | None

    @property
    def known_event_shape(self) -> tuple[int, ...]:
        """The event shape. Raises ValueError before it is known."""
        if self._event_shape_known is None:
            raise ValueError(
                "event_shape is unknown before the flow has seen data: give event_shape=(D,), or a base that has it"
            )
        return self._event_shape_known


def event_size(shape: Any) -> tuple[int, ...]:
    """event_shape as a tuple of sizes."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape) if isinstance(shape, (tuple, list)) else None
    if not sizes:
        raise TypeError(f"event_shape must be the shape of one sample, such as (2,); got {describe(shape)}")
    return tuple(integer("event_shape", n) for n in sizes)


def event_shape_of(x: Any, known: tuple[int, ...] | None, name: str = "x") -> tuple[int, ...]:
    """The event shape of x: the known one, or the last axis of vectors (B, D) or (D,)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of samples; got {describe(x)}")
    if known is None:
        if x.ndim not in (1, 2):
            raise ValueError(
                f"event_shape is unknown: {name} of shape {tuple(x.shape)} is no batch of vectors; give event_shape= "
                "to the constructor, or a base distribution that has it"
            )
        return tuple(x.shape[-1:])
    if tuple(x.shape[x.ndim - len(known) :]) != known or x.ndim < len(known):
        raise ValueError(f"{name} must end in the flow's event shape {known}; got shape {tuple(x.shape)}")
    return known


def check_samples(x: Tensor, network: Any, name: str = "x") -> None:
    """Raise for samples in a dtype that holds no log-density, of another dtype than the network, or not finite."""
    if x.dtype not in _PRECISE:
        cure = "convert it, and take torch.autocast for speed" if x.is_floating_point() else f"use {name}.float()"
        raise TypeError(f"{name} must be float32 or float64; got {x.dtype}: {cure}")
    own = parameter_like(network)
    if own is not None and own.dtype != x.dtype and own.is_floating_point():
        raise TypeError(f"{name} is {x.dtype} and the field's parameters are {own.dtype}: convert one of them")
    if x.numel() == 0:
        raise ValueError(f"{name} has no samples; got shape {tuple(x.shape)}")
    finite = torch.isfinite(x.detach())
    if not all_true(finite):
        where = "" if transforming() else f" at index {tuple((~finite).nonzero()[0].tolist())}"
        raise ValueError(f"{name} holds NaN or infinity{where}: a density has no value there; remove such samples")


def sample_size(shape: Any) -> torch.Size:
    """sample_shape as a size."""
    sizes = (shape,) if isinstance(shape, int) else shape
    if not isinstance(sizes, (tuple, list)) or not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError(f"sample_shape must be a number of samples, or a shape such as (100,); got {describe(shape)}")
    return torch.Size(sizes)


def parameter_like(network: Any) -> Tensor | None:
    """A parameter of the network, for its dtype and device."""
    return next(network.parameters(), None) if isinstance(network, nn.Module) else None


def batch_of_context(
    context: Any, batch: torch.Size, dtype: torch.dtype | None
) -> tuple[torch.Size, tuple[Tensor, ...]]:
    """The batch shape with the context's, and the context with a row for each sample, in a tuple; () for None.

    dtype: of the samples, which a real context is converted to.

    A context has the batch's axes in front (features, sequences, or nothing for labels), or is a vector of features
    (..., C) whose axes in front broadcast with the batch. A floating (C,) belongs to all samples.
    """
    if context is None:
        return batch, ()
    if not isinstance(context, Tensor):
        raise TypeError(f"context must be a tensor; got {describe(context)}")
    labels = not (context.is_floating_point() or context.is_complex())
    if context.is_floating_point() and dtype is not None:
        context = context.to(dtype)
    front = len(batch)
    if front and context.ndim >= front + (not labels) and context.shape[:front] == batch:
        return batch, (context.reshape(-1, *context.shape[front:]),)
    feature = context.shape[:0] if labels else context.shape[-1:]
    try:
        whole = torch.broadcast_shapes(batch, context.shape[: context.ndim - len(feature)])
    except RuntimeError:
        raise ValueError(
            f"context of shape {tuple(context.shape)} does not fit samples of batch shape {tuple(batch)}: give one row "
            "for each sample, or one for all"
        ) from None
    return whole, (context.expand(whole + feature).reshape(-1, *feature),)
