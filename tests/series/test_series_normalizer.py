"""`Normalizer` beside NumPy: means and deviations of what is observed, the way back, constants, the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from odenet.series import Normalizer, Series
from series.random_series import SERIES, random_series, same


def fitted(series: Series) -> Normalizer:
    static = 0 if series.static is None else series.static.shape[1]
    return Normalizer(series.num_channels, static).to(series.x.dtype).fit(series)


@given(SERIES.filter(len))
def test_against_numpy(series: Series) -> None:
    normalizer = fitted(series)
    for c in range(series.num_channels):
        values = series.x[..., c][series.mask[..., c]].numpy()
        several = len(set(values.tolist())) > 1
        assert float(normalizer.mean[c]) == pytest.approx(values.mean() if len(values) else 0.0, abs=1e-12)
        assert float(normalizer.std[c]) == pytest.approx(values.std() if several else 1.0, rel=1e-12)
    if series.static is not None:
        np.testing.assert_allclose(normalizer.static_mean, series.static.mean(0), rtol=1e-12, atol=1e-12)
        wanted = np.std(series.static.numpy(), 0) if len(series) > 1 else np.ones(series.static.shape[1])
        np.testing.assert_allclose(normalizer.static_std, wanted, rtol=1e-12)
    times = series.t[series.rows]
    if len(times):
        assert float(normalizer.start) == float(times.min())
        assert float(normalizer.span) == (float(times.max() - times.min()) or 1.0)


@given(SERIES.filter(len))
def test_there_and_back(series: Series) -> None:
    normalizer = fitted(series)
    scaled = normalizer(series)
    assert torch.equal(scaled.mask, series.mask) and torch.equal(scaled.length, series.length)
    assert not scaled.x[~scaled.mask].any()
    back = torch.where(series.mask, normalizer.values(scaled.x), 0.0)
    torch.testing.assert_close(back, series.x, rtol=1e-12, atol=1e-12)
    times = scaled.t[scaled.rows]
    assert bool(((times >= 0) & (times <= 1)).all())
    assert torch.equal(scaled.t, torch.where(series.length[:, None] > 0, normalizer.times(series.t), 0.0))
    again = fitted(scaled)
    torch.testing.assert_close(again.mean, torch.zeros_like(again.mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(again.std, torch.ones_like(again.std), rtol=1e-9, atol=0)


def test_padding_changes_nothing() -> None:
    series = random_series(0, static=2)
    a, b = fitted(series).state_dict(), fitted(series.padded(20)).state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-14, atol=1e-14)


def test_deviations_have_the_scale_of_the_data() -> None:
    series = random_series(1)
    normalizer = fitted(series)
    torch.testing.assert_close(
        normalizer.deviations(torch.ones(5, 2, dtype=torch.float64)), normalizer.std.expand(5, 2)
    )


def test_before_a_fit_nothing_changes() -> None:
    series = random_series(0, static=1)
    assert same(Normalizer(2, 1).double()(series), series)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -273.15, 1e6])
def test_constant_channels_are_moved_alone(value: float, dtype: torch.dtype) -> None:
    t = torch.arange(1000.0, dtype=dtype)
    x = torch.stack([torch.full((1000,), value, dtype=dtype), t], 1)[None]
    mask = torch.ones(1, 1000, 2, dtype=torch.bool)
    series = Series(t, x, mask, static=torch.full((1, 1), value, dtype=dtype))
    normalizer = fitted(series)
    assert float(normalizer.std[0]) == 1.0 and float(normalizer.static_std) == 1.0
    scaled = normalizer(series)
    torch.testing.assert_close(scaled.x[..., 0], torch.zeros(1, 1000, dtype=dtype), rtol=0, atol=1e-6 * abs(value))
    assert float(scaled.x[..., 1].std(correction=0)) == pytest.approx(1.0, rel=1e-5)


def test_a_channel_of_small_changes_is_scaled() -> None:
    """A pressure about 1e5 with a deviation of 1, in float32: a hundred roundings."""
    x = 1e5 + torch.randn(1, 10_001, 1, generator=torch.Generator().manual_seed(0))
    series = Series(torch.arange(10_001.0).float(), x.float())
    normalizer = Normalizer(1).float().fit(series)
    assert float(normalizer.std) == pytest.approx(float(series.x.double().std(correction=0)), rel=1e-5)
    assert float(normalizer.mean) == pytest.approx(float(series.x.double().mean()), abs=0.004)  # half of the last digit


def test_a_channel_without_values() -> None:
    series = random_series(0, missing=1.0)
    normalizer = fitted(series)
    assert normalizer.mean.tolist() == [0.0, 0.0] and normalizer.std.tolist() == [1.0, 1.0]


def test_one_time() -> None:
    series = Series(torch.tensor([5.0]), torch.ones(3, 1, 1))
    assert not Normalizer(1).to(series.x.dtype).fit(series)(series).t.any()


def test_late_times_are_scaled_too() -> None:
    t = torch.tensor([2.0**30, 2.0**30 + 256, 2.0**30 + 1024], dtype=torch.float32)
    series = Series(t, torch.ones(1, 3, 1, dtype=torch.float32))
    assert Normalizer(1).float().fit(series)(series).t.tolist() == [[0.0, 0.25, 1.0]]


def test_series_without_rows() -> None:
    normalizer = Normalizer(1).fit(Series(torch.zeros(2, 0), torch.zeros(2, 0, 1)))
    assert (float(normalizer.start), float(normalizer.span), float(normalizer.std)) == (0.0, 1.0, 1.0)


def test_the_state_holds_the_scales() -> None:
    series = random_series(4, static=2)
    other = Normalizer(2, 2).double()
    other.load_state_dict(fitted(series).state_dict())
    assert set(other.state_dict()) == {"mean", "std", "start", "span", "static_mean", "static_std"}
    assert same(other(series), fitted(series)(series))
    assert not list(other.parameters())


def test_gradients_do_not_stay_in_the_scales() -> None:
    x = torch.randn(2, 3, 1, requires_grad=True)
    normalizer = Normalizer(1).fit(Series(torch.arange(3.0), x))
    assert not normalizer.mean.requires_grad and not normalizer.std.requires_grad


def test_wrong_series() -> None:
    with pytest.raises(ValueError, match=r"series has no sample, and so no scales"):
        Normalizer(2).double().fit(random_series(0)[[]])
    for call in (Normalizer(3, 1).double().fit, Normalizer(3, 1).double()):
        with pytest.raises(ValueError, match=r"series must have 3 channels and 1 static features; it has 2 and 0"):
            call(random_series(0))
    with pytest.raises(TypeError, match=r"series must be an odenet.series.Series"):
        Normalizer(2).fit(torch.zeros(1, 2, 2))  # type: ignore[arg-type]
