"""The times of observations as a Poisson process, against a fine quadrature of its intensity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_models import ragged
from odenet.nn import LatentODE
from odenet.series import Series


def model(**options: Any) -> LatentODE:
    torch.manual_seed(0)
    tight: Any = {"rtol": 1e-9, "atol": 1e-11} | options
    return LatentODE(2, 3, 8, encoder="rnn", poisson=True, **tight).double().fit_normalizer(ragged())


def quadrature(net: LatentODE, z0: Tensor, series: Series, window: Tensor) -> Tensor:
    """Log density of values and of times, (B,), by the decoder and Simpson's rule."""
    out = []
    for i in range(len(series)):
        n = int(series.length[i])
        first, last = window[i]
        nodes = torch.linspace(first.item(), last.item(), 101, dtype=torch.float64)
        weights = torch.tensor([1.0, *[4.0, 2.0] * 49, 4.0, 1.0], dtype=torch.float64) * (last - first) / 300.0

        def rate(ts: Tensor, i: int = i) -> Tensor:
            z = net.flow(z0[None, i : i + 1], net.normalizer.times(ts)[None])[0, 0]
            return net.flow.intensity(z).exp() / net.normalizer.span

        total = -(weights @ rate(nodes)).sum()
        t, mask = series.t[i, :n], series.mask[i, :n]
        inside = mask & ((t > first) & (t <= last))[:, None]
        if n:
            total = total + torch.where(inside, rate(t).log(), 0.0).sum()
            density = net.decode(z0[i : i + 1], t).log_prob(series.x[i : i + 1, :n])
            total = total + torch.where(mask, density, 0.0).sum()
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("per_sample", [False, True])
def test_against_quadrature(per_sample: bool) -> None:
    net, series = model(per_sample=per_sample), ragged()
    z0 = torch.randn(4, 3, dtype=torch.float64)
    given = torch.tensor([[-0.5, 3.0], [0.0, 0.6], [1.0, 2.0], [1.0, 4.5]], dtype=torch.float64)
    rows = torch.tensor([[0.0, 2.5], [0.5, 0.5], [0.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    for window, ends in (
        (given, given),
        (None, rows),
        (torch.tensor([-0.5, 5.0]), torch.tensor([[-0.5, 5.0]]).expand(4, 2)),
    ):
        exact = quadrature(net, z0, series, ends)
        torch.testing.assert_close(net.log_likelihood(z0, series, window), exact, atol=1e-5, rtol=1e-6)


def test_the_intensity_is_per_unit_of_the_data() -> None:
    """A model of times that are ten times as long has a tenth of the intensity, and integrals stay."""
    series = ragged()
    longer = Series(10.0 * series.t, series.x, series.mask, series.length)
    short, long = model(), model().fit_normalizer(longer)
    ts = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(long.intensity(longer, 10.0 * ts), short.intensity(series, ts) / 10.0)
    events = int((series.mask & (series.t > series.t[:, :1])[..., None])[0].sum())
    difference = short.elbo(series, generator=0)[0] - long.elbo(longer, generator=0)[0]
    torch.testing.assert_close(difference.item(), events * torch.tensor(10.0).log().item(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_training_finds_the_rate_of_a_constant_process() -> None:
    """Channel 0 has a value at every row, channel 1 at a fifth of them: 20 and 4 per unit of time."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    gaps = -torch.rand(16, 30, generator=generator).log() / 20.0
    t = gaps.cumsum(1)
    t = torch.where(t < 1.0, t, torch.nan)
    t[:, 0] = torch.where(torch.isnan(t[:, 0]), 0.5, t[:, 0])
    mask = torch.stack([torch.ones(16, 30, dtype=torch.bool), torch.rand(16, 30, generator=generator) < 0.2], -1)
    series = Series(t, torch.zeros(16, 30, 2), mask)
    net = LatentODE(2, 2, 8, encoder="attention", noise=1.0, poisson=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    window = torch.tensor([0.0, 1.0])
    for _ in range(60):
        loss = net.loss(series, window=window, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        rates = net.intensity(series, torch.linspace(0.0, 1.0, 11)).mean((0, 1))
    count = series.mask.sum((0, 1)) / 16
    torch.testing.assert_close(rates, count.float(), rtol=0.1, atol=0.0)


def test_wrong_windows() -> None:
    net, series = model(), ragged()
    for window in ([1.0, 0.0], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="window must be two times"):
            net.elbo(series, window=torch.tensor(window))
    for window in ([0.0, 1.0], [0.1, 9.0]):
        with pytest.raises(ValueError, match="window must hold the rows of each sample"):
            net.elbo(series, window=torch.tensor(window))
