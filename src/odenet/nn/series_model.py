"""What all models of series have in common: checks, scales, static features, a readout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.validate import describe, describe_shape, integer, times
from ..series.normalizer import Normalizer
from ..series.series import Series


class SeriesModel(nn.Module, ABC):
    """Base of models that map a `Series` to a hidden state, (hidden,), at any time, and to outputs by a linear readout.

    channels: of the series. hidden: size of the state. out: size of the readout; None: the state itself. static: number
    of static features. normalizer: the scales of times, values and static features, part of the `state_dict`; they
    change nothing until `fit_normalizer` is called with the training data.
    """

    def __init__(self, channels: int, hidden: int, out: int | None, static: int) -> None:
        super().__init__()
        self.channels, self.hidden = integer("channels", channels), integer("hidden", hidden)
        self.static = integer("static", static, 0)
        self.normalizer = Normalizer(self.channels, self.static)
        self.readout = nn.Identity() if out is None else nn.Linear(self.hidden, integer("out", out))

    def fit_normalizer(self, series: Series) -> Self:
        """Take the scales of this data: from then on the model sees mean 0, deviation 1 and times in [0, 1]."""
        self.normalizer.fit(self._checked(series))
        return self

    def forward(self, series: Series, ts: Tensor | None = None) -> Tensor:
        """The output behind the last row of each sample, (B, out); or at times ts, (Q,) or (B, Q): (B, Q, out)."""
        scaled = self.scaled(series)
        if ts is None:
            return self.readout(self.last_state(scaled))
        return self.readout(self.states_at(scaled, self.scaled_times(ts, scaled)))

    def states(self, series: Series) -> Tensor:
        """The output after each row, (B, T, out); behind the last row of a sample it stays."""
        scaled = self.scaled(series)
        return self.readout(self.row_states(scaled)[:, : series.t.shape[1]])

    @abstractmethod
    def row_states(self, series: Series) -> Tensor:
        """The hidden state after each row of a scaled series of at least one column, (B, T, hidden)."""

    @abstractmethod
    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        """The hidden state at scaled times (B, Q) in any order, (B, Q, hidden)."""

    def last_state(self, series: Series) -> Tensor:
        """The hidden state behind the last row, (B, hidden)."""
        return self.row_states(series)[:, -1]

    def scaled(self, series: Series) -> Series:
        """The series in the model's scales, with at least one column."""
        return self.normalizer(self._checked(series)).padded(1)

    def scaled_times(self, ts: Any, series: Series) -> Tensor:
        """Times of the user, (Q,) or (B, Q), in the model's scale: (B, Q)."""
        ts, size = times("ts", ts), len(series)
        if ts.ndim not in (1, 2) or (ts.ndim == 2 and len(ts) != size):
            raise ValueError(f"ts must be (Q,) or ({size}, Q), times for each sample; got {describe_shape(ts)}")
        if not bool(torch.isfinite(ts).all()):
            raise ValueError(f"ts must be finite; got {describe(ts[~torch.isfinite(ts)][0].item())}")
        # rounded before they are scaled, as the rows' times are: what is the time of a row remains so
        return self.normalizer.times(ts.to(series.t)).expand(size, ts.shape[-1])

    def _checked(self, series: Any) -> Series:
        if not isinstance(series, Series):
            raise TypeError(f"series must be an odenet.series.Series, as from_lists makes; got {describe(series)}")
        if series.num_channels != self.channels:
            raise ValueError(f"series must have {self.channels} channels; it has {series.num_channels}")
        static = 0 if series.static is None else series.static.shape[1]
        if static != self.static:
            raise ValueError(
                f"series must have {self.static} static features, as static= of the model; it has {static}"
            )
        own = self.normalizer.mean
        if series.x.dtype != own.dtype or series.x.device != own.device:
            raise ValueError(
                f"series is {series.x.dtype} on {series.x.device} and the model {own.dtype} on {own.device}: give "
                "series.to(...) or model.to(...)"
            )
        return series


def with_static(features: Tensor, static: Tensor | None) -> Tensor:
    """Features (B, F) and the static ones (B, S) side by side."""
    return features if static is None else torch.cat([features, static], -1)


def row_up_to(series: Series, ts: Tensor) -> Tensor:
    """The number of the last row of each sample up to the times ts (B, Q), -1 where there is none: (B, Q)."""
    times = torch.where(series.rows, series.t, torch.inf).contiguous()
    return torch.searchsorted(times, ts.contiguous(), right=True) - 1
