"""Batches of series: from packed rows, from other batches, and drawn for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape, integer
from .series import Series, checked_series
from .series_checks import check_kinds


def from_packed(
    t: Tensor,
    x: Tensor,
    length: Tensor,
    mask: Tensor | None = None,
    static: Tensor | None = None,
    channels: Sequence[str] | None = None,
    ids: Sequence[Any] | None = None,
) -> Series:
    """Series from the rows of all samples one after another, as `Series.packed` gives them.

    t: times, (N,), increasing within a sample. x: (N, C), NaN where missing. length: number of rows of each sample,
    (B,), N in all. mask: True where a value is observed, (N, C) or (N,). static, channels, ids: as `Series`.

    Raises TypeError and ValueError as `Series`, and where the lengths do not add up to N.
    """
    _check_packed(t, x, length, mask, static)
    size, rows = len(length), int(length.max()) if len(length) else 0
    inside = torch.arange(rows, device=t.device) < length[:, None]
    place = inside.nonzero(as_tuple=True)
    padded_mask = None if mask is None else mask.new_zeros(size, rows, *mask.shape[1:]).index_put(place, mask)
    return Series(
        t.new_zeros(size, rows).index_put(place, t),
        x.new_zeros(size, rows, x.shape[1]).index_put(place, x),
        padded_mask,
        length,
        static,
        channels,
        ids,
    )


def _check_packed(t: Any, x: Any, length: Any, mask: Any, static: Any) -> None:
    if length is None:
        raise TypeError("length must be a tensor of whole numbers; got None")
    check_kinds(t, x, mask, length, static)
    if x.ndim != 2 or t.shape != x.shape[:1]:
        raise ValueError(f"t must be (N,) and x (N, channels); got {describe_shape(t)} and {describe_shape(x)}")
    if length.ndim != 1 or bool((length < 0).any()) or int(length.sum()) != len(t):
        raise ValueError(
            f"length must be the number of rows of each sample, (B,), {len(t)} in all; got {describe(length.tolist())}"
        )
    if mask is not None and mask.shape not in (x.shape, t.shape):
        raise ValueError(f"mask must be {tuple(x.shape)} or {tuple(t.shape)}; got {describe_shape(mask)}")


def cat(parts: Sequence[Series]) -> Series:
    """The samples of all parts one after another, padded to the longest. It is a `collate_fn` for a `DataLoader`.

    Names of channels are those of the first part that has some. ids are kept where all parts have them.

    Raises TypeError for a part that is no series, ValueError for parts of other channels, features, dtypes or devices.
    """
    parts = [checked_series(part) for part in parts]
    if not parts:
        raise ValueError("parts must be a list of at least one Series; it is empty")
    named = next((p.channels for p in parts if p.channels is not None), None)
    for i, part in enumerate(parts):
        if (kind := _kind(part)) != (first := _kind(parts[0])):
            raise ValueError(f"all parts must be alike: parts[{i}] has {kind}, and parts[0] has {first}")
        if part.channels not in (None, named):
            raise ValueError(f"all parts must have the same channels: parts[{i}] has {part.channels}, others {named}")
    rows = max(p.t.shape[1] for p in parts)
    padded = [p.padded(rows) for p in parts]
    static = [p.static for p in parts if p.static is not None]
    ids = [name for p in parts for name in p.ids or ()]
    return Series(
        torch.cat([p.t for p in padded]),
        torch.cat([p.x for p in padded]),
        torch.cat([p.mask for p in padded]),
        torch.cat([p.length for p in padded]),
        torch.cat(static) if static else None,
        named,
        ids if all(p.ids is not None for p in parts) else None,
    )


def _kind(series: Series) -> str:
    static = 0 if series.static is None else series.static.shape[1]
    return f"{series.num_channels} channels and {static} static features, {series.x.dtype} on {series.x.device}"


@overload
def batches(
    series: Series, size: int, generator: torch.Generator | None = None, labels: None = None, by_length: bool = False
) -> Iterator[Series]: ...


@overload
def batches(
    series: Series, size: int, generator: torch.Generator | None = None, *, labels: Tensor, by_length: bool = False
) -> Iterator[tuple[Series, Tensor]]: ...


def batches(
    series: Series,
    size: int,
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
    by_length: bool = False,
) -> Iterator[Series] | Iterator[tuple[Series, Tensor]]:
    """All samples once, in random order, in batches of `size` that are padded no more than they need; the last is rest.

    generator: of the order. labels: (B, ...); then each batch comes with its labels. by_length: samples of about the
    same length are in one batch, which saves padding.
    """
    size, count = integer("size", size), len(checked_series(series))
    _check_labels(labels, count)
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(count, generator=generator, device=device).to(series.t.device)
    if by_length:
        order = order[series.length[order].argsort(stable=True)]
    parts = list(order.split(size)) if count else []
    if by_length:
        parts = [parts[i] for i in torch.randperm(len(parts), generator=generator, device=device).tolist()]
    if labels is None:
        return (series[part].trimmed() for part in parts)
    return ((series[part].trimmed(), labels[part.to(labels.device)]) for part in parts)


def _check_labels(labels: Any, count: int) -> None:
    if labels is not None and not (isinstance(labels, Tensor) and labels.ndim and len(labels) == count):
        raise ValueError(f"labels must be a tensor of {count} rows, one for each sample; got {describe(labels)}")
