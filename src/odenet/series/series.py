"""A batch of series whose samples have times of their own, and whose channels have values at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Series:
    """B series, each with rows of C values at increasing times of its own.

    t: times of the rows, (B, T) or (T,) for all samples, floating point. x: values, (B, T, C); NaN is a missing value.
    mask: True where a value is observed, (B, T, C) or (B, T), bool; by default where x is not NaN. length: number of
    rows of each sample, (B,); by default up to the last time that is not NaN. Behind it is padding, whose content does
    not matter. static: features that do not change with time, (B, S). channels: names of the C channels. ids: names of
    the B samples.

    As attributes t is (B, T), and a sample repeats its last time behind its last row; x is 0 and mask False where
    nothing is observed.

    Raises:
        TypeError: an argument that is no tensor, or of the wrong dtype.
        ValueError: shapes that do not fit, times that do not increase within a sample, infinite values.
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
        _check_types(t, x, mask, length, static)
        if x.ndim != 3:
            raise ValueError(f"x must be (samples, rows, channels); got {describe_shape(x)}")
        size, rows, width = x.shape
        if t.shape not in ((size, rows), (rows,)):
            raise ValueError(
                f"t must be {(size, rows)} or {(rows,)}, as x is {tuple(x.shape)}; got {describe_shape(t)}"
            )
        t = t.expand(size, rows)
        given = ~torch.isnan(t)
        if length is None:
            length = (given * torch.arange(1, rows + 1, device=t.device)).amax(1) if rows else t.new_zeros(size).long()
        elif length.shape != (size,):
            raise ValueError(f"length must be {(size,)}, one number for each sample; got {describe_shape(length)}")
        inside = torch.arange(rows, device=t.device) < length[:, None]
        if mask is not None and mask.shape not in ((size, rows, width), (size, rows)):
            raise ValueError(f"mask must be {tuple(x.shape)} or {(size, rows)}; got {describe_shape(mask)}")
        observed = ~torch.isnan(x) & inside[..., None]
        if mask is not None:
            observed = observed & (mask if mask.ndim == 3 else mask[..., None])
        values = torch.where(observed, x, 0.0)
        _check_values(t, values, inside, length)
        set_field = object.__setattr__
        set_field(self, "t", _padded_times(t, inside, length))
        set_field(self, "x", values)
        set_field(self, "mask", observed)
        set_field(self, "length", length.long())
        set_field(self, "static", _checked_static(static, size))
        set_field(self, "channels", _names("channels", channels, width))
        set_field(self, "ids", None if ids is None else _names("ids", ids, size))

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
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            index = [index]
        chosen = torch.arange(len(self), device=self.t.device)[
            index if isinstance(index, slice) else torch.as_tensor(index)
        ]
        ids = None if self.ids is None else tuple(self.ids[i] for i in chosen.tolist())
        static = None if self.static is None else self.static[chosen]
        return self._with(
            t=self.t[chosen],
            x=self.x[chosen],
            mask=self.mask[chosen],
            length=self.length[chosen],
            static=static,
            ids=ids,
        )

    def __repr__(self) -> str:
        observed = float(self.mask.sum()) / max(1, int(self.rows.sum()) * self.num_channels)
        static = "" if self.static is None else f", static={self.static.shape[1]}"
        return (
            f"Series({len(self)} samples, up to {self.t.shape[1]} rows, {self.num_channels} channels, "
            f"{100 * observed:.0f} % observed{static})"
        )

    def to(self, *args: Any, **kwargs: Any) -> Series:
        """On another device or with another floating-point dtype, as `Tensor.to`."""
        t, x = self.t.to(*args, **kwargs), self.x.to(*args, **kwargs)
        static = None if self.static is None else self.static.to(*args, **kwargs)
        return self._with(t=t, x=x, mask=self.mask.to(x.device), length=self.length.to(x.device), static=static)

    def trimmed(self) -> Series:
        """Without the columns of padding that all samples have."""
        rows = int(self.length.max()) if len(self) else 0
        return self._with(t=self.t[:, :rows], x=self.x[:, :rows], mask=self.mask[:, :rows])

    def padded(self, rows: int) -> Series:
        """With at least this many columns."""
        more = rows - self.t.shape[1]
        if more <= 0:
            return self
        pad = torch.nn.functional.pad
        t = self.t[:, -1:].repeat(1, more) if self.t.shape[1] else self.t.new_zeros(len(self), more)
        return self._with(
            t=torch.cat([self.t, t], 1), x=pad(self.x, (0, 0, 0, more)), mask=pad(self.mask, (0, 0, 0, more))
        )

    def observed(self, keep: Tensor) -> Series:
        """With the values alone where keep, (B, T, C) or (B, T), is True. Rows stay, even those without a value."""
        mask = self.mask & (keep if keep.ndim == 3 else keep[..., None])
        return self._with(x=torch.where(mask, self.x, 0.0), mask=mask)

    def dropped(self, fraction: float, generator: torch.Generator | None = None) -> Series:
        """Without a random part of the rows of each sample: round(fraction * length) of them, never all."""
        if not 0.0 <= fraction < 1.0:
            raise ValueError(f"fraction must be in [0, 1); got {fraction}")
        draw = torch.rand(self.t.shape, generator=generator, dtype=torch.float64).to(self.t.device)
        rank = torch.where(self.rows, draw, 2.0).argsort(1).argsort(1)
        gone = torch.minimum((fraction * self.length).round().long(), (self.length - 1).clamp(min=0))
        return self.select(self.rows & (rank >= gone[:, None]))

    def before(self, time: float | Tensor) -> Series:
        """The rows at t < time. time: a number, or (B,)."""
        return self.select(self.rows & (self.t < torch.as_tensor(time, device=self.t.device).reshape(-1, 1)))

    def after(self, time: float | Tensor) -> Series:
        """The rows at t >= time. time: a number, or (B,)."""
        return self.select(self.rows & (self.t >= torch.as_tensor(time, device=self.t.device).reshape(-1, 1)))

    def with_values(self, t: Tensor, x: Tensor, static: Tensor | None) -> Series:
        """The same rows with other numbers, as of another unit."""
        return self._with(t=t, x=x, static=static)

    def select(self, keep: Tensor) -> Series:
        """The rows where keep, (B, T), is True, moved together; without columns that are padding of all."""
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


def _check_types(t: Any, x: Any, mask: Any, length: Any, static: Any) -> None:
    for name, value in (("t", t), ("x", x), ("static", static)):
        if value is None and name == "static":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor; got {describe_kind(value)}. odenet.series.from_lists, "
                "from_long and from_wide take lists and tables"
            )
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
        raise TypeError(
            f"mask must be a tensor of truth values, True where a value is observed; got {describe_kind(mask)}"
        )
    if length is not None and not (isinstance(length, Tensor) and length.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"length must be a tensor of whole numbers; got {describe_kind(length)}")


def describe_kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else describe(value)


def _check_values(t: Tensor, x: Tensor, inside: Tensor, length: Tensor) -> None:
    """One look at all that can be wrong with values, and further ones where something is."""
    rising = (t[:, 1:] > t[:, :-1]) | ~inside[:, 1:]
    finite = torch.isfinite(t) | ~inside
    if bool(rising.all() & finite.all() & torch.isfinite(x).all() & ((length >= 0) & (length <= t.shape[1])).all()):
        return
    if bool(((length < 0) | (length > t.shape[1])).any()):
        raise ValueError(f"length must be between 0 and the {t.shape[1]} rows of x; got {length.tolist()}")
    if not bool(finite.all()):
        sample, row = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"t must be finite: sample {sample} has {float(t[sample, row])} in row {row} of {int(length[sample])}"
        )
    if not bool(torch.isfinite(x).all()):
        sample, row, channel = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(
            f"x must be finite or NaN: sample {sample} has {float(x[sample, row, channel])} in channel {channel}"
        )
    sample, row = (~rising).nonzero()[0].tolist()
    raise ValueError(
        f"t must increase within a sample: sample {sample} has {float(t[sample, row + 1])} after "
        f"{float(t[sample, row])}. odenet.series.from_lists sorts rows, and merges those at the same time"
    )


def _padded_times(t: Tensor, inside: Tensor, length: Tensor) -> Tensor:
    if not t.shape[1]:
        return t
    last = t.gather(1, (length.long() - 1).clamp(min=0)[:, None])
    last = torch.where(length[:, None] > 0, last, 0.0)  # an empty series
    return torch.where(inside, t, last)


def _checked_static(static: Tensor | None, size: int) -> Tensor | None:
    if static is not None and (static.ndim != 2 or len(static) != size):
        raise ValueError(f"static must be ({size}, number of features); got {describe_shape(static)}")
    return static


def _names(argument: str, names: Sequence[Any] | None, count: int) -> tuple[Any, ...] | None:
    if names is None:
        return None
    if len(names) != count:
        raise ValueError(f"{argument} must be {count} names; got {len(names)}: {describe(list(names))}")
    return tuple(names)
