"""`from_lists`: rows in any order, channels with times of their own, duplicates, what is missing, what is wrong."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from odenet.series import Series, from_lists
from series.random_series import same

NAN = float("nan")

VALUES = st.one_of(st.just(NAN), st.floats(-10, 10))
ROWS = st.lists(st.tuples(st.integers(-20, 20), VALUES, VALUES), max_size=8)
SAMPLES = st.lists(ROWS, max_size=4)
MERGE = {"mean": lambda v: sum(v) / len(v), "first": lambda v: v[0], "last": lambda v: v[-1]}


def rows_of(series: Series) -> list[list[list[float]]]:
    """Time and values of each row, None where missing."""
    x = torch.where(series.mask, series.x, NAN)
    return [
        [
            [float(series.t[b, r]), *(None if math.isnan(v) else v for v in x[b, r].tolist())]
            for r in range(int(series.length[b]))
        ]
        for b in range(len(series))
    ]


def merged(samples: list[list[tuple[float, ...]]], policy: str) -> list[list[list[float | None]]]:
    """The same by loops over dictionaries."""
    out: list[list[list[float | None]]] = []
    for rows in samples:
        cells: dict[float, list[list[float]]] = {}
        for time, *values in rows:
            lists = cells.setdefault(time, [[] for _ in values])
            for known, value in zip(lists, values, strict=True):
                known += [] if math.isnan(value) else [value]
        out.append([[time, *(MERGE[policy](v) if v else None for v in cells[time])] for time in sorted(cells)])
    return out


@given(SAMPLES, st.sampled_from(sorted(MERGE)))
def test_against_loops(samples: list[list[tuple[float, float, float]]], policy: Any) -> None:
    ts = [[row[0] for row in rows] for rows in samples]
    xs = [[row[1:] for row in rows] for rows in samples]
    series = from_lists(ts, xs, channels=["a", "b"], duplicates=policy, dtype=torch.float64)
    wanted = merged(samples, policy)
    assert len(series) == len(samples) and series.num_channels == 2
    for got, want in zip(rows_of(series), wanted, strict=True):
        assert [r[0] for r in got] == [r[0] for r in want]
        for row, expected in zip(got, want, strict=True):
            assert [v is None for v in row] == [v is None for v in expected]
            pairs = [(a, b) for a, b in zip(row, expected, strict=True) if b is not None]
            assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-12, abs=1e-12)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_channels_with_times_of_their_own(samples: list[list[tuple[float, float, float]]], random: Any) -> None:
    """Each channel as it is given by rows, but shuffled on its own."""
    names = ["a", "b"]
    ts: list[list[list[float]]] = []
    xs: list[list[list[float]]] = []
    for rows in samples:
        pairs = [[(row[0], row[channel]) for row in dict((r[0], r) for r in rows).values()] for channel in (1, 2)]
        for channel in pairs:
            random.shuffle(channel)
        ts.append([[t for t, _ in channel] for channel in pairs])
        xs.append([[x for _, x in channel] for channel in pairs])
    rows_alone = [list(dict((r[0], r) for r in rows).values()) for rows in samples]
    by_row = from_lists([[r[0] for r in s] for s in rows_alone], [[r[1:] for r in s] for s in rows_alone], None, names)
    assert same(from_lists(ts, xs, channels=names), by_row)


def test_channels_of_different_lengths() -> None:
    series = from_lists([[[0.0, 2.0], [1.0, 2.0, 3.0]], [[], [5.0]]], [[[1.0, 2.0], [3.0, 4.0, 5.0]], [[], [6.0]]])
    assert rows_of(series) == [
        [[0.0, 1.0, None], [1.0, None, 3.0], [2.0, 2.0, 4.0], [3.0, None, 5.0]],
        [[5.0, None, 6.0]],
    ]


@pytest.mark.parametrize(
    "kind",
    [list, np.array, torch.tensor, lambda v: torch.tensor(v, requires_grad=True), lambda v: np.array(v, np.float32)],
    ids=["list", "numpy", "tensor", "gradient", "float32"],
)
def test_kinds_of_input(kind: Any) -> None:
    series = from_lists([kind([1.0, 0.0]), kind([2.0])], [kind([[1.0, 2.0], [3.0, 4.0]]), kind([[5.0, NAN]])])
    assert rows_of(series) == [[[0.0, 3.0, 4.0], [1.0, 1.0, 2.0]], [[2.0, 5.0, None]]]
    assert series.t.dtype == torch.get_default_dtype() and not series.x.requires_grad


def test_whole_times_and_values() -> None:
    ts = [torch.tensor([3, 1]), np.array([2], dtype=np.int64)]
    series = from_lists(ts, [torch.tensor([[1], [2]]), [[3]]], dtype=torch.float64)
    assert rows_of(series) == [[[1.0, 2.0], [3.0, 1.0]], [[2.0, 3.0]]]


def test_one_channel_needs_no_second_dimension() -> None:
    assert from_lists([[0.0, 1.0]], [[1.0, NAN]]).x.shape == (1, 2, 1)


def test_names_and_static_features() -> None:
    series = from_lists([[0], [1]], [[[1.0]], [[2.0]]], [[1, 2], [3, 4]], ["a"], ["p", "q"])
    assert series.static is not None and series.static.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert (series.channels, series.ids) == (("a",), ("p", "q"))


def test_empty_samples_and_batches() -> None:
    series = from_lists([[], [0.0], []], [[], [[1.0, 2.0]], np.zeros((0, 2))])
    assert series.length.tolist() == [0, 1, 0] and series.x.shape == (3, 1, 2)
    assert from_lists([[]], [np.zeros((0, 3))]).x.shape == (1, 0, 3)
    assert from_lists([], []).x.shape == (0, 0, 0)
    assert from_lists([[]], [[]], channels=["a", "b"]).x.shape == (1, 0, 2)


def test_rows_without_a_value_stay() -> None:
    series = from_lists([[0.0, 1.0]], [[[NAN], [NAN]]])
    assert series.length.tolist() == [2] and not series.mask.any()


def test_rows_at_one_time_fill_each_other() -> None:
    series = from_lists([[1.0, 1.0]], [[[1.0, NAN], [NAN, 2.0]]])
    assert rows_of(series) == [[[1.0, 1.0, 2.0]]]


def test_duplicates() -> None:
    ts, xs = [[0.0], [2.0, 1.0, 2.0, 2.0]], [[[0.0]], [[1.0], [7.0], [2.0], [6.0]]]
    for policy, value in (("mean", 3.0), ("first", 1.0), ("last", 6.0)):
        assert rows_of(from_lists(ts, xs, duplicates=policy))[1] == [[1.0, 7.0], [2.0, value]]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sample 1 has several values of channel 0 at the time 2.0: give duplicates="):
        from_lists(ts, xs)
    with pytest.raises(ValueError, match=r"sample 'q' has several values of channel 'a'"):
        from_lists(ts, xs, channels=["a"], ids=["p", "q"])
    with pytest.raises(ValueError, match=r"duplicates must be one of 'error', 'mean', 'first', 'last'; got 'sum'"):
        from_lists(ts, xs, duplicates="sum")  # type: ignore[arg-type]


def test_times_that_become_one_number() -> None:
    times = [1.7e9, 1.7e9 + 1.0]
    with pytest.raises(
        ValueError, match=r"1700000000.0 and 1700000001.0, are the same number in torch.float32: subtract"
    ):
        from_lists([times], [[1.0, 2.0]], dtype=torch.float32)
    assert from_lists([times], [[1.0, 2.0]], dtype=torch.float64).t.tolist() == [times]


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array], ids=["list", "tensor", "numpy"])
def test_whole_times_that_float64_cannot_tell_apart(kind: Any) -> None:
    """Nanoseconds since 1970."""
    with pytest.raises(ValueError, match=r"ts\[0\] has the whole number 1700000000000000001, and above 2\*\*53"):
        from_lists([kind([1_700_000_000_000_000_000, 1_700_000_000_000_000_001])], [[1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "ts, xs, error, message",
    [
        (5.0, [], TypeError, "ts must be a list with an entry for each sample; got float 5.0"),
        ([[0.0]], "x", TypeError, "xs must be a list with an entry for each sample; got str"),
        ([[0.0]], [], ValueError, "ts and xs must have one entry for each sample; they have 1 and 0"),
        ([[0.0, 1.0]], [[[1.0]]], ValueError, r"xs\[0\] must be \(2, channels\), a row for each time of ts\[0\]"),
        ([[0.0]], [[[[1.0]]]], ValueError, r"xs\[0\] must be \(1, channels\)"),
        ([[0.0]], [[[]]], ValueError, r"with at least one channel; got shape \(1, 0\)"),
        ([[0.0], [0.0]], [[[1.0]], [[1.0, 2.0]]], ValueError, r"xs\[1\] has 2, and those before it 1"),
        ([[0.0, NAN]], [[1.0, 2.0]], ValueError, "times must be finite: sample 0 has nan"),
        ([[0.0], [math.inf]], [[1.0], [2.0]], ValueError, "times must be finite: sample 1 has inf"),
        (
            [[0.0]],
            [[math.inf]],
            ValueError,
            "values must be finite, or NaN where missing: sample 0 has inf in channel 0 at the time 0.0",
        ),
        ([[None]], [[1.0]], TypeError, r"ts\[0\] must be numbers"),
        ([[0.0]], [[None]], TypeError, r"xs\[0\] must be numbers, NaN where missing"),
        ([["0"]], [[1.0]], TypeError, r"ts\[0\] must be numbers"),
        ([[0.0]], [[1j]], TypeError, r"xs\[0\] must be"),
        ([[0.0]], [torch.ones(1, dtype=torch.complex64)], TypeError, r"xs\[0\] must be real numbers; got complex"),
        ([[0.0]], [np.ones(1, dtype=np.complex64)], TypeError, r"xs\[0\] must be real numbers; got complex"),
        ([[datetime.date(2020, 1, 1)]], [[1.0]], TypeError, r"ts\[0\] must be numbers"),
        ([np.array(["2020-01-01"], "M8[ns]")], [[1.0]], TypeError, r"ts\[0\] must be numbers"),
        ([torch.zeros(2, 3)], [[1.0, 2.0]], ValueError, r"ts\[0\] must be one-dimensional, or a list of such of each"),
        ([5.0], [[1.0]], ValueError, r"ts\[0\] must be one-dimensional"),
        (
            [[[0.0], [1.0]]],
            [[[1.0], [1.0, 2.0]]],
            ValueError,
            r"channels of sample 0 have list \[1, 1\] times and list",
        ),
        ([[[0.0]]], [5.0], TypeError, r"xs\[0\] must be a list of the values of each channel"),
        ([[[0.0]]], [[[[1.0]]]], ValueError, r"xs\[0\]\[0\] must be one-dimensional"),
    ],
)
def test_wrong_lists(ts: Any, xs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_lists(ts, xs)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"channels": ["a", "b"]}, ValueError, r"xs\[0\] has 1, and channels= names 2"),
        ({"ids": ["p", "q"]}, ValueError, "ids must be 1 names; got 2"),
        ({"static": [1.0]}, ValueError, r"static must be \(1, number of features\)"),
        ({"static": [["x"]]}, TypeError, "static must be numbers"),
        ({"static": [[NAN]]}, ValueError, "static must be finite"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point torch.dtype; got dtype torch.int64"),
        ({"dtype": "float32"}, TypeError, "dtype must be a floating-point torch.dtype; got str"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_lists([[0.0]], [[1.0]], **options)


def test_gradients_do_not_come_from_data() -> None:
    x: Tensor = torch.ones(1, 1, requires_grad=True)
    assert not from_lists([[0.0]], [x]).x.requires_grad
