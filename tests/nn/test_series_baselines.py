"""Attention over series and simple forecasts: what every model of series must do, and by-hand formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nn.series_model_suite import TS, SeriesModelSuite, ragged
from odenet.nn import LastValue, MeanValue, MultiTimeAttention, SeriesTransformer
from odenet.nn.baselines.time_features import TimeFeatures
from odenet.series import Series

D = torch.float64


class TestSeriesTransformer(SeriesModelSuite):
    causal = False

    def make(self, channels: int, out: int | None, static: int) -> SeriesTransformer:
        return SeriesTransformer(channels, 4, out, static, heads=2, layers=1)


class TestCausalSeriesTransformer(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> SeriesTransformer:
        return SeriesTransformer(channels, 4, out, static, heads=1, causal=True, learned_times=False)


class TestMultiTimeAttention(SeriesModelSuite):
    causal = False
    last_row_is_last_state = False

    def make(self, channels: int, out: int | None, static: int) -> MultiTimeAttention:
        return MultiTimeAttention(channels, 4, out, static, references=5, time_size=6)


def test_features_of_times() -> None:
    t = torch.rand(3, 5, dtype=D)
    fixed, learned = TimeFeatures(6, learned=False).double(), TimeFeatures(6).double()
    assert not list(fixed.parameters()) and len(list(learned.parameters())) == 2
    y = fixed(t)
    torch.testing.assert_close(y, learned(t))
    torch.testing.assert_close(y[..., 0], t)
    for i in range(1, 6):
        torch.testing.assert_close(y[..., i], torch.sin(fixed.frequency[i] * t + fixed.phase[i]))
    torch.testing.assert_close(y[..., 2] ** 2 + y[..., 3] ** 2, torch.ones_like(t))
    assert TimeFeatures(1)(torch.rand(2).float()).shape == (2, 1)


def test_attention_of_the_transformer_by_hand() -> None:
    """The answer at a time, from the encoder's tokens of the rows that may be looked at, sample by sample."""
    torch.manual_seed(0)
    model, series = SeriesTransformer(2, 8, heads=2, causal=True, layers=1).double(), ragged()
    ts = torch.tensor([0.0, 0.4, 0.9], dtype=D)
    found = model(series, ts)
    encoded = model._encoded(series)
    for i in range(4):
        for q, t in enumerate(ts):
            rows = [0] + [
                j + 1
                for j in range(int(series.length[i]))
                if bool(series.mask[i, j].any()) and float(series.t[i, j]) <= float(t)
            ]
            keys, values = model.key_value(encoded[i, rows]).chunk(2, -1)
            asked = model.query(model.times(t))
            heads = [
                torch.softmax(keys[:, part] @ asked[part] / 2.0, 0) @ values[:, part]
                for part in (slice(0, 4), slice(4, 8))
            ]
            torch.testing.assert_close(found[i, q], model.after(asked + torch.cat(heads)))


def test_rows_without_a_value_are_not_looked_at() -> None:
    torch.manual_seed(0)
    t = torch.tensor([[0.1, 0.2, 0.5]], dtype=D)
    x = torch.randn(1, 3, 2, dtype=D)
    mask = torch.tensor([True, False, True])[None, :, None].expand(1, 3, 2)
    other = Series(t[:, [0, 2]], x[:, [0, 2]])
    for model in (
        SeriesTransformer(2, 8).double(),
        SeriesTransformer(2, 8, causal=True).double(),
        MultiTimeAttention(2, 8).double(),
    ):
        torch.testing.assert_close(model(Series(t, x, mask), TS), model(other, TS))


@pytest.mark.parametrize("causal", [False, True])
def test_the_transformer_without_gradients(causal: bool) -> None:
    """PyTorch's encoder takes other kernels then, which know the masks too."""
    torch.manual_seed(0)
    model, series = SeriesTransformer(2, 8, causal=causal).double().eval(), ragged()
    with torch.no_grad():
        y = model(series, TS)
    torch.testing.assert_close(y, model(series, TS))


def test_multi_time_attention_by_hand() -> None:
    """The weights of a channel are a softmax over its own observations; the GRU runs along the reference times."""
    torch.manual_seed(0)
    model, series = MultiTimeAttention(2, 5, references=3, heads=2, time_size=4).double(), ragged()
    model.references = model.references.double()

    def scores(layer: nn.Module, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        q, k = layer.query(model.times(query)).view(2, 4), layer.key(model.times(key)).view(-1, 2, 4)
        return torch.einsum("hf,khf->hk", q, k) / 2.0

    last, at = model(series), model(series, TS)
    for i in range(4):
        inputs = []
        for r in model.references:
            features = []
            for head in range(2):
                means, some = [], []
                for c in range(2):
                    seen = series.mask[i, :, c]
                    weights = torch.softmax(scores(model.to_values, r, series.t[i, seen])[head], 0)
                    means.append(weights @ series.x[i, seen, c])
                    some.append(seen.any().to(D))
                features.append(torch.stack([*means, *some]))
            inputs.append(model.mix(torch.cat(features)))
        states = model.gru(torch.stack(inputs)[None])[0][0]
        torch.testing.assert_close(last[i], states[-1])
        for q, t in enumerate(TS):
            weights = torch.softmax(scores(model.to_references, t, model.references), 1)
            torch.testing.assert_close(at[i, q], model.out_mix((weights @ states).flatten()))


def test_wrong_arguments_of_attention() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        SeriesTransformer(2, 10, heads=4)
    with pytest.raises(ValueError, match="dropout"):
        SeriesTransformer(2, 8, dropout=1.0)
    with pytest.raises(TypeError, match="causal"):
        SeriesTransformer(2, 8, causal=1)
    for name in ("references", "heads", "time_size"):
        with pytest.raises((TypeError, ValueError), match="size" if name == "time_size" else name):
            MultiTimeAttention(2, 8, **{name: 0})


def small() -> Series:
    nan = torch.nan
    t = torch.tensor([[0.0, 1.0, 3.0], [2.0, 5.0, nan], [nan, nan, nan]], dtype=D)
    x = torch.tensor(
        [[[1.0, nan], [nan, nan], [4.0, 8.0]], [[nan, 6.0], [2.0, 10.0], [nan, nan]], [[nan, nan]] * 3], dtype=D
    )
    return Series(t, x)


def test_last_value() -> None:
    series, ts = small(), torch.tensor([4.0, -1.0, 0.5, 3.0, 2.5], dtype=D)
    plain = LastValue(2).double()
    expected = [
        [[4, 8], [0, 0], [1, 0], [4, 8], [1, 0]],
        [[0, 6], [0, 0], [0, 0], [0, 6], [0, 6]],
        [[0, 0]] * 5,
    ]
    assert torch.equal(plain(series, ts), torch.tensor(expected, dtype=D))
    assert torch.equal(plain(series), torch.tensor([[4.0, 8.0], [2.0, 10.0], [0.0, 0.0]], dtype=D))
    assert torch.equal(plain.states(series)[0], torch.tensor([[1.0, 0.0], [1.0, 0.0], [4.0, 8.0]], dtype=D))
    fitted = LastValue(2).double().fit_normalizer(series)
    means = torch.tensor([7 / 3, 8.0], dtype=D)
    torch.testing.assert_close(fitted(series, ts)[2], means.expand(5, 2))
    torch.testing.assert_close(fitted(series, ts)[0, 2], torch.stack([torch.tensor(1.0, dtype=D), means[1]]))
    torch.testing.assert_close(fitted(series, ts)[0, 0], torch.tensor([4.0, 8.0], dtype=D))


def test_mean_value() -> None:
    series, ts = small(), torch.tensor([4.0, -1.0], dtype=D)
    fitted = MeanValue(2).double().fit_normalizer(series)
    expected = torch.tensor([[2.5, 8.0], [2.0, 8.0], [7 / 3, 8.0]], dtype=D)
    torch.testing.assert_close(fitted(series, ts), expected[:, None].expand(3, 2, 2))
    torch.testing.assert_close(fitted(series), expected)
    torch.testing.assert_close(fitted.states(series), expected[:, None].expand(3, 3, 2))
    assert torch.equal(MeanValue(2).double()(series)[2], torch.zeros(2, dtype=D))


@pytest.mark.parametrize("kind", [LastValue, MeanValue])
def test_forecasts_as_modules(kind: type[LastValue] | type[MeanValue]) -> None:
    series = ragged(2)
    model = kind(2, static=2).double().fit_normalizer(series)
    assert not list(model.parameters())
    y = model(series, TS)
    close = torch.testing.assert_close
    close(model(series.padded(9), TS), y)
    for i in range(4):
        close(model(series[i].trimmed(), TS)[0], y[i])
    fresh = kind(2, static=2).double()
    fresh.load_state_dict(model.state_dict())
    close(fresh(series, TS), y)
    close(copy.deepcopy(model)(series, TS), y)
    empty = Series(torch.zeros(2, 0, dtype=D), torch.zeros(2, 0, 2, dtype=D), static=torch.zeros(2, 2, dtype=D))
    close(model(empty, TS), model.normalizer.mean.expand(2, 3, 2))
    assert model(series[:0], TS).shape == (0, 3, 2) and model(series, TS[:0]).shape == (4, 0, 2)
    with pytest.raises(ValueError, match="2 channels"):
        model(ragged(2, channels=3))
