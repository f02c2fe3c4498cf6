"""GRU-ODE-Bayes: its field against the formula and the bounds of the paper, its loss against torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import odenet
from nn.series_model_suite import ragged
from odenet.nn import GRUODEBayes
from odenet.nn.recurrent.gru_field import GRUField
from odenet.series import Series, from_lists

D = torch.float64


def model(**options: object) -> GRUODEBayes:
    torch.manual_seed(0)
    return GRUODEBayes(2, 4, **options).double()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("impute", [False, True])
@pytest.mark.parametrize("minimal", [False, True])
def test_the_field_is_the_formula(impute: bool, minimal: bool) -> None:
    torch.manual_seed(0)
    p = nn.Linear(3, 2)
    field = GRUField(3, p if impute else None, 2, minimal).double()
    h = torch.randn(5, 3, dtype=D)
    w, b, wg, bg = (
        v.detach().numpy() for v in (field.gates.weight, field.gates.bias, field.candidate.weight, field.candidate.bias)
    )
    given = [p(h).detach().numpy()] if impute else []
    state = h.numpy()
    gates = sigmoid(np.concatenate([state, *given], 1) @ w.T + b)
    reset, keep = (gates, gates) if minimal else (gates[:, :3], gates[:, 3:])
    candidate = np.tanh(np.concatenate([reset * state, *given], 1) @ wg.T + bg)
    expected = (1 - keep) * (candidate - state)
    np.testing.assert_allclose(field(torch.tensor(0.0), h).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("minimal", [False, True])
def test_the_state_is_bounded_and_moves_at_most_by_two(minimal: bool) -> None:
    """Whatever the weights; the bounds are reached to a good part, so the test would see a wrong sign."""
    torch.manual_seed(0)
    field = GRUField(6, minimal=minimal, rate=1.0).double()
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(30.0)
    h0 = torch.rand(200, 6, dtype=D).mul(2).sub(1).sign()  # at the corners
    ts = torch.linspace(0, 3, 61, dtype=D)
    with torch.no_grad():
        h = odenet.solve(field, h0, ts, rtol=1e-8, atol=1e-8).ys
    assert 1 - 1e-9 <= float(h.abs().max()) <= 1 + 1e-7
    speed = float((h.diff(dim=0).abs() / ts.diff()[:, None, None]).max())
    assert 1.5 < speed <= 2 + 1e-6


def test_states_stay_in_the_bounds() -> None:
    bayes, series = model(static=2, rtol=1e-6, atol=1e-8), ragged(2)
    with torch.no_grad():
        for p in bayes.parameters():
            p.mul_(20.0)
    before, after = bayes.run(bayes.scaled(series))
    assert 0.9 < float(after.detach().abs().max()) <= 1 + 1e-6 and float(before.detach().abs().max()) <= 1 + 1e-6


def test_what_an_update_sees() -> None:
    """A channel that is not observed plays no part, though the state expects something of it."""
    bayes = model()
    h = torch.rand(3, 4, dtype=D)
    x, mask = torch.randn(3, 2, dtype=D), torch.tensor([[1.0, 0.0]] * 3, dtype=D)
    mean, variance = bayes.distribution(h)
    each = torch.stack([x, mean, variance.log(), (x - mean) / variance.sqrt()], -1)
    features = [
        torch.relu(each[:, c] @ bayes.prep.weight[c] + bayes.prep.bias[c]) * mask[:, c : c + 1] for c in range(2)
    ]
    expected = bayes.cell(torch.cat(features, 1), h)
    torch.testing.assert_close(bayes.update(h, torch.cat([x * mask, mask], 1)), expected)
    other = torch.cat([torch.stack([x[:, 0], x[:, 1] + 5], 1), mask], 1)
    torch.testing.assert_close(bayes.update(h, other), expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_the_loss(kl_weight: float) -> None:
    bayes, series = model(noise=0.2), ragged()
    bayes.fit_normalizer(series)
    scaled = bayes.scaled(series)
    before, after = bayes.run(scaled)
    total, count = torch.zeros((), dtype=D), 0
    for i, j, c in series.mask.nonzero().tolist():
        x = scaled.x[i, j, c]
        (mean, variance), (later, later_variance) = bayes.distribution(before[i, j]), bayes.distribution(after[i, j])
        prior = Normal(mean[c], variance[c].sqrt())
        precision = 1 / variance[c] + 1 / 0.2**2
        posterior = Normal((mean[c] / variance[c] + x / 0.2**2) / precision, precision**-0.5)
        total = total - prior.log_prob(x)
        total = total + kl_weight * kl_divergence(posterior, Normal(later[c], later_variance[c].sqrt()))
        count += 1
    torch.testing.assert_close(bayes.loss(series, kl_weight=kl_weight), total / count)
    wide = bayes.loss(series.padded(8), kl_weight=kl_weight)
    torch.testing.assert_close(wide, total / count)


def test_gradients_of_the_loss() -> None:
    bayes, series = model(impute=True), ragged()
    assert torch.autograd.gradcheck(lambda *_: bayes.loss(series), tuple(bayes.parameters()), fast_mode=True)


def test_nothing_observed_has_no_loss() -> None:
    bayes, series = model(), ragged()
    for empty in (series.observed(torch.zeros_like(series.mask)), series[:0]):
        loss = bayes.loss(empty)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert all(p.grad is None or not bool(p.grad.any()) for p in bayes.parameters())


def test_predictions_are_in_the_units_of_the_data() -> None:
    bayes, series, ts = model(), ragged(), torch.tensor([0.05, 0.4, 1.2], dtype=D)
    mean, std = bayes.fit_normalizer(series).predict(series, ts)
    assert mean.shape == std.shape == (4, 3, 2) and bool((std > 0).all())
    scale, move = torch.tensor([40.0, 0.1], dtype=D), torch.tensor([-7.0, 3.0], dtype=D)
    other = series.with_values(60 * series.t + 100, torch.where(series.mask, scale * series.x + move, 0.0), None)
    wide = bayes.fit_normalizer(other).predict(other, 60 * ts + 100)
    torch.testing.assert_close(wide[0], scale * mean + move)
    torch.testing.assert_close(wide[1], scale * std)


def waves(count: int) -> Series:
    """Noisy sines of a random phase, at random times."""
    t = torch.rand(count, 12).sort(1).values
    phase = 2 * math.pi * torch.rand(count, 1)
    x = torch.sin(2 * math.pi * t + phase) + 0.05 * torch.randn(count, 12)
    return Series(t, x[..., None], torch.rand(count, 12, 1) < 0.8)


@pytest.mark.slow
def test_training_learns_a_wave() -> None:
    """Against the normal distribution of all values: -log p is 1.42 in scaled units, and the square error 0.5."""
    torch.manual_seed(0)
    train, test = waves(64), waves(64)
    bayes = GRUODEBayes(1, 16).fit_normalizer(train)
    optimiser = torch.optim.Adam(bayes.parameters(), lr=0.02)
    for _ in range(50):
        optimiser.zero_grad()
        bayes.loss(train, kl_weight=0.1).backward()
        nn.utils.clip_grad_norm_(bayes.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        assert float(bayes.loss(test, kl_weight=0.0)) < 0.5
        late = test.after(0.6)
        mean, std = bayes.predict(test.before(0.6), late.t)
    error = (mean - late.x)[late.mask]
    assert float(error.square().mean()) < 0.15
    assert 0.2 < float((error / std[late.mask]).abs().median()) < 1.5  # 0.67 if they are normal with these deviations


def test_a_constant_channel() -> None:
    """Its likelihood has a bound, by `noise`: -log p of an exact prediction."""
    torch.manual_seed(0)
    series = Series(torch.rand(8, 6).sort(1).values, torch.full((8, 6, 1), 3.0))
    bayes = GRUODEBayes(1, 8, noise=0.1).fit_normalizer(series)
    optimiser = torch.optim.Adam(bayes.parameters(), lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        loss = bayes.loss(series, kl_weight=0.0)
        loss.backward()
        optimiser.step()
    assert 0.5 * math.log(2 * math.pi * 0.1**2) < float(loss.detach()) < 0.0
    mean, std = bayes.predict(series, [2.0])
    torch.testing.assert_close(mean, torch.full_like(mean, 3.0), rtol=0.0, atol=0.3)
    assert bool((std >= 0.1).all())


def test_wrong_arguments() -> None:
    for name in ("noise", "rate"):
        for wrong in (0.0, -1.0, math.inf):
            with pytest.raises(ValueError, match=name):
                model(**{name: wrong})
    for name in ("impute", "minimal"):
        with pytest.raises(TypeError, match=name):
            model(**{name: 1})
    with pytest.raises(ValueError, match="kl_weight"):
        model().loss(ragged(), kl_weight=-1.0)
    with pytest.raises(ValueError, match="channels"):
        model().loss(ragged(channels=3))
    with pytest.raises(ValueError, match="ts must be"):
        model().predict(ragged(), torch.zeros(3, 2, dtype=D))


def test_float32() -> None:
    series = ragged(dtype=torch.float32)
    bayes = model().float()
    mean, std = bayes.predict(series, [0.5])
    assert mean.dtype == std.dtype == bayes.loss(series).dtype == torch.float32


@pytest.mark.parametrize("rate", [10.0, 60.0])
def test_states_stay_bounded_over_long_gaps(rate: float) -> None:
    """Far behind the last row, and over gaps of much of the span: as an accurate solve says, within [-1, 1]."""
    torch.manual_seed(0)
    series = from_lists(
        [[0.0, 1.0], [0.0, 0.1, 0.2, 0.3], [0.0, 0.5, 1.0]],
        [[1.0, 2.0], [1.0, 0.0, 2.0, 1.0], [1.0, 3.0, 0.0]],
        dtype=D,
    )
    model = GRUODEBayes(1, 16, rate=rate).double().fit_normalizer(series)
    exact = GRUODEBayes(1, 16, rate=rate, rtol=1e-8, atol=1e-8).double()
    exact.load_state_dict(model.state_dict())
    ts = torch.tensor([1.5, 3.0], dtype=D)
    for mine, theirs in ((model(series, ts), exact(series, ts)), (model.before(series), exact.before(series))):
        assert float(mine.detach().abs().max()) <= 1.0
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)
