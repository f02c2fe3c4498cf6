"""GRU baselines that know the lengths of gaps: as an input, or by decay."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ...series.series import Series
from .recurrence import Recurrence


@final
class GRUDelta(Recurrence):
    """A GRU cell at each row with the time since the row before as an input.

    The baseline "RNN delta_t" of Rubanova et al. 2019. Between rows the output is that of a step of the cell with
    nothing observed and the time since the last row. Rows without any value change nothing.

    channels: of the series. hidden: size of the state. out: size of a linear readout; None: the state itself. static:
    number of static features, from which the state begins. forward(series, ts=None), states(series), before(series):
    see `Recurrence`.
    """

    def __init__(self, channels: int, hidden: int = 32, out: int | None = None, static: int = 0) -> None:
        super().__init__(channels, hidden, out, static)
        self.cell = nn.GRUCell(2 * channels + 1, hidden)

    # what runs along the rows: the state after the last one, and the time since then

    def start(self, series: Series) -> Tensor:
        h = self.initial_state(series)
        return torch.cat([h, h.new_zeros(len(h), 1)], 1)

    def advance(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + (t1 - t0)[:, None]], 1)

    def update(self, h: Tensor, inputs: Tensor) -> Tensor:
        h, elapsed = h[:, :-1], h[:, -1:]
        return torch.cat([self.cell(torch.cat([inputs, elapsed], 1), h), torch.zeros_like(elapsed)], 1)

    def hidden_state(self, h: Tensor) -> Tensor:
        h, elapsed = h[..., :-1], h[..., -1:]
        nothing = h.new_zeros(*h.shape[:-1], 2 * self.channels)
        later = self.cell(torch.cat([nothing, elapsed], -1).flatten(0, -2), h.flatten(0, -2)).view(h.shape)
        return torch.where(elapsed > 0, later, h)


@final
class GRUD(Recurrence):
    """GRU-D: the state and the last values decay with the time since their last observation. Che et al. 2018.

    A missing value is between the last one observed and the mean of its channel, which is 0 in the scales that
    `fit_normalizer` takes: x' exp(-max(0, w d + b)), with the time d since then. The state is multiplied by exp(-max(0,
    W d + b)) before each row and at times between rows, d the times of all channels. The cell gets the values and which
    of them are observed. It is that of PyTorch, whose reset gate multiplies the product with the state.

    channels: of the series. hidden: size of the state. out: size of a linear readout; None: the state itself. static:
    number of static features, from which the state begins. forward(series, ts=None), states(series), before(series):
    see `Recurrence`.
    """

    def __init__(self, channels: int, hidden: int = 32, out: int | None = None, static: int = 0) -> None:
        super().__init__(channels, hidden, out, static)
        self.cell = nn.GRUCell(2 * channels, hidden)
        self.state_decay = nn.Linear(channels, hidden)
        self.value_decay = nn.Parameter(torch.rand(2, channels))  # w and b
        # what runs along the rows: state, last values, times since them, time since the last row
        self.parts = (hidden, channels, channels, 1)

    def start(self, series: Series) -> Tensor:
        h = self.initial_state(series)
        return torch.cat([h, h.new_zeros(len(h), 2 * self.channels + 1)], 1)

    def advance(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        h, last, since, elapsed = h.split(self.parts, 1)
        gap = (t1 - t0)[:, None]
        return torch.cat([h, last, since + gap, elapsed + gap], 1)

    def update(self, h: Tensor, inputs: Tensor) -> Tensor:
        h, last, since, elapsed = h.split(self.parts, 1)
        x, mask = inputs.chunk(2, 1)
        last = torch.where(mask > 0, x, last)
        filled = torch.where(mask > 0, x, last * _decay(self.value_decay[0] * since + self.value_decay[1]))
        h = self.cell(torch.cat([filled, mask], 1), h * _decay(self.state_decay(since)))
        return torch.cat([h, last, since * (1 - mask), torch.zeros_like(elapsed)], 1)

    def hidden_state(self, h: Tensor) -> Tensor:
        h, _, since, elapsed = h.split(self.parts, -1)
        return torch.where(elapsed > 0, h * _decay(self.state_decay(since)), h)


def _decay(rate: Tensor) -> Tensor:
    return torch.exp(-torch.relu(rate))
