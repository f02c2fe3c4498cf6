"""Decoders and predictions of `LatentODE`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from latent_models import MATRIX, NOISE, WEIGHT, linear_gaussian, ragged
from odenet.nn import LatentODE
from odenet.nn.latent import CategoricalDecoder, GaussianDecoder
from odenet.series import Series
from odenet.series.normalizer import Normalizer

TS = torch.tensor([0.0, 1.5, 4.0, 5.0], dtype=torch.float64)
LATER = torch.tensor([4.0, 6.0], dtype=torch.float64)


def linear(std: float) -> LatentODE:
    start = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    return linear_gaussian(start, torch.full_like(start, std), MATRIX, WEIGHT).fit_normalizer(ragged())


def test_a_forecast_of_a_latent_state_that_is_known() -> None:
    """Only noise is left: quantiles are those of a normal distribution around the one path."""
    model, series = linear(1e-6 + 1e-12), ragged()[:2]
    forecast = model.forecast(series, LATER, samples=5, quantiles=(0.05, 0.5, 0.9), generator=0)
    noise = NOISE * model.normalizer.std.expand(2, 2, 2)
    torch.testing.assert_close(forecast.mean, model(series, LATER).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(forecast.std, noise, atol=1e-5, rtol=0)
    exact = torch.stack([Normal(forecast.mean, noise).icdf(torch.tensor(q)) for q in (0.05, 0.5, 0.9)])
    torch.testing.assert_close(forecast.quantiles, exact, atol=1e-5, rtol=0)
    assert forecast.levels == (0.05, 0.5, 0.9)
    assert forecast.samples.shape == forecast.paths.shape == (5, 2, 2, 2)


def test_predictions_of_a_linear_model_are_normal() -> None:
    """z0 ~ q = N(m, s^2) makes values normal, with the variance of z(t) and that of the noise."""
    model, series = linear(0.6), ragged()[:2]
    prediction = model.reconstruct(series, TS, samples=20_000, generator=0)
    flow = torch.linalg.matrix_exp(model.normalizer.times(TS)[:, None, None] * MATRIX)
    maps = WEIGHT @ flow  # (Q, C, L)
    mean = model.normalizer.values(maps @ torch.tensor([0.3, -0.2], dtype=torch.float64) + 0.2)
    std = model.normalizer.deviations((0.36 * maps.square().sum(-1) + NOISE**2).sqrt())
    for sample in range(2):
        torch.testing.assert_close(prediction.mean[sample], mean, atol=0.05, rtol=0)
        torch.testing.assert_close(prediction.std[sample], std, atol=0.05, rtol=0)
        for level, quantile in zip(prediction.levels, prediction.quantiles, strict=True):
            exact = Normal(mean, std).icdf(torch.tensor(level))
            torch.testing.assert_close(quantile[sample], exact, atol=0.06, rtol=0)
    torch.testing.assert_close(prediction.samples.std(0), prediction.std, atol=0.05, rtol=0)
    torch.testing.assert_close(prediction.paths.mean(0), prediction.mean)


def test_quantiles_of_a_mixture() -> None:
    torch.manual_seed(0)
    each = Normal(3 * torch.randn(7, 4, 2, dtype=torch.float64), torch.rand(7, 4, 2, dtype=torch.float64) + 0.1)
    decoder = GaussianDecoder(nn.Identity(), 2)
    for level, quantile in zip((0.01, 0.3, 0.99), decoder.quantiles(each, (0.01, 0.3, 0.99)), strict=True):
        torch.testing.assert_close(each.cdf(quantile).mean(0), torch.full((4, 2), level, dtype=torch.float64))


def test_the_prior() -> None:
    model = linear(0.5)
    prior = model.sample(20_000, TS, generator=0)
    assert prior.samples.shape == (20_000, 4, 2)
    assert prior.mean.shape == prior.std.shape == (4, 2)
    assert prior.quantiles.shape == (3, 4, 2)
    flow = torch.linalg.matrix_exp(model.normalizer.times(TS)[:, None, None] * MATRIX)
    std = model.normalizer.deviations(((WEIGHT @ flow).square().sum(-1) + NOISE**2).sqrt())
    torch.testing.assert_close(prior.mean, model.normalizer.values(torch.full_like(std, 0.2)), atol=0.06, rtol=0)
    torch.testing.assert_close(prior.std, std, atol=0.06, rtol=0)


def test_predictions_are_reproducible() -> None:
    torch.manual_seed(0)
    model, series = LatentODE(2, 3, 8, encoder="rnn").double(), ragged()
    one, two = (model.reconstruct(series, TS, samples=3, generator=7) for _ in range(2))
    assert torch.equal(one.samples, two.samples)
    assert not torch.equal(one.samples, model.reconstruct(series, TS, samples=3, generator=8).samples)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(one.samples, model.reconstruct(series, TS, samples=3, generator=generator).samples)
    own = model.reconstruct(series, samples=3, generator=7)  # at the rows
    assert torch.equal(own.ts[0], series.t[0])
    noise = one.samples - one.paths
    z0 = model._draw(series, 3, 7)[1]
    assert abs(torch.corrcoef(torch.stack([noise.flatten()[: z0.numel()], z0.flatten()]))[0, 1].item()) < 0.9


def test_a_forecast_lies_behind_the_rows() -> None:
    model, series = linear(0.5), ragged()
    with pytest.raises(ValueError, match="sample 0 has rows after its first time"):
        model.forecast(series, torch.tensor([2.0, 5.0], dtype=torch.float64))
    assert model.forecast(series[2], torch.tensor([-1.0], dtype=torch.float64)).mean.shape == (1, 1, 2)
    with pytest.raises(ValueError, match="quantiles must be between 0 and 1"):
        model.forecast(series, LATER, quantiles=(0.0, 1.0))


@pytest.mark.parametrize("noise", [0.3, "learned", "per-time"])
def test_gaussian_densities_in_the_units_of_the_data(noise: Any) -> None:
    torch.manual_seed(0)
    model, series = LatentODE(2, 3, 8, encoder="rnn", noise=noise).double().fit_normalizer(ragged()), ragged()
    z0 = torch.randn(5, 4, 3, dtype=torch.float64)
    each = model.decode(z0, torch.where(series.rows, series.t, 0.0))
    exact = torch.where(series.mask, each.log_prob(series.x), 0.0).sum((2, 3))
    torch.testing.assert_close(model.log_likelihood(z0, series), exact)
    torch.testing.assert_close(model.log_likelihood(z0[2], series), exact[2])
    scale = each.stddev / model.normalizer.std
    assert bool((scale > 0).all())
    assert (scale.std() > 1e-4).item() == (noise == "per-time")


def one_hot() -> Series:
    classes = torch.tensor([[0, 2, 1], [1, 1, 2]])
    x = nn.functional.one_hot(classes, 3).double()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return Series(torch.arange(3.0, dtype=torch.float64), x, mask)


def test_classes() -> None:
    torch.manual_seed(0)
    series = one_hot()
    model = LatentODE(3, 4, 8, encoder="rnn", decoder="categorical").double().fit_normalizer(series)
    z0 = torch.randn(2, 4, dtype=torch.float64)
    probabilities = model.decode(z0, series.t).probs
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    cross_entropy = -nn.functional.nll_loss(probabilities.log().mT, series.x.argmax(-1), reduction="none")
    exact = torch.where(series.mask.all(-1), cross_entropy, 0.0).sum(1)
    torch.testing.assert_close(model.log_likelihood(z0, series), exact)
    model.loss(series, samples=2).backward()
    prediction = model.reconstruct(series, samples=4000, generator=0)
    assert bool(((prediction.samples == 0) | (prediction.samples == 1)).all())
    assert bool((prediction.samples.sum(-1) == 1).all())
    torch.testing.assert_close(prediction.samples.mean(0), prediction.mean, atol=0.04, rtol=0)
    torch.testing.assert_close(prediction.std, (prediction.mean * (1 - prediction.mean)).sqrt())
    torch.testing.assert_close(prediction.quantiles[1], (prediction.mean > 0.5).double())


def test_classes_that_are_not_one_hot() -> None:
    decoder, normalizer = CategoricalDecoder(nn.Identity()), Normalizer(2)
    z, whole = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="one-hot"):
        decoder.log_prob(z, torch.tensor([[[1.0, 1.0]]]), whole, normalizer)
    with pytest.raises(ValueError, match="one-hot"):
        decoder.log_prob(z, torch.tensor([[[0.5, 0.5]]]), whole, normalizer)
    with pytest.raises(ValueError, match="all channels"):
        decoder.log_prob(z, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[True, False]]]), normalizer)


def test_a_decoder_of_the_wrong_width() -> None:
    model = LatentODE(2, 3, 8, encoder="rnn", decoder=GaussianDecoder(nn.Linear(3, 2), 2, "per-time")).double()
    with pytest.raises(ValueError, match=r"must give \(..., 4\)"):
        model.elbo(ragged())
