"""Bounds of `LatentODE` against models whose log likelihood has a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from latent_models import MATRIX, NOISE, WEIGHT, exact_log_likelihood, linear_gaussian, observation_map, ragged
from odenet.nn import LatentODE
from odenet.nn.latent import kl_warmup
from odenet.nn.latent.variational import importance_bound, kl_to_standard_normal, log_ratio_to_prior

ONE = torch.ones(1, 1, dtype=torch.float64)


def two_dimensional() -> LatentODE:
    start = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    return linear_gaussian(start, 0.8 * torch.ones_like(start), MATRIX, WEIGHT).fit_normalizer(ragged())


def test_the_bounds_lie_below_the_likelihood_and_converge_to_it() -> None:
    model, series = two_dimensional(), ragged()
    exact = exact_log_likelihood(model, series)
    observed = series.mask.any(2).any(1)
    with torch.no_grad():
        elbo = model.elbo(series, samples=2000, generator=0)
        some = torch.stack([model.iwae(series, samples=5, generator=i) for i in range(60)]).mean(0)
        many = model.iwae(series, samples=10_000, generator=0)
    assert (elbo[observed] < exact[observed] - 0.05).all()
    assert (elbo[observed] < some[observed]).all()
    assert (some[observed] < exact[observed]).all()
    torch.testing.assert_close(many, exact, atol=0.05, rtol=0)
    torch.testing.assert_close(elbo[~observed], torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def exact_posterior(series_model: LatentODE) -> tuple[Tensor, Tensor]:
    """Mean and deviation of z0 of one dimension given each sample of `ragged`."""
    series = ragged()
    moments = []
    for sample in range(len(series)):
        maps, offsets, values = observation_map(series_model, series, sample)
        precision = 1.0 + (maps.square().sum() / NOISE**2)
        moments.append(((maps[:, 0] @ (values - offsets)) / NOISE**2 / precision, precision.rsqrt()))
    mean, std = (torch.stack(m)[:, None].detach() for m in zip(*moments, strict=True))
    return mean, std


def test_every_bound_is_the_likelihood_at_the_exact_posterior() -> None:
    series, matrix, weight = ragged(), -0.7 * ONE, torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    draft = linear_gaussian(0 * ONE, ONE, matrix, weight).fit_normalizer(series)
    model = linear_gaussian(*exact_posterior(draft), matrix, weight).fit_normalizer(series)
    exact = exact_log_likelihood(model, series)
    with torch.no_grad():
        for samples in (1, 7):  # the weights do not depend on z0, so that a single one is exact
            torch.testing.assert_close(model.iwae(series, samples=samples, generator=3), exact, atol=1e-5, rtol=0)
        elbo = torch.stack([model.elbo(series, samples=2000, generator=i) for i in range(5)]).mean(0)
    torch.testing.assert_close(elbo, exact, atol=0.03, rtol=0)


def test_one_sample_of_the_importance_bound_is_the_elbo_with_a_drawn_divergence() -> None:
    model, series = two_dimensional(), ragged()
    q, z0 = model._draw(series, 1, 5)
    drawn, exact = -log_ratio_to_prior(q, z0)[0], kl_to_standard_normal(q)
    for weight in (1.0, 0.3):
        one = model.iwae(series, samples=1, kl_weight=weight, generator=5)
        torch.testing.assert_close(one, model.elbo(series, kl_weight=weight, generator=5) - weight * (drawn - exact))


def test_divergence_and_ratio_against_torch_distributions() -> None:
    torch.manual_seed(0)
    q = Normal(torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1)
    prior = Normal(torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64))
    torch.testing.assert_close(kl_to_standard_normal(q), kl_divergence(Independent(q, 1), Independent(prior, 1)))
    z = q.sample((4,))
    torch.testing.assert_close(log_ratio_to_prior(q, z), (prior.log_prob(z) - q.log_prob(z)).sum(-1))
    weights = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(importance_bound(weights), weights.exp().mean(0).log())


def test_loss_is_minus_the_mean_bound() -> None:
    model, series = two_dimensional(), ragged()
    for bound, each in (("elbo", model.elbo), ("iwae", model.iwae)):
        loss = model.loss(series, samples=3, kl_weight=0.5, generator=1, bound=bound)
        torch.testing.assert_close(loss, -each(series, samples=3, kl_weight=0.5, generator=1).mean())
    with pytest.raises(ValueError, match="no sample"):
        model.loss(series[[]])
    with pytest.raises(ValueError, match="bound"):
        model.loss(series, bound="kl")
    for method in (model.loss, model.elbo, model.iwae):
        with pytest.raises(ValueError, match="kl_weight must be a finite number, at least 0; got -1"):
            method(series, kl_weight=-1.0)


def test_the_target_of_an_extrapolation() -> None:
    """The encoder sees the first part, and the bound is of the second."""
    model, series = two_dimensional(), ragged()
    first, later = series.before(0.8), series.after(0.8)
    elbo = model.elbo(first, later, samples=2, generator=0)
    q, z0 = model._draw(first, 2, 0)
    torch.testing.assert_close(elbo, model.log_likelihood(z0, later).mean(0) - kl_to_standard_normal(q))
    with pytest.raises(ValueError, match="target must have the 4 samples"):
        model.elbo(series, series[:2])


def test_warmup() -> None:
    assert [kl_warmup(step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    with pytest.raises(ValueError, match="steps"):
        kl_warmup(1, 0)
