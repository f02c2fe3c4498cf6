"""`LatentODE` on ragged, padded and missing data: what must not matter does not."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from latent_models import Features, ragged
from odenet.nn import LatentODE
from odenet.nn.latent.reversal import reversed_rows
from odenet.series import Series, from_lists

ENCODERS = ("ode-rnn", "rnn", "gru", "attention")
TS = torch.tensor([-1.0, 0.0, 2.0, 6.0], dtype=torch.float64)


def model(encoder: Any = "rnn", **options: Any) -> LatentODE:
    torch.manual_seed(0)
    return LatentODE(2, 3, 8, encoder=encoder, **options).double().fit_normalizer(ragged())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("poisson", [False, True])
def test_padding_does_not_matter(encoder: str, poisson: bool) -> None:
    net, series = model(encoder, poisson=poisson), ragged()
    wide = series.padded(7)
    wide = Series(torch.where(wide.rows, wide.t, torch.nan), wide.x, wide.mask, wide.length)
    for x in (wide, series.trimmed()):
        torch.testing.assert_close(net.encode(x).mean, net.encode(series).mean)
        torch.testing.assert_close(net.elbo(x, generator=0), net.elbo(series, generator=0))
        torch.testing.assert_close(net(x, TS), net(series, TS))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_sample_does_not_depend_on_the_others(encoder: str) -> None:
    tight = {"rtol": 1e-9, "atol": 1e-11}
    net, series = model(encoder, **tight), ragged()
    together, z0 = net(series, TS), torch.randn(4, 3, dtype=torch.float64)
    likelihood = net.log_likelihood(z0, series)
    for i in range(len(series)):
        torch.testing.assert_close(net(series[i], TS), together[i : i + 1], atol=1e-7, rtol=0)
        own = net.log_likelihood(z0[i : i + 1], series[i])
        torch.testing.assert_close(own, likelihood[i : i + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_missing_does_not_matter(encoder: str) -> None:
    """Neither the content of missing values, nor rows without any value."""
    net, series = model(encoder, rtol=1e-9, atol=1e-11), ragged()
    x = torch.where(series.mask, series.x, 1e3)
    other = Series(series.t, x, series.mask, series.length)
    torch.testing.assert_close(net.elbo(other, generator=0), net.elbo(series, generator=0))
    gone = series.observed((torch.arange(3) != 1).expand(4, 3))  # the middle row keeps its time alone
    without = from_lists([[0.0, 2.5]], [[[1.0, 2.0], [4.0, 5.0]]], dtype=torch.float64)
    torch.testing.assert_close(net.elbo(gone[0], generator=0), net.elbo(without, generator=0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_part_of_the_model_is_trained(encoder: str) -> None:
    net = model(encoder, poisson=True, static=0)
    net.loss(ragged(), samples=2, generator=0).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_without_a_value_the_posterior_is_the_prior(encoder: str) -> None:
    q = model(encoder).encode(ragged())
    assert torch.equal(q.mean[2:], torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(q.stddev[2:], torch.ones(2, 3, dtype=torch.float64))
    assert bool((q.mean[:2] != 0).all())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_padding_time_of_an_empty_sample_does_not_matter(encoder: str) -> None:
    """An empty sample has the time 0 in the unit of the data, which may be far from those of the others."""
    series = ragged()
    late = Series(series.t + 1e6, series.x, series.mask, series.length)
    near, far = model(encoder), model(encoder).fit_normalizer(late)
    torch.testing.assert_close(near.elbo(series, generator=0), far.elbo(late, generator=0), atol=1e-6, rtol=0)
    prediction = far.reconstruct(late, samples=2, generator=0)
    assert bool((prediction.ts[2] == 1e6).all())
    torch.testing.assert_close(
        prediction.mean, near.reconstruct(series, samples=2, generator=0).mean, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_batches_of_no_sample_and_of_no_row(encoder: str) -> None:
    net, series = model(encoder, out=5), ragged()
    assert net(series[[]], TS).shape == (0, 4, 2)
    assert net(series[[]]).shape == (0, 5)
    assert net.elbo(series[[]], samples=2).shape == (0,)
    empty = series[2].trimmed()
    assert empty.t.shape == (1, 0)
    assert net(empty, TS).shape == (1, 4, 2)
    assert torch.equal(net.elbo(empty, generator=0), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_before_the_start(encoder: str) -> None:
    """z0 may lie behind rows: the path goes back to them."""
    net = model(encoder, start=0.4, rtol=1e-9, atol=1e-11)
    series = ragged()
    path = net.latent_path(series, torch.tensor([0.0, 1.6, 4.0], dtype=torch.float64))  # 1.6 is 0.4 of the span of 4
    torch.testing.assert_close(path[:, 1], net.encode(series).mean)
    back = net.flow(path[None, :, 0], torch.full((4, 1), 0.4, dtype=torch.float64))  # from the start, as field has no t
    assert torch.isfinite(back).all()
    assert torch.isfinite(net.elbo(series, generator=0)).all()


def test_outputs() -> None:
    net, series = model(), ragged()
    q = net.encode(series)
    assert torch.equal(net(series), q.mean)
    assert net.states(series).shape == (4, 3, 3)
    torch.testing.assert_close(net.latent_path(series, torch.zeros(1, dtype=torch.float64))[:, 0], q.mean)
    decoded = net.decode(q.mean, TS)
    torch.testing.assert_close(net(series, TS), decoded.mean)
    own_times = TS.expand(4, 4) + torch.arange(4.0)[:, None]
    torch.testing.assert_close(net(series, own_times)[1], net(series, own_times[1])[1], atol=1e-3, rtol=1e-3)
    readout = model(out=5)
    torch.testing.assert_close(readout(series), readout.readout(readout.encode(series).mean))


def test_static_features() -> None:
    series = ragged()
    static = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    with_static = Series(series.t, series.x, series.mask, series.length, static)
    net = model(static=0)
    with pytest.raises(ValueError, match="0 static features"):
        net.elbo(with_static)
    net = LatentODE(2, 3, 8, encoder="rnn", static=1).double().fit_normalizer(with_static)
    means = net.encode(with_static).mean
    other = Series(series.t, series.x, series.mask, series.length, static + 1.0)
    assert bool((net.encode(other).mean != means).all())  # of the series without values too
    assert net.elbo(with_static, samples=2).shape == (4,)


def test_the_order_and_times_of_reversed_rows() -> None:
    back = reversed_rows(ragged())
    assert back.length.tolist() == [3, 1, 0, 0]
    assert back.t[0].tolist() == [-2.5, -1.0, -0.0]
    assert back.t[1].tolist() == [-0.5, -0.5, -0.5]
    assert back.x[0].tolist() == [[4.0, 5.0], [0.0, 3.0], [1.0, 2.0]]
    assert back.mask[0, 1].tolist() == [False, True]


def test_copies_files_and_pickles() -> None:
    net, series = model("ode-rnn", poisson=True, noise="learned"), ragged()
    expected = net.elbo(series, generator=0)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    fresh = LatentODE(2, 3, 8, encoder="ode-rnn", poisson=True, start=0.7).double()
    fresh.load_state_dict(torch.load(buffer))
    for other in (fresh, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.elbo(series, generator=0), expected)


def test_the_model_in_single_precision() -> None:
    net = model("ode-rnn", poisson=True).float()
    series = ragged(torch.float32)
    assert net.elbo(series, generator=0).dtype == torch.float32
    with pytest.raises(ValueError, match="model"):
        net.elbo(ragged())


def test_an_encoder_of_ones_own() -> None:
    net = model(Features(torch.ones(1, 8)))
    assert torch.equal(net.encode(ragged()).mean[0], net.encode(ragged()).mean[1])
    net = model(Features(torch.ones(1, 5)))
    with pytest.raises(ValueError, match=r"encoder must give \(4, 8\)"):
        net.encode(ragged())


def test_a_field_of_ones_own_with_time() -> None:
    class Forced(nn.Module):
        def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return torch.cos(t).reshape(-1, 1) * torch.ones_like(z)

    net = model(field=Forced(), rtol=1e-9, atol=1e-11)
    path = net.latent_path(ragged(), TS)
    times = net.normalizer.times(TS)
    torch.testing.assert_close(path[0], net.encode(ragged()).mean[0] + torch.sin(times)[:, None], atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "lstm"}, "encoder must be one of"),
        ({"decoder": "poisson"}, "decoder must be"),
        ({"noise": 0.0}, "noise must be positive"),
        ({"noise": "fixed"}, "noise must be a positive number"),
        ({"latent": 0}, "latent must be"),
        ({"hidden": 0}, "hidden must be"),
        ({"method": "rk5"}, "method"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"event": None}, "event is no option"),
        ({"start": float("nan")}, "start"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LatentODE(2, **{"latent": 3, "hidden": 8} | options)


def test_wrong_calls() -> None:
    net, series = model(), ragged()
    with pytest.raises(ValueError, match="ts must be"):
        net(series, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="z0 must be"):
        net.decode(torch.zeros(4, 2), TS)
    with pytest.raises(ValueError, match="samples"):
        net.elbo(series, samples=0)
    with pytest.raises(ValueError, match="poisson=True"):
        net.elbo(series, window=TS[:2])
    with pytest.raises(ValueError, match="poisson=True"):
        net.intensity(series, TS)
    with pytest.raises(TypeError, match="generator"):
        net.elbo(series, generator="seed")
