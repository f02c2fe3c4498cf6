"""GRU-ODE-Bayes: a GRU in continuous time, whose update at observations learns to be that of Bayes."""

from __future__ import annotations

import math
from typing import Any, Unpack, final

import torch
from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...core.validate import boolean, describe, integer, number
from ...series.series import Series
from ..series_options import check_series_options
from .gap_flow import GapFlow
from .gru_field import GRUField, positive
from .recurrence import Recurrence


@final
class GRUODEBayes(Recurrence):
    """h evolves by a continuous GRU between rows and tells a normal distribution of each channel's next value.

    De Brouwer et al. 2019, "GRU-ODE-Bayes: continuous modeling of sporadically-observed time series". At a row a GRU
    cell takes the observed values, with what h had expected of them and their errors. Missing values play no part.

    channels: of the series. hidden: size of h, which stays in [-1, 1]. out: size of a linear readout of h; None: h
    itself. static: number of static features, from which h begins. prep: number of features that the cell gets of each
    channel. width: of the layer between h and the distributions. impute: the field sees the mean and the log-variance
    too. minimal: the field has one gate in place of two. rate: of the field, `GRUField`, whose states forget in a time
    of 1 / rate at the soonest; scaled times run from 0 to 1. noise: standard deviation of an observation, in scaled
    units, in the update of Bayes that `loss` compares with; predicted ones are not smaller, or the likelihood of a
    constant channel would have no bound. solve_options: over each gap, as those of `ODERNN`.

    Call `fit_normalizer` with the training data first, or give data and `rate` in fitting units.

    forward(series, ts=None), states(series), before(series): see `Recurrence`.
    loss(series, kl_weight=1.0): what training makes small, ().
    predict(series, ts): mean and standard deviation of the channels at ts, in the units of the data, (B, Q, C) each.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if a solve fails.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        static: int = 0,
        prep: int = 4,
        width: int = 32,
        impute: bool = False,
        minimal: bool = False,
        rate: float = 10.0,
        noise: float = 0.01,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        check_series_options(type(self), solve_options)
        super().__init__(channels, hidden, out, static)
        width, prep, self.noise = integer("width", width), integer("prep", prep), positive("noise", noise)
        self.emission = nn.Sequential(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, 2 * channels))
        seen = self.emission if boolean("impute", impute) else None
        field = GRUField(hidden, seen, 2 * channels, minimal, rate)
        self.flow = GapFlow(field, min(0.1, 1 / field.rate), **solve_options)  # half of 1 / rate is a step's length
        self.prep = _ChannelFeatures(channels, 4, prep)
        self.cell = nn.GRUCell(channels * prep, hidden)

    def initial_state(self, series: Series) -> Tensor:
        return torch.tanh(super().initial_state(series))  # in [-1, 1], as all that follow

    def advance(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return self.flow(h, t0, t1)

    def update(self, h: Tensor, inputs: Tensor) -> Tensor:
        x, mask = inputs.chunk(2, -1)
        mean, variance = self.distribution(h)
        error = (x - mean) / variance.sqrt()
        features = self.prep(torch.stack([x, mean, variance.log(), error], -1)) * mask[..., None]
        return self.cell(features.flatten(1), h)

    def distribution(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel for states (..., hidden), in scaled units: (..., C) each."""
        mean, log_variance = self.emission(h).chunk(2, -1)
        return mean, log_variance.exp() + self.noise**2

    def loss(self, series: Series, kl_weight: float = 1.0) -> Tensor:
        """-log p of each observed value just before its row, and how far the update at the row is from that of Bayes.

        The latter is kl_weight times the divergence from the posterior, of the distribution before the row and of an
        observation with `noise`, to the distribution after the row. The mean over observed values, in scaled units.
        """
        weight = number("kl_weight", kl_weight)
        if not 0 <= weight < math.inf:
            raise ValueError(f"kl_weight must be finite and not negative; got {describe(kl_weight)}")
        scaled = self.scaled(series)
        before, after = self.run(scaled)
        prior, x, noise = self.distribution(before), scaled.x, self.noise**2
        gain = prior[1] / (prior[1] + noise)
        posterior = prior[0] + gain * (x - prior[0]), gain * noise
        each = _surprise(x, prior) + weight * _divergence(posterior, self.distribution(after))
        return torch.where(scaled.mask, each, 0.0).sum() / scaled.mask.sum().clamp(min=1)

    def predict(self, series: Series, ts: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel at times ts, (Q,) or (B, Q): (B, Q, C) each, in data units.

        From the rows up to each time, that of a row itself too.
        """
        scaled = self.scaled(series)
        mean, variance = self.distribution(self.states_at(scaled, self.scaled_times(ts, scaled)))
        return self.normalizer.values(mean), self.normalizer.deviations(variance.sqrt())

    def extra_repr(self) -> str:
        return f"noise={self.noise}"


def _surprise(x: Tensor, normal: tuple[Tensor, Tensor]) -> Tensor:
    """-log of the density of a normal distribution, given by mean and variance."""
    mean, variance = normal
    return 0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean).square() / variance)


def _divergence(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """The Kullback-Leibler divergence KL(p || q) of normal distributions."""
    ratio = p[1] / q[1]
    return 0.5 * (ratio - 1 - ratio.log() + (p[0] - q[0]).square() / q[1])


@final
class _ChannelFeatures(nn.Module):
    """Features of each channel by a layer of its own: (B, C, inputs) -> (B, C, size)."""

    def __init__(self, channels: int, inputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, size) / inputs**0.5)
        self.bias = nn.Parameter(torch.full((channels, size), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.einsum("bci,cio->bco", x, self.weight) + self.bias)
