"""Recurrent models of series: a state that evolves between rows and is updated at each."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ...series.series import Series
from ..series_model import SeriesModel, row_up_to


class Recurrence(SeriesModel):
    """Base of models whose state after a row depends on this row and those before it alone.

    forward(series, ts=None), states(series): as `SeriesModel`. At a time ts the state is that after the last row up to
    ts, evolved to ts; before the first row with a value it is the initial state. before(series): the output just before
    each row, from the rows before it alone, (B, T, out).

    A subclass says how the state evolves over a gap (`advance`) and what a row does to it (`update`). Where more than
    the hidden state runs along the rows, it also says how that begins (`start`) and what the hidden state is of it
    (`hidden_state`).
    """

    def __init__(self, channels: int, hidden: int, out: int | None, static: int) -> None:
        super().__init__(channels, hidden, out, static)
        self.initial = nn.Linear(static, hidden) if static else None

    def before(self, series: Series) -> Tensor:
        """The output just before each row, (B, T, out)."""
        scaled = self.scaled(series)
        return self.readout(self.hidden_state(self.run(scaled)[0])[:, : series.t.shape[1]])

    @abstractmethod
    def advance(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """The state at t1 (B,) from h (B, width) at t0 (B,), without a row between them."""

    @abstractmethod
    def update(self, h: Tensor, inputs: Tensor) -> Tensor:
        """The state after a row, from that before it and the row's inputs (B, F)."""

    def row_inputs(self, series: Series) -> Tensor:
        """What `update` gets of each row, (B, T, F): values, 0 where missing, and 1 where they are observed."""
        return torch.cat([series.x, series.mask.to(series.x)], -1)

    def row_states(self, series: Series) -> Tensor:
        return self.hidden_state(self.run(series)[1])

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        _, after = self.run(series)
        row = row_up_to(series, ts)
        row = torch.where(row < _first_value(series)[:, None], -1, row)
        start = row.clamp(min=0)
        h = after.gather(1, start[..., None].expand(*start.shape, after.shape[-1]))
        t0 = torch.where(row < 0, ts, series.t.gather(1, start))
        # not from one query to the next: the answer for a time does not depend on which others are asked
        states = self.advance(h.flatten(0, 1), t0.flatten(), ts.flatten()).unflatten(0, ts.shape)
        return self.hidden_state(torch.where((row < 0)[..., None], self.start(series)[:, None], states))

    def initial_state(self, series: Series) -> Tensor:
        """The state before the first row, (B, hidden): zeros, or a linear map of the static features."""
        if self.initial is None or series.static is None:
            return series.x.new_zeros(len(series), self.hidden)
        return self.initial(series.static)

    def start(self, series: Series) -> Tensor:
        """What runs along the rows, before the first one: (B, width). By default the hidden state alone."""
        return self.initial_state(series)

    def hidden_state(self, h: Tensor) -> Tensor:
        """The hidden state of what runs along the rows, (..., width): (..., hidden)."""
        return h

    def run(self, series: Series) -> tuple[Tensor, Tensor]:
        """What runs along the rows of a scaled series, before and after each, (B, T, width)."""
        h, rows = self.start(series), torch.arange(series.t.shape[1], device=series.t.device)
        # the state begins at the first value: rows before it say nothing
        begun = rows > _first_value(series)[:, None]
        t0 = torch.where(begun, torch.cat([series.t[:, :1], series.t[:, :-1]], 1), series.t)
        before: list[Tensor] = []
        after: list[Tensor] = []
        seen = series.mask.any(-1, keepdim=True)
        for start, end, inputs, observed in zip(
            t0.unbind(1), series.t.unbind(1), self.row_inputs(series).unbind(1), seen.unbind(1), strict=True
        ):
            h = self.advance(h, start, end)
            before.append(h)
            h = torch.where(observed, self.update(h, inputs), h)
            after.append(h)
        return torch.stack(before, 1), torch.stack(after, 1)


def _first_value(series: Series) -> Tensor:
    """The number of the first row with a value, (B,); that of rows for a sample without any."""
    none_yet = series.mask.any(-1).cumsum(1) == 0
    return none_yet.sum(1)
