"""Forecasts without parameters, which others should beat."""

from __future__ import annotations

from abc import ABC
from typing import final

import torch
from torch import Tensor

from ...series.filling import forward_fill
from ...series.series import Series
from ..series_model import SeriesModel, row_up_to


class _Forecast(SeriesModel, ABC):
    """A model whose states are forecasts, in scaled units: 0 is the mean of the training data."""

    def __init__(self, channels: int, static: int = 0) -> None:
        super().__init__(channels, channels, None, static)

    def forward(self, series: Series, ts: Tensor | None = None) -> Tensor:
        """Values behind the last row, (B, C), or at times ts, (Q,) or (B, Q): (B, Q, C); in the units of the data."""
        return self.normalizer.values(super().forward(series, ts))

    def states(self, series: Series) -> Tensor:
        """Values at the rows, (B, T, C), in the units of the data."""
        return self.normalizer.values(super().states(series))


@final
class LastValue(_Forecast):
    """The last observed value of each channel up to a time; before the first one the mean of the training data.

    That mean is the one which `fit_normalizer` takes, and 0 until then. channels: of the series. static: number of
    static features, which are not used. forward(series, ts=None): values in the units of the data, (B, Q, C) for times
    ts, (Q,) or (B, Q), or (B, C). states(series): (B, T, C).
    """

    def row_states(self, series: Series) -> Tensor:
        return forward_fill(series.x, series.mask)

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        row, filled = row_up_to(series, ts)[..., None], self.row_states(series)
        return torch.where(row < 0, 0.0, filled.gather(1, row.clamp(min=0).expand(*ts.shape, self.channels)))


@final
class MeanValue(_Forecast):
    """The mean of the observed values of each channel in the sample, at all times.

    Where nothing is observed it is the mean of the training data, which `fit_normalizer` takes. Arguments and results
    are those of `LastValue`.
    """

    def row_states(self, series: Series) -> Tensor:
        return self.states_at(series, series.t)

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        mean = series.x.sum(1) / series.mask.sum(1).clamp(min=1)
        return mean[:, None].expand(*ts.shape, self.channels)
