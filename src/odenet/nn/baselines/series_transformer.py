"""A transformer whose tokens are the rows of a series."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.validate import boolean, integer, number
from ...series.series import Series
from ..series_model import SeriesModel
from .time_features import TimeFeatures


@final
class SeriesTransformer(SeriesModel):
    """Attention over rows, and from any time to the rows. Vaswani et al. 2017, with features of times for positions.

    The token of a row is a linear map of its values and of which are observed, plus features of its time. One more
    token stands for the sample and its static features. Rows without a value are not looked at.

    channels: of the series. hidden: size of tokens and states, a multiple of heads. out: size of a linear readout;
    None: the state itself. static: number of static features. heads: of attention. layers: of the encoder. width: of
    the layers between, by default 2 hidden. causal: rows, and times that are asked for, look at rows up to them alone.
    learned_times: the frequencies of the features of times are trained. dropout: of the encoder.

    forward(series, ts=None), states(series): as `SeriesModel`. With causal=False the state at any time depends on all
    rows. Call `fit_normalizer` first: the features are for times in [0, 1].

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        static: int = 0,
        heads: int = 4,
        layers: int = 2,
        width: int | None = None,
        causal: bool = False,
        learned_times: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, hidden, out, static)
        self.heads, self.causal = integer("heads", heads), boolean("causal", causal)
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of heads; got hidden={hidden}, heads={heads}")
        if not 0 <= number("dropout", dropout) < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        width = 2 * hidden if width is None else integer("width", width)
        self.times = TimeFeatures(hidden, learned_times)
        self.tokens = nn.Linear(2 * channels, hidden)
        self.sample_token = nn.Parameter(torch.randn(hidden) / hidden**0.5)
        self.static_token = nn.Linear(static, hidden) if static else None
        layer = nn.TransformerEncoderLayer(hidden, heads, width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, integer("layers", layers), enable_nested_tensor=False)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.after = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden), nn.LayerNorm(hidden)
        )

    def row_states(self, series: Series) -> Tensor:
        return self.states_at(series, series.t)

    def last_state(self, series: Series) -> Tensor:
        return self.states_at(series, series.t[:, -1:])[:, 0]

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        if not ts.numel():
            return ts.new_zeros(*ts.shape, self.hidden)
        keys, values = self.key_value(self._encoded(series)).chunk(2, -1)
        allowed = self._looked_at(series)[:, None]
        if self.causal:
            known = series.t[:, None] <= ts[..., None]  # (B, Q, T)
            allowed = allowed & functional.pad(known, (1, 0), value=True)
        asked = self.query(self.times(ts))
        found = functional.scaled_dot_product_attention(
            self._by_head(asked), self._by_head(keys), self._by_head(values), allowed[:, None]
        )
        return self.after(asked + found.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, hidden) -> (B, heads, T, hidden / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _looked_at(self, series: Series) -> Tensor:
        """The token of the sample, and rows with a value: (B, 1 + T)."""
        return functional.pad(series.mask.any(-1), (1, 0), value=True)

    def _encoded(self, series: Series) -> Tensor:
        """The token of the sample and those of the rows, after the encoder: (B, 1 + T, hidden)."""
        rows = self.tokens(torch.cat([series.x, series.mask.to(series.x)], -1)) + self.times(series.t)
        first = self.sample_token.expand(len(series), 1, -1)
        if self.static_token is not None and series.static is not None:
            first = first + self.static_token(series.static)[:, None]
        count = rows.shape[1] + 1
        later = torch.ones(count, count, dtype=torch.bool, device=rows.device).triu(1) if self.causal else None
        return self.encoder(torch.cat([first, rows], 1), later, ~self._looked_at(series))

    def extra_repr(self) -> str:
        return f"causal={self.causal}"
