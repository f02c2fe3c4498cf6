"""Scales of a training set, kept in a model's state."""

from __future__ import annotations

from typing import Self, cast, final

import torch
from torch import Tensor, nn

from .series import Series, checked_series


@final
class Normalizer(nn.Module):
    """Maps times to [0, 1] and each channel and static feature to mean 0 and deviation 1, by the data it was fitted to.

    Buffers: mean, std (C,); static_mean, static_std (S,); start, span (). A channel that is constant, or was never
    observed, is moved and not scaled; so are times that are all the same. Missing values stay missing. Until
    `fit(series)` is called it changes nothing.
    """

    mean: Tensor
    std: Tensor
    start: Tensor
    span: Tensor
    static_mean: Tensor
    static_std: Tensor

    def __init__(self, channels: int, static: int = 0) -> None:
        super().__init__()
        for name, value in (
            *(("mean", torch.zeros(channels)), ("std", torch.ones(channels))),
            *(("static_mean", torch.zeros(static)), ("static_std", torch.ones(static))),
            *(("start", torch.zeros(())), ("span", torch.ones(()))),
        ):
            self.register_buffer(name, value)

    @torch.no_grad()
    def fit(self, series: Series) -> Self:
        """Take the scales of the observed values, of the rows' times and of the static features.

        Raises ValueError for a series without samples, or of other channels and features.
        """
        if not len(self._checked(series)):
            raise ValueError("series has no sample, and so no scales")
        x = series.x.double()
        count = series.mask.sum((0, 1)).clamp(min=1)
        mean = x.sum((0, 1)) / count
        deviation = torch.where(series.mask, x - mean, 0.0)
        self._take("mean", mean)
        self._take("std", _scale((deviation.square().sum((0, 1)) / count).sqrt(), mean, series.x.dtype))
        if series.static is not None:
            static = series.static.double()
            self._take("static_mean", static.mean(0))
            self._take("static_std", _scale(static.std(0, correction=0), static.mean(0), series.x.dtype))
        times = series.t[series.rows]
        span = times.amax() - times.amin() if len(times) else torch.zeros(())
        self._take("start", times.amin() if len(times) else span)
        self._take("span", torch.where(span > 0, span, 1.0))
        return self

    def _take(self, name: str, value: Tensor) -> None:
        self.get_buffer(name).copy_(value)

    def _checked(self, series: Series) -> Series:
        static = 0 if checked_series(series).static is None else cast(Tensor, series.static).shape[1]
        given, own = (series.num_channels, static), (len(self.mean), len(self.static_mean))
        if given != own:
            raise ValueError(
                f"series must have {own[0]} channels and {own[1]} static features; it has {given[0]} and {given[1]}"
            )
        return series

    def forward(self, series: Series) -> Series:
        """The series in these scales."""
        self._checked(series)
        x = torch.where(series.mask, (series.x - self.mean) / self.std, 0.0)
        static = None if series.static is None else (series.static - self.static_mean) / self.static_std
        t = torch.where(series.length[:, None] > 0, self.times(series.t), 0.0)  # a sample without rows has no time
        return series.with_values(t=t, x=x, static=static)

    def times(self, t: Tensor) -> Tensor:
        """Times of the data in these scales, of any shape."""
        return (t - self.start) / self.span

    def values(self, x: Tensor) -> Tensor:
        """From these scales back to those of the data, (..., C)."""
        return x * self.std + self.mean

    def deviations(self, std: Tensor) -> Tensor:
        """Standard deviations of values, back to the scales of the data."""
        return std * self.std


def _scale(size: Tensor, centre: Tensor, dtype: torch.dtype) -> Tensor:
    """The size, or 1 where it is nothing but the rounding of a constant in the dtype of the data."""
    return torch.where(size > 2 * torch.finfo(dtype).eps * centre.abs(), size, 1.0)
