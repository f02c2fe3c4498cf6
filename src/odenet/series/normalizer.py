"""Scales of a training set, kept in a model's state."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor, nn

from .series import Series


@final
class Normalizer(nn.Module):
    """Maps times to [0, 1] and each channel and static feature to mean 0 and deviation 1, by the data it was fitted to.

    Buffers: mean, std (C,); static_mean, static_std (S,); start, span (). A channel that is constant, or was never
    observed, is moved and not scaled. Until `fit(series)` is called it changes nothing.
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

    def fit(self, series: Series) -> Self:
        """Take the scales of the observed values, of the rows' times and of the static features."""
        if not len(series):
            raise ValueError("series has no sample, and so no scales")
        count = series.mask.sum((0, 1)).clamp(min=1)
        mean = series.x.sum((0, 1)) / count
        deviation = torch.where(series.mask, series.x - mean, 0.0)
        self._take("mean", mean)
        self._take("std", _scale((deviation.square().sum((0, 1)) / count).sqrt(), mean))
        if series.static is not None:
            self._take("static_mean", series.static.mean(0))
            self._take("static_std", _scale(series.static.std(0, correction=0), series.static.mean(0)))
        times = series.t[series.rows]
        if len(times):
            self._take("start", times.amin())
            self._take("span", _scale(times.amax() - times.amin(), times.amin()))
        return self

    def _take(self, name: str, value: Tensor) -> None:
        self.get_buffer(name).copy_(value)

    def forward(self, series: Series) -> Series:
        """The series in these scales."""
        x = torch.where(series.mask, (series.x - self.mean) / self.std, 0.0)
        static = None if series.static is None else (series.static - self.static_mean) / self.static_std
        return series.with_values(t=self.times(series.t), x=x, static=static)

    def times(self, t: Tensor) -> Tensor:
        return (t - self.start) / self.span

    def values(self, x: Tensor) -> Tensor:
        """From these scales back to those of the data, (..., C)."""
        return x * self.std + self.mean

    def deviations(self, std: Tensor) -> Tensor:
        """Standard deviations of values, back to the scales of the data."""
        return std * self.std


def _scale(size: Tensor, centre: Tensor) -> Tensor:
    """The size, or 1 where it is nothing but the rounding of a constant."""
    rounding = 16 * torch.finfo(size.dtype).eps * centre.abs()
    return torch.where(size > rounding, size, 1.0)
