"""Encoders of a latent ODE: from a series to features of its start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import gcd
from typing import final

import torch
from torch import Tensor, nn

from ...series.series import Series
from ..recurrent import ODERNN
from .reversal import reversed_rows


class SeriesEncoder(nn.Module, ABC):
    """Base of encoders: features, (B, hidden), of a scaled series whose times count from that of z0."""

    @abstractmethod
    def forward(self, series: Series) -> Tensor: ...


@final
class ODERNNEncoder(SeriesEncoder):
    """The state of an `ODERNN` that takes the rows from the last one to the first, and then evolves to time 0.

    Rubanova et al. 2019, "Latent ODEs for irregularly-sampled time series", section 3.2.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.rnn = ODERNN(channels, hidden)

    def forward(self, series: Series) -> Tensor:
        back = reversed_rows(series)
        h = self.rnn.row_states(back)[:, -1]
        last = torch.where(back.length > 0, back.t[:, -1], 0.0)
        return self.rnn.advance(h, last, torch.zeros_like(last))


class RecurrentEncoder(SeriesEncoder):
    """A recurrent network over the rows from the last one to the first, with their times and the gaps between them."""

    layer: type[nn.RNN | nn.GRU]

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.rnn = self.layer(2 * channels + 2, hidden)

    def forward(self, series: Series) -> Tensor:
        back = reversed_rows(series)
        gaps = back.t.diff(dim=1, prepend=back.t[:, :1])
        inputs = [part.movedim(1, 0) for part in (*_row_inputs(back), gaps[..., None])]  # a row after another in memory
        states, _ = self.rnn(torch.cat(inputs, -1))  # (T, B, hidden)
        if bool((back.length == len(states)).all()):
            return states[-1]
        last = (back.length - 1).clamp(min=0)[:, None].expand(states.shape[1:])
        return torch.where(back.length[:, None] > 0, states.gather(0, last[None])[0], 0.0)


@final
class RNNEncoder(RecurrentEncoder):
    """With tanh units. Chen et al. 2018, "Neural ordinary differential equations", section 5."""

    layer = nn.RNN


@final
class GRUEncoder(RecurrentEncoder):
    """With gated units, which keep what they saw for longer. Cho et al. 2014, arXiv:1406.1078."""

    layer = nn.GRU


@final
class AttentionEncoder(SeriesEncoder):
    """Learned queries that attend to the rows, each of which a perceptron has mapped to keys and values.

    A query may also attend to nothing, which has the score 0 and the value 0, so a series without rows is no exception.
    Vaswani et al. 2017, "Attention is all you need", section 3.2; one query for each head.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.rows = nn.Sequential(
            nn.Linear(2 * channels + 1, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)
        )
        self.scores = nn.Linear(hidden, gcd(hidden, 4))  # keys times queries
        self.values = nn.Linear(hidden, hidden)

    def forward(self, series: Series) -> Tensor:
        # activations in place, on a matrix: large batches take as long as their memory is written
        rows = self.rows(torch.cat(_row_inputs(series), -1).flatten(0, 1)).unflatten(0, series.t.shape)
        scores = self.scores(rows).mT.masked_fill(~series.mask.any(-1)[:, None], -torch.inf)
        weights = nn.functional.pad(scores, (0, 1)).softmax(-1)[..., :-1]  # (B, heads, T)
        # values are linear in the rows, so that the mean row of each head is mapped, instead of each row
        weight, bias = (own.unflatten(0, (weights.shape[1], -1)) for own in (self.values.weight, self.values.bias))
        values = torch.einsum("bhi,hoi->bho", weights @ rows, weight) + weights.sum(-1, keepdim=True) * bias
        return values.flatten(1)


ENCODERS: dict[str, type[ODERNNEncoder | RNNEncoder | GRUEncoder | AttentionEncoder]] = {
    "ode-rnn": ODERNNEncoder,
    "rnn": RNNEncoder,
    "gru": GRUEncoder,
    "attention": AttentionEncoder,
}


def _row_inputs(series: Series) -> tuple[Tensor, Tensor, Tensor]:
    """Values, 0 where missing, which of them are observed, and the time: (B, T, C), (B, T, C), (B, T, 1)."""
    return series.x, series.mask.to(series.x), series.t[..., None]
