"""Packed rows, series put together, mini-batches, unions of times; and models on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from odenet.nn.recurrent import ODERNN
from odenet.series import Series, batches, cat, from_packed
from series.random_series import SERIES, random_series, same


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(SERIES)
def test_packed_and_back(series: Series) -> None:
    packed = series.padded(12).packed()
    rows = int(series.length.sum())
    assert packed.t.shape == (rows,) and packed.x.shape == packed.mask.shape == (rows, series.num_channels)
    for b, (t, x, mask) in enumerate(zip(*(v.split(packed.length.tolist()) for v in _rows(packed)), strict=True)):
        n = int(series.length[b])
        assert torch.equal(t, series.t[b, :n]) and torch.equal(x, series.x[b, :n])
        assert torch.equal(mask, series.mask[b, :n])
    assert same(from_packed(*packed, series.static, series.channels, series.ids), series)


def _rows(packed: Any) -> tuple[Tensor, Tensor, Tensor]:
    return packed.t, packed.x, packed.mask


def test_packed_rows_as_they_come() -> None:
    t, length = torch.tensor([0.0, 1.0, 0.5, 0.0]), torch.tensor([2, 0, 1, 1])
    x = torch.tensor([[1.0], [float("nan")], [3.0], [4.0]])
    series = from_packed(t, x, length, torch.tensor([True, True, True, False]))
    assert series.t.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    assert series.mask[..., 0].tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert series.length.tolist() == [2, 0, 1, 1]
    empty = from_packed(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert empty.x.shape == (0, 0, 3)


def test_gradients_pass_through_packing() -> None:
    t, x = torch.arange(3.0, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    series = from_packed(t, x, torch.tensor([2, 1]))
    (series.packed().x.sum() + series.packed().t.sum()).backward()
    assert t.grad is not None and torch.equal(t.grad, torch.ones(3))
    assert x.grad is not None and torch.equal(x.grad, torch.ones(3, 2))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"t": torch.zeros(2, 2)}, ValueError, r"t must be \(N,\) and x \(N, channels\); got shape \(2, 2\) and"),
        ({"x": torch.zeros(3)}, ValueError, r"t must be \(N,\) and x \(N, channels\)"),
        ({"x": torch.zeros(4, 1)}, ValueError, r"t must be \(N,\) and x \(N, channels\)"),
        ({"x": [[1.0]]}, TypeError, r"x must be a floating-point tensor; got list"),
        (
            {"length": torch.tensor([1, 1])},
            ValueError,
            r"length must be the number of rows .* 3 in all; got list \[1, 1\]",
        ),
        ({"length": torch.tensor([4, -1])}, ValueError, r"length must be the number of rows"),
        ({"length": torch.tensor(3)}, ValueError, r"length must be the number of rows of each sample"),
        ({"length": None}, TypeError, r"length must be a tensor of whole numbers; got None"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, ValueError, r"mask must be \(3, 1\) or \(3,\); got shape \(2,\)"),
        ({"t": torch.tensor([0.0, 0.0, 1.0])}, ValueError, r"t must increase within a sample: sample 0"),
        ({"static": torch.zeros(3, 1)}, ValueError, r"static must be \(2, number of features\)"),
    ],
)
def test_wrong_packed_rows(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"t": torch.tensor([0.0, 1.0, 0.0]), "x": torch.ones(3, 1), "length": torch.tensor([2, 1])}
    with pytest.raises(error, match=message):
        from_packed(**(given | changes))


@given(SERIES, st.integers(0, 5))
def test_cat_undoes_a_split(series: Series, cut: int) -> None:
    cut = min(cut, len(series))
    assert same(cat([series[:cut].trimmed(), series[cut:].trimmed()]), series)
    if len(series):
        assert same(cat(list(series)), series)


def test_cat_of_parts_without_names() -> None:
    a, b = random_series(0), random_series(1, rows=9)
    both = cat([Series(a.t, a.x, a.mask, a.length), b])
    assert both.channels == b.channels and both.ids is None and len(both) == 8
    assert same(Series(both[4:].t, both[4:].x, both[4:].mask, both[4:].length, None, b.channels, b.ids), b)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda a: cat([]), ValueError, r"parts must be a list of at least one Series; it is empty"),
        (lambda a: cat([a, a.x]), TypeError, r"series must be an odenet.series.Series.*; got Tensor"),
        (lambda a: cat([a, random_series(0, channels=3)]), ValueError, r"parts\[1\] has 3 channels and 0 static"),
        (lambda a: cat([a, random_series(0, static=1)]), ValueError, r"parts\[1\] has 2 channels and 1 static"),
        (lambda a: cat([a, a.to(torch.float32)]), ValueError, r"torch.float32 on cpu, and parts\[0\] has .*float64"),
        (
            lambda a: cat([a, Series(a.t, a.x, a.mask, a.length, None, ["c1", "c0"])]),
            ValueError,
            r"all parts must have the same channels: parts\[1\] has \('c1', 'c0'\)",
        ),
    ],
)
def test_wrong_parts(make: Callable[[Series], Series], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(random_series(0))


@given(SERIES, st.integers(1, 7), st.booleans())
def test_batches_have_each_sample_once(series: Series, size: int, by_length: bool) -> None:
    parts = list(batches(series, size, draw(), by_length=by_length))
    full, rest = divmod(len(series), size)
    assert sorted(len(part) for part in parts) == [rest] * (rest > 0) + [size] * full
    found = [name for part in parts for name in part.ids or ()]
    assert sorted(found) == list(series.ids or ())
    if parts:
        order = [(series.ids or ()).index(name) for name in found]
        assert same(cat(parts), series[order])
    assert all(part.t.shape[1] == int(part.length.max()) for part in parts)


def test_batches_are_shuffled_and_repeatable() -> None:
    series = random_series(0, size=50)
    orders = [[name for part in batches(series, 8, draw(seed)) for name in part.ids or ()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0] != list(series.ids or ())
    unseeded = [[name for part in batches(series, 8) for name in part.ids or ()] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_batches_with_labels() -> None:
    series = random_series(0, size=11)
    labels = torch.arange(100, 111)
    for part, own in batches(series, 4, draw(), labels=labels):
        assert part.ids == tuple(own.tolist())


def test_batches_by_length_have_little_padding() -> None:
    series = random_series(0, size=200, rows=50)

    def columns(by_length: bool) -> int:
        return sum(part.t.numel() for part in batches(series, 20, draw(), by_length=by_length))

    total = int(series.length.sum())
    assert columns(False) > 1.7 * total and columns(True) < 1.1 * total
    firsts = [int(next(batches(series, 20, draw(seed), by_length=True)).length.max()) for seed in range(5)]
    assert len(set(firsts)) > 1  # the shortest do not always come first


def test_wrong_batches() -> None:
    series = random_series(0)
    with pytest.raises(TypeError, match=r"series must be an odenet.series.Series"):
        batches(series.x, 3)  # type: ignore[call-overload]
    for wrong in (0, 2.5):
        with pytest.raises((ValueError, TypeError), match=r"size must be"):
            batches(series, wrong)  # type: ignore[call-overload]
    for labels in (torch.zeros(3), torch.zeros(()), [0, 1, 2, 3]):
        with pytest.raises(ValueError, match=r"labels must be a tensor of 4 rows, one for each sample"):
            batches(series, 2, labels=labels)  # type: ignore[call-overload]


def test_data_loader() -> None:
    series = random_series(0, size=10)
    loader: Any = DataLoader(series, batch_size=4, shuffle=True, collate_fn=cat, generator=draw())  # type: ignore[arg-type]
    parts = list(loader)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(name for part in parts for name in part.ids) == list(range(100, 110))


def exact_rnn() -> ODERNN:
    torch.manual_seed(0)
    return ODERNN(2, 5, out=3, method="tsit5", rtol=1e-9, atol=1e-9).double()


def test_a_model_on_packed_and_padded_rows() -> None:
    model = ODERNN(2, 5, out=3).double()
    series = random_series(3, size=6, static=0)
    packed = from_packed(*series.packed())
    model.fit_normalizer(series)
    for other in (packed, series.padded(15), cat([series[:2].trimmed(), series[2:]])):
        torch.testing.assert_close(model(other), model(series), rtol=1e-12, atol=1e-12)
        rows = min(other.t.shape[1], series.t.shape[1])
        torch.testing.assert_close(
            model.states(other)[:, :rows], model.states(series)[:, :rows], rtol=1e-12, atol=1e-12
        )
    for part in batches(series, 4, draw()):
        numbers = [(series.ids or ()).index(name) for name in part.ids or ()]
        torch.testing.assert_close(model(part), model(series)[numbers], rtol=1e-12, atol=1e-12)


def test_a_model_on_the_union_of_times() -> None:
    """Rows without values change nothing but the steps of the solver. All samples begin at one time."""
    series = random_series(3, size=4, shortest=2)
    t = torch.where(torch.arange(6) == 0, 0.0, series.t)
    series = Series(t, series.x, series.mask, series.length)
    model = exact_rnn()
    union = series.union()
    assert union.t.shape[1] > 12
    end = union.t[:, -1:]
    torch.testing.assert_close(model(union), model(series, end)[:, 0], rtol=1e-6, atol=1e-7)
    last = series.t[:, -1:]  # of each sample
    torch.testing.assert_close(model(union, last)[:, 0], model(series), rtol=1e-6, atol=1e-7)
