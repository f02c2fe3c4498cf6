"""`Series`: what it takes, what it refuses, and the choices of samples, rows and values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from odenet.series import Series
from series.random_series import SERIES, random_series, same

NAN = float("nan")


def small() -> Series:
    t = torch.tensor([[0.0, 1.0, 2.5], [0.5, 4.0, NAN], [NAN, NAN, NAN]])
    x = torch.tensor([[[1.0, NAN], [2.0, 5.0], [NAN, NAN]], [[3.0, 6.0], [4.0, 7.0], [9.0, 9.0]], [[9.0, 9.0]] * 3])
    return Series(t, x, channels=["a", "b"], ids=["p", "q", "r"])


def test_fields() -> None:
    series = small()
    assert series.length.tolist() == [3, 2, 0]
    assert series.t.tolist() == [[0.0, 1.0, 2.5], [0.5, 4.0, 4.0], [0.0, 0.0, 0.0]]
    assert series.mask.tolist() == [
        [[True, False], [True, True], [False, False]],
        [[True, True], [True, True], [False, False]],
        [[False, False]] * 3,
    ]
    assert torch.equal(series.x[~series.mask], torch.zeros(11))
    assert series.rows.sum(1).tolist() == [3, 2, 0]
    assert (len(series), series.num_channels, series.channels, series.ids) == (3, 2, ("a", "b"), ("p", "q", "r"))
    assert repr(series) == "Series(3 samples, up to 3 rows, 2 channels, 70 % observed)"


def test_times_of_all_samples_and_masks_of_rows() -> None:
    series = Series(torch.tensor([0.0, 1.0]), torch.ones(3, 2, 1), torch.tensor([[True, False]] * 3))
    assert series.t.tolist() == [[0.0, 1.0]] * 3
    assert series.mask[..., 0].tolist() == [[True, False]] * 3
    assert series.length.tolist() == [2, 2, 2]


def test_what_is_padding_does_not_matter() -> None:
    t = torch.tensor([[0.0, 1.0, 7.0, -3.0]])
    clean = Series(t[:, :2], torch.ones(1, 2, 1))
    for rest in (NAN, float("inf"), 5.0):
        x = torch.tensor([[[1.0], [1.0], [rest], [rest]]])
        padded = Series(t, x, torch.ones(1, 4, dtype=torch.bool), torch.tensor([2], dtype=torch.int32))
        assert same(padded, clean)
        assert not padded.mask[:, 2:].any() and not padded.x[:, 2:].any()


@pytest.mark.parametrize("size, rows", [(0, 0), (0, 3), (2, 0)])
def test_nothing(size: int, rows: int) -> None:
    series = Series(torch.zeros(size, rows), torch.zeros(size, rows, 2), length=torch.zeros(size, dtype=torch.int64))
    for other in (
        series.trimmed(),
        series.padded(4),
        series.before(1.0),
        series.dropped(0.5),
        series.union(),
        series[:],
    ):
        assert len(other) == size and other.length.tolist() == [0] * size and other.num_channels == 2
    assert "0 % observed" in repr(series)


def made(**changes: Any) -> Callable[[], Series]:
    given = {"t": torch.tensor([[0.0, 1.0, 2.0]]), "x": torch.ones(1, 3, 2)}
    return lambda: Series(**(given | changes))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (made(t=[[0.0, 1.0, 2.0]]), TypeError, "t must be a floating-point tensor; got list .*from_lists"),
        (made(t=torch.arange(3)), TypeError, "t must be a floating-point tensor; got a tensor of torch.int64"),
        (made(x=torch.ones(1, 3, 2, dtype=torch.int64)), TypeError, "x must be a floating-point tensor"),
        (made(t=torch.tensor([[0.0, 1.0, 2.0]]).double()), TypeError, "t must have the dtype of x, torch.float32"),
        (made(static=torch.ones(1, 2).half()), TypeError, "static must have the dtype of x"),
        (made(mask=torch.ones(1, 3, 2)), TypeError, "mask must be a tensor of truth values"),
        (made(length=torch.tensor([3.0])), TypeError, "length must be a tensor of whole numbers"),
        (made(length=[3]), TypeError, "length must be a tensor of whole numbers; got list"),
        (
            made(mask=torch.ones(1, 3, 2, dtype=torch.bool, device="meta")),
            ValueError,
            "mask must be on the device of x",
        ),
        (made(x=torch.ones(3, 2)), ValueError, r"x must be \(samples, rows, channels\); got shape \(3, 2\)"),
        (made(t=torch.zeros(1, 4)), ValueError, r"t must be \(1, 3\) or \(3,\), as x is \(1, 3, 2\)"),
        (made(mask=torch.ones(1, 2, dtype=torch.bool)), ValueError, r"mask must be \(1, 3, 2\) or \(1, 3\)"),
        (made(length=torch.tensor([3, 3])), ValueError, r"length must be \(1,\), one number for each sample"),
        (made(length=torch.tensor([4])), ValueError, r"length must be between 0 and the 3 rows of x; got list \[4\]"),
        (made(length=torch.tensor([-1])), ValueError, "length must be between 0 and the 3 rows"),
        (made(t=torch.tensor([[0.0, NAN, 2.0]])), ValueError, "t must be finite: sample 0 has nan in row 1 of 3"),
        (made(t=torch.tensor([[0.0, 1.0, float("inf")]])), ValueError, "t must be finite: sample 0 has inf"),
        (
            made(x=torch.full((1, 3, 2), float("inf"))),
            ValueError,
            "x must be finite or NaN: sample 0 has inf in channel 0",
        ),
        (made(t=torch.tensor([[0.0, 2.0, 1.0]])), ValueError, "sample 0 has 1.0 after 2.0. odenet.series.from_lists"),
        (made(t=torch.tensor([[0.0, 1.0, 1.0]])), ValueError, "t must increase .* padding behind the last row is NaN"),
        (made(static=torch.ones(2)), ValueError, r"static must be \(1, number of features\); got shape \(2,\)"),
        (made(static=torch.tensor([[1.0, NAN]])), ValueError, "static must be finite: sample 0 has nan as feature 1"),
        (made(channels=["a"]), ValueError, "channels must be 2 names; got 1"),
        (made(channels="ab"), ValueError, "channels must be 2 names; got str 'ab'"),
        (made(ids=[1, 2]), ValueError, "ids must be 1 names; got 2"),
    ],
)
def test_wrong_arguments(make: Callable[[], Series], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "index, numbers",
    [
        (1, [1]),
        (-1, [3]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -2), [3, 1]),
        (slice(7, 9), []),
        ([], []),
        ([3, 0, 0], [3, 0, 0]),
        ([True, False, True, False], [0, 2]),
        (torch.tensor([2, -4]), [2, 0]),
        (torch.tensor([False, False, False, True]), [3]),
        (np.array([1, 0]), [1, 0]),
    ],
)
def test_choice_of_samples(index: Any, numbers: list[int]) -> None:
    series = random_series(0, static=2)
    chosen = series[index]
    for name in ("t", "x", "mask", "length", "static"):
        assert torch.equal(getattr(chosen, name), getattr(series, name)[numbers])
    assert series.ids is not None and chosen.ids == tuple(series.ids[i] for i in numbers)
    assert chosen.channels == series.channels


@pytest.mark.parametrize(
    "index, error, message",
    [
        (4, IndexError, "sample 4 of 4"),
        (-5, IndexError, "sample -5 of 4"),
        ([0, 9], IndexError, "sample 9 of 4"),
        ((0, 1), TypeError, "samples are chosen by a number, a slice"),
        ("p", TypeError, "samples are chosen by .* got str 'p'"),
        (True, TypeError, "samples are chosen by"),
        (1.0, TypeError, "samples are chosen by"),
        ([True, False], TypeError, "4 samples are chosen by"),
        (torch.ones(4), TypeError, "4 samples are chosen by"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "4 samples are chosen by"),
    ],
)
def test_wrong_choices(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_series(0)[index]


def test_samples_one_by_one() -> None:
    series = random_series(3)
    assert [int(one.length) for one in series] == series.length.tolist()


def as_rows(series: Series) -> list[list[tuple[float, list[float], list[bool]]]]:
    """The rows of each sample, as lists."""
    return [
        [(float(series.t[b, r]), series.x[b, r].tolist(), series.mask[b, r].tolist()) for r in range(int(n))]
        for b, n in enumerate(series.length)
    ]


@given(SERIES, st.floats(-1.0, 8.0))
def test_before_and_after(series: Series, time: float) -> None:
    rows = as_rows(series)
    assert as_rows(series.before(time)) == [[r for r in sample if r[0] < time] for sample in rows]
    assert as_rows(series.after(time)) == [[r for r in sample if r[0] >= time] for sample in rows]


def test_a_bound_is_rounded_as_the_times_are() -> None:
    """0.1 and 0.7 of float32 lie on different sides of those of Python."""
    times = [0.1, 0.2, 0.3, 0.7]
    for dtype in (torch.float32, torch.float64):
        series = Series(torch.tensor(times, dtype=dtype), torch.ones(1, 4, 1, dtype=dtype))
        for i, time in enumerate(times):
            assert (len(series.before(time).t[0]), len(series.after(time).t[0])) == (i, 4 - i)


def test_a_bound_of_each_sample() -> None:
    series = small()
    bounds = torch.tensor([1.0, 1.0, 1.0])
    assert series.before(bounds).length.tolist() == [1, 1, 0]
    assert series.after(torch.tensor([2.0, 0.5, 0.0])).length.tolist() == [1, 2, 0]
    for wrong, message in ((torch.zeros(2), r"time must be a number or \(3,\)"), (NAN, "got nan"), ("1", "got str")):
        with pytest.raises((ValueError, TypeError), match=message):
            series.before(wrong)  # type: ignore[arg-type]


@given(SERIES, st.floats(0.0, 0.99), st.integers(0, 5))
def test_dropped_rows(series: Series, fraction: float, more: int) -> None:
    left = series.dropped(fraction, torch.Generator().manual_seed(0))
    gone = [min(round(fraction * n), max(n - 1, 0)) for n in series.length.tolist()]
    assert left.length.tolist() == [n - g for n, g in zip(series.length.tolist(), gone, strict=True)]
    for some, whole in zip(as_rows(left), as_rows(series), strict=True):
        assert [row for row in whole if row in some] == some  # in their order, as they were
    padded = series.padded(series.t.shape[1] + more)
    assert same(left, padded.dropped(fraction, torch.Generator().manual_seed(0)))


def test_dropped_rows_are_random() -> None:
    t = torch.arange(1000.0)
    series = Series(t, torch.ones(2, 1000, 1))
    kept = series.dropped(0.5, torch.Generator().manual_seed(0)).t
    assert abs(float(kept.mean()) - 499.5) < 40 and not torch.equal(kept[0], kept[1])
    for wrong in (1.0, -0.1, NAN, "half"):
        with pytest.raises((ValueError, TypeError), match=r"fraction must be"):
            series.dropped(wrong)  # type: ignore[arg-type]


@given(SERIES, st.integers(0, 12))
def test_padding(series: Series, rows: int) -> None:
    padded = series.padded(rows)
    assert padded.t.shape[1] == max(rows, series.t.shape[1])
    assert same(padded, series)
    assert padded.trimmed().t.shape[1] == (int(series.length.max()) if len(series) else 0)
    empty = series.length == 0
    last = (
        torch.where(empty, 0.0, padded.t.gather(1, (series.length - 1).clamp(min=0)[:, None])[:, 0]) if rows else None
    )
    if last is not None:
        assert torch.equal(padded.t[~padded.rows], last[:, None].expand(padded.t.shape)[~padded.rows])
    # made anew from its own fields, it is the same
    again = Series(padded.t, padded.x, padded.mask, padded.length, padded.static, padded.channels, padded.ids)
    assert same(again, series)


def test_padding_needs_a_number() -> None:
    with pytest.raises(TypeError, match=r"rows must be an int"):
        small().padded(3.0)  # type: ignore[arg-type]


def test_observed() -> None:
    series = small()
    some = series.observed(torch.tensor([[True, False, True]] * 3))
    assert some.mask.sum((1, 2)).tolist() == [1, 2, 0]
    assert torch.equal(some.length, series.length) and torch.equal(some.t, series.t)
    assert not some.x[~some.mask].any()
    one = torch.zeros(3, 3, 2, dtype=torch.bool)
    one[1, 0, 1] = True
    assert series.observed(one).x.sum() == 6.0
    for wrong in (torch.ones(3, 3), torch.ones(3, dtype=torch.bool), [True]):
        with pytest.raises(ValueError, match=r"keep must be a tensor of truth values, \(3, 3, 2\) or \(3, 3\)"):
            series.observed(wrong)  # type: ignore[arg-type]


def test_padding_is_no_row_to_select() -> None:
    t = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.5, 3.0, torch.nan, torch.nan]])
    series = Series(t, torch.ones(2, 4, 1))
    assert series.select(torch.ones(2, 4, dtype=torch.bool)).t.equal(series.t)
    late = series.select(series.t >= 1.0)
    assert late.length.tolist() == [3, 1] and late.t[1, 0] == 3.0
    with pytest.raises(ValueError, match=r"keep must be a tensor of truth values, \(2, 4\); got"):
        series.select(torch.ones(2, 3, dtype=torch.bool))


def test_other_dtypes() -> None:
    series = random_series(1, static=1)
    narrow = series.to(torch.float32)
    assert {narrow.t.dtype, narrow.x.dtype} == {torch.float32} and narrow.static is not None
    assert narrow.static.dtype == torch.float32 and torch.equal(narrow.mask, series.mask)
    assert same(series.to(series.x), series) and same(series.to("cpu"), series)
    assert series.to("meta").mask.device.type == "meta"
    with pytest.raises(TypeError, match=r"a series has a floating-point dtype; got torch.int64"):
        series.to(torch.int64)


def test_times_that_a_dtype_cannot_tell_apart() -> None:
    """Seconds since 1970 in float32 are two minutes apart."""
    t = 1.7e9 + torch.arange(3.0, dtype=torch.float64)
    series = Series(t, torch.ones(1, 3, 1, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"1700000000.0 and 1700000001.0, are the same number in torch.float32: subtract"
    ):
        series.to(torch.float32)
    moved = series.with_values(series.t - 1.7e9, series.x, None)
    assert moved.to(torch.float32).t.tolist() == [[0.0, 1.0, 2.0]]
    padding = series[0].padded(9).before(1.7e9 + 1).padded(9)
    assert padding.to(torch.float32).length.tolist() == [1]  # the same times behind the last row are no rows


def test_values_that_a_dtype_cannot_hold() -> None:
    series = Series(torch.zeros(1, dtype=torch.float64), torch.full((1, 1, 1), 1e300, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be finite or NaN: sample 0 has inf"):
        series.to(torch.float32)


def test_gradients_reach_what_was_given() -> None:
    t = torch.tensor([[0.0, 1.0, NAN]], requires_grad=True)
    x = torch.tensor([[[1.0], [NAN], [3.0]]], requires_grad=True)
    series = Series(t, x).padded(5)
    (series.x.sum() + series.t.sum()).backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [1.0, 0.0, 0.0]
    assert t.grad is not None and t.grad.tolist() == [[1.0, 4.0, 0.0]]  # the last time stands in the padding


def test_copies() -> None:
    series = random_series(2, static=1)
    assert same(copy.deepcopy(series), series)
    assert same(pickle.loads(pickle.dumps(series)), series)


def with_values(series: Series) -> list[list[Any]]:
    return [[row for row in rows if any(row[2])] for rows in as_rows(series)]


@given(SERIES)
def test_union(series: Series) -> None:
    union = series.union()
    times = sorted({row[0] for sample in as_rows(series) for row in sample})
    assert all(t == times for t in union.t.tolist()) and union.length.tolist() == [len(times)] * len(series)
    assert with_values(union) == with_values(series)
    assert union.channels == series.channels and union.ids == series.ids


def test_a_union_keeps_gradients_in_values() -> None:
    t, x = torch.tensor([[0.0, 1.0], [0.5, 1.0]]), torch.ones(2, 2, 1, requires_grad=True)
    union = Series(t, x).union()
    assert union.t.tolist() == [[0.0, 0.5, 1.0]] * 2
    union.x.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(2, 2, 1))
    with pytest.raises(ValueError, match=r"t requires a gradient"):
        Series(t.requires_grad_(), torch.ones(2, 2, 1)).union()


def test_other_values() -> None:
    series = small()
    other: Tensor = series.x + 1.0
    assert torch.equal(series.with_values(series.t, other, None).x, other)
