"""A batch of series whose samples have times of their own, and whose channels have values at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape, integer, number, times
from .series_checks import (
    check_keep,
    check_kinds,
    check_narrowed,
    check_shapes,
    check_values,
    checked_names,
    sample_numbers,
)


class Packed(NamedTuple):
    """The rows of all samples one after another: N of them in all.

    t: (N,). x: (N, C), 0 where missing. length: number of rows of each sample, (B,). mask: (N, C).
    """

    t: Tensor
    x: Tensor
    length: Tensor
    mask: Tensor


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Series:
    """B series, each with rows of C values at increasing times of its own.

    t: times of the rows, (B, T) or (T,) for all samples, floating point. x: values, (B, T, C); NaN is a missing value.
    mask: True where a value is observed, (B, T, C) or (B, T), bool; by default where x is not NaN. length: number of
    rows of each sample, (B,); by default up to the last time that is not NaN. Behind it is padding, whose content does
    not matter. static: features that do not change with time, (B, S), finite. channels: names of the C channels. ids:
    names of the B samples.

    As attributes t is (B, T), and a sample repeats its last time behind its last row; x is 0 and mask False where
    nothing is observed.

    Raises:
        TypeError: an argument that is no tensor, or of the wrong dtype.
        ValueError: shapes and devices that do not fit, times that do not increase within a sample, infinite values.
    """

    t: Tensor
    x: Tensor
    mask: Tensor
    length: Tensor
    static: Tensor | None
    channels: tuple[str, ...] | None
    ids: tuple[Any, ...] | None

    def __init__(
        self,
        t: Tensor,
        x: Tensor,
        mask: Tensor | None = None,
        length: Tensor | None = None,
        static: Tensor | None = None,
        channels: Sequence[str] | None = None,
        ids: Sequence[Any] | None = None,
    ) -> None:
        check_kinds(t, x, mask, length, static)
        check_shapes(t, x, mask, length, static)
        size, rows, width = x.shape
        t = t.expand(size, rows)
        if length is None:
            number = torch.arange(1, rows + 1, device=t.device)
            length = (~torch.isnan(t) * number).amax(1) if rows else number.new_zeros(size)
        inside = torch.arange(rows, device=t.device) < length[:, None]
        observed = ~torch.isnan(x) & inside[..., None]
        if mask is not None:
            observed = observed & (mask if mask.ndim == 3 else mask[..., None])
        values = torch.where(observed, x, 0.0)
        check_values(t, values, inside, length, static)
        set_field = object.__setattr__
        set_field(self, "t", _padded_times(t, inside, length))
        set_field(self, "x", values)
        set_field(self, "mask", observed)
        set_field(self, "length", length.long())
        set_field(self, "static", static)
        set_field(self, "channels", checked_names("channels", channels, width))
        set_field(self, "ids", checked_names("ids", ids, size))

    def __len__(self) -> int:
        """B."""
        return len(self.length)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.x.shape[-1]

    @property
    def rows(self) -> Tensor:
        """True for rows, False for padding, (B, T)."""
        return torch.arange(self.t.shape[1], device=self.t.device) < self.length[:, None]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Series:
        """Some of the samples: by number, slice, list, or a tensor of numbers or truth values."""
        chosen = sample_numbers(index, len(self), self.t.device)
        return self._with(
            t=self.t[chosen],
            x=self.x[chosen],
            mask=self.mask[chosen],
            length=self.length[chosen],
            static=None if self.static is None else self.static[chosen],
            ids=None if self.ids is None else tuple(self.ids[i] for i in chosen.tolist()),
        )

    def __repr__(self) -> str:
        observed = float(self.mask.sum()) / max(1, int(self.rows.sum()) * self.num_channels)
        static = "" if self.static is None else f", static={self.static.shape[1]}"
        return (
            f"Series({len(self)} samples, up to {self.t.shape[1]} rows, {self.num_channels} channels, "
            f"{100 * observed:.0f} % observed{static})"
        )

    def to(self, *args: Any, **kwargs: Any) -> Series:
        """On another device or with another floating-point dtype, as `Tensor.to`.

        Raises ValueError where the dtype makes one of two times, or holds a number no more.
        """
        t, x = self.t.to(*args, **kwargs), self.x.to(*args, **kwargs)
        static = None if self.static is None else self.static.to(*args, **kwargs)
        if not x.is_floating_point():
            raise TypeError(f"a series has a floating-point dtype; got {x.dtype}")
        mask, length = self.mask.to(x.device), self.length.to(x.device)
        if x.dtype != self.x.dtype:
            inside = self.rows.to(x.device)
            check_narrowed(self.t, torch.where(inside, t, torch.nan))
            check_values(t, x, inside, length, static)
        return self._with(t=t, x=x, mask=mask, length=length, static=static)

    def trimmed(self) -> Series:
        """Without the columns of padding that all samples have."""
        rows = int(self.length.max()) if len(self) else 0
        return self._with(t=self.t[:, :rows], x=self.x[:, :rows], mask=self.mask[:, :rows])

    def padded(self, rows: int) -> Series:
        """With at least this many columns."""
        more = integer("rows", rows, 0) - self.t.shape[1]
        if more <= 0:
            return self
        pad = torch.nn.functional.pad
        t = self.t[:, -1:].repeat(1, more) if self.t.shape[1] else self.t.new_zeros(len(self), more)
        return self._with(
            t=torch.cat([self.t, t], 1), x=pad(self.x, (0, 0, 0, more)), mask=pad(self.mask, (0, 0, 0, more))
        )

    def packed(self) -> Packed:
        """The rows of all samples one after another, without padding. `odenet.series.from_packed` is the inverse."""
        return Packed(self.t[self.rows], self.x[self.rows], self.length, self.mask[self.rows])

    def union(self) -> Series:
        """The same values with one row for each time of any sample: U times, which all samples share.

        A sample has a row without values where it has none of its own, so all samples begin at the first time of the
        batch and end at its last one.

        Raises ValueError where t requires a gradient: the union has none in the times.
        """
        if self.t.requires_grad:
            raise ValueError("t requires a gradient, which times of a union cannot have; detach t")
        times = self.t[self.rows].unique()
        sample, row = self.rows.nonzero(as_tuple=True)
        place = (sample, torch.searchsorted(times, self.t[sample, row]))
        shape = (len(self), len(times), self.num_channels)
        x = self.x.new_zeros(shape).index_put(place, self.x[sample, row])
        mask = self.mask.new_zeros(shape).index_put(place, self.mask[sample, row])
        return Series(times, x, mask, None, self.static, self.channels, self.ids)

    def observed(self, keep: Tensor) -> Series:
        """With the values alone where keep, (B, T, C) or (B, T), is True. Rows stay, even those without a value."""
        check_keep(keep, self.mask.shape)
        mask = self.mask & (keep if keep.ndim == 3 else keep[..., None])
        return self._with(x=torch.where(mask, self.x, 0.0), mask=mask)

    def dropped(self, fraction: float, generator: torch.Generator | None = None) -> Series:
        """Without a random part of the rows of each sample: round(fraction * length) of them, never all."""
        if not 0.0 <= number("fraction", fraction) < 1.0:
            raise ValueError(f"fraction must be in [0, 1); got {fraction}")
        if len(self) and self.t.shape[1] > int(self.length.max()):
            return self.trimmed().dropped(fraction, generator)  # what is drawn does not depend on padding
        device = "cpu" if generator is None else generator.device
        draw = torch.rand(self.t.shape, generator=generator, dtype=torch.float64, device=device).to(self.t.device)
        rank = torch.where(self.rows, draw, 2.0).argsort(1).argsort(1)
        gone = torch.minimum((fraction * self.length).round().long(), (self.length - 1).clamp(min=0))
        return self.select(self.rows & (rank >= gone[:, None]))

    def before(self, time: float | Tensor) -> Series:
        """The rows at t < time. time: a number, or (B,)."""
        return self.select(self.rows & (self.t < self._bound(time)))

    def after(self, time: float | Tensor) -> Series:
        """The rows at t >= time. time: a number, or (B,)."""
        return self.select(self.rows & (self.t >= self._bound(time)))

    def with_values(self, t: Tensor, x: Tensor, static: Tensor | None) -> Series:
        """The same rows with other numbers, as of another unit."""
        return self._with(t=t, x=x, static=static)

    def _bound(self, time: Any) -> Tensor:
        """A time for each sample, (B, 1) or (1, 1), rounded as the times of the rows are."""
        bound = times("time", time).to(self.t)
        if bound.shape not in ((), (len(self),)):
            raise ValueError(
                f"time must be a number or ({len(self)},), one for each sample; got {describe_shape(bound)}"
            )
        if bool(bound.isnan().any()):
            raise ValueError("time must be a number; got nan")
        return bound.reshape(-1, 1)

    def select(self, keep: Tensor) -> Series:
        """The rows where keep, (B, T), is True, moved together; without columns that are padding of all."""
        check_keep(keep, self.t.shape)
        keep = keep & self.rows
        order = (~keep).to(torch.int8).argsort(dim=1, stable=True)
        length = keep.sum(1)
        wide = order[..., None].expand(self.x.shape)
        t = torch.where(
            torch.arange(order.shape[1], device=order.device) < length[:, None], self.t.gather(1, order), torch.nan
        )
        chosen = Series(
            t, self.x.gather(1, wide), self.mask.gather(1, wide), length, self.static, self.channels, self.ids
        )
        return chosen.trimmed()

    def _with(self, **changes: Any) -> Series:
        """A copy with other fields, which need no check."""
        copy: Self = object.__new__(type(self))
        for name in self.__dataclass_fields__:
            object.__setattr__(copy, name, changes.get(name, getattr(self, name)))
        return copy


def _padded_times(t: Tensor, inside: Tensor, length: Tensor) -> Tensor:
    if not t.shape[1]:
        return t
    last = t.gather(1, (length.long() - 1).clamp(min=0)[:, None])
    last = torch.where(length[:, None] > 0, last, 0.0)  # an empty series
    return torch.where(inside, t, last)


def checked_series(series: Any) -> Series:
    if not isinstance(series, Series):
        raise TypeError(f"series must be an odenet.series.Series, as from_lists makes; got {describe(series)}")
    return series
