"""The latent ODE of torchdiffeq's example latent_ode.py, written anew for series with times of each sample's own."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor, nn

import odenet
from odenet.series import Series

LATENT, HIDDEN, RNN_UNITS, NOISE = 4, 20, 25, 0.3


def example_field() -> nn.Module:
    return odenet.nn.MLPField(LATENT, (HIDDEN, HIDDEN), "elu", time=False)


def example_decoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


class ExampleModel(nn.Module):
    """Tanh units from the last row to the first, z0, and `odeint` with the gradient through its steps.

    Times are the example's, from the first row on. Its spirals are observed at all times. Here the network takes the
    rows at all times of the batch, 0 where a sample has none, and which of them it has; the likelihood is that of the
    values observed.
    """

    def __init__(self, field: nn.Module, decoder: nn.Module, **options: Any) -> None:
        super().__init__()
        self.update, self.out = nn.Linear(3 + RNN_UNITS, RNN_UNITS), nn.Linear(RNN_UNITS, 2 * LATENT)
        self.field, self.decoder, self.options = field, decoder, options
        self.odeint: Any = import_module("torchdiffeq").odeint

    def fit_normalizer(self, series: Series) -> Self:
        """Nothing: it has no scales."""
        return self

    def encode(self, series: Series) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z0. series: with the same times for all."""
        h = series.x.new_zeros(len(series), RNN_UNITS)
        rows = torch.cat([series.x, series.mask.any(-1, keepdim=True).to(series.x)], -1)
        for row in reversed(rows.unbind(1)):
            h = torch.tanh(self.update(torch.cat([row, h], 1)))
        mean, log_variance = self.out(h).chunk(2, 1)
        return mean, log_variance

    def path(self, z0: Tensor, ts: Tensor) -> Tensor:
        """z at ts (T,) from 0 on, (T, B, latent); z0 holds at 0."""
        if ts[0] == 0:
            return self.odeint(self.field, z0, ts, **self.options)
        return self.odeint(self.field, z0, torch.nn.functional.pad(ts, (1, 0)), **self.options)[1:]

    def elbo(self, series: Series) -> Tensor:
        """The evidence lower bound of each sample, (B,), by one draw of z0. series: with the same times for all."""
        mean, log_variance = self.encode(series)
        z0 = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        values = self.decoder(self.path(z0, series.t[0])).movedim(0, 1)
        likelihood = torch.distributions.Normal(values, NOISE).log_prob(series.x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return torch.where(series.mask, likelihood, 0.0).sum((1, 2)) - divergence

    def loss(self, series: Series) -> Tensor:
        return -self.elbo(series.union()).mean()

    def forward(self, series: Series, ts: Tensor) -> Tensor:
        """The values at times ts (B, Q), the same for all, from the mean of z0: (B, Q, 2)."""
        mean, _ = self.encode(series.union())
        return self.decoder(self.path(mean, ts[0])).movedim(0, 1)
