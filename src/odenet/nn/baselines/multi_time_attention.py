"""Multi-time attention networks."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ...core.validate import integer
from ...series.series import Series
from ..series_model import SeriesModel
from .time_features import TimeFeatures


@final
class MultiTimeAttention(SeriesModel):
    """Attention from reference times to the observed values of each channel, then a GRU along the reference times.

    Shukla and Marlin 2021, "Multi-time attention networks for irregularly sampled time series". The scores depend on
    times alone, by learned features of them, and each channel has the weights of its own observations. Beside what it
    finds of a channel, the GRU sees whether the channel has any value.

    channels: of the series. hidden: size of the GRU's state. out: size of a linear readout; None: the state itself.
    static: number of static features, from which the GRU begins. references: number of reference times, evenly from 0
    to 1. heads: of attention. time_size: number of features of a time. Call `fit_normalizer` first: it puts the times
    of the data in [0, 1].

    forward(series): the GRU's last state, as for classes. forward(series, ts), states(series): attention from the times
    to the states at the reference times. All depend on all rows.

    Raises TypeError or ValueError for a wrong argument.
    """

    references: Tensor

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        static: int = 0,
        references: int = 32,
        heads: int = 2,
        time_size: int = 16,
    ) -> None:
        super().__init__(channels, hidden, out, static)
        heads = integer("heads", heads)
        self.times = TimeFeatures(time_size)
        self.register_buffer("references", torch.linspace(0, 1, integer("references", references)))
        self.to_values = _TimeScores(time_size, heads)
        self.mix = nn.Linear(heads * 2 * channels, hidden)
        self.initial = nn.Linear(static, hidden) if static else None
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.to_references = _TimeScores(time_size, heads)
        self.out_mix = nn.Linear(heads * hidden, hidden)

    def row_states(self, series: Series) -> Tensor:
        return self.states_at(series, series.t)

    def last_state(self, series: Series) -> Tensor:
        return self._reference_states(series)[:, -1]

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        states = self._reference_states(series)
        weights = self.to_references(self.times(ts), self.times(self.references)[None]).softmax(-1)
        return self.out_mix(torch.einsum("bhqk,bkf->bqhf", weights, states).flatten(2))

    def _reference_states(self, series: Series) -> Tensor:
        """(B, K, hidden)."""
        if not len(series):
            return series.x.new_zeros(0, len(self.references), self.hidden)
        scores = self.to_values(self.times(self.references)[None], self.times(series.t))  # (B, heads, K, T)
        hidden = torch.finfo(scores.dtype).min  # finite: a channel without a value has weights, of values that are 0
        weights = scores[..., None].masked_fill(~series.mask[:, None, None], hidden).softmax(3)
        found = torch.einsum("bhktc,btc->bkhc", weights, series.x)
        any_value = series.mask.any(1).to(found)[:, None, None].expand(found.shape)
        inputs = self.mix(torch.cat([found, any_value], -1).flatten(2))
        start = None if self.initial is None or series.static is None else self.initial(series.static)[None]
        return self.gru(inputs, start)[0]


@final
class _TimeScores(nn.Module):
    """Scores of keys for queries, from features of their times: (B, Q, F), (B, K, F) -> (B, heads, Q, K)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.size, self.heads = size, heads
        self.query, self.key = nn.Linear(size, heads * size), nn.Linear(size, heads * size)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k = (x.unflatten(-1, (self.heads, self.size)) for x in (self.query(queries), self.key(keys)))
        return q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / self.size**0.5
