"""`from_long` and `from_wide`: dicts, pandas, polars and pyarrow; orders, missing names and values, dates."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odenet.series import from_lists, from_long, from_wide
from series.random_series import random_series, same

NAN = float("nan")

LONG: dict[str, list[Any]] = {
    "id": ["q", "p", "q", "q", "p", "q"],
    "time": [3, 0, 1, 3, 2, 1],
    "channel": ["b", "a", "a", "a", "b", "c"],
    "value": [1.0, 2.0, 3.0, 4.0, None, 6.0],
}
WIDE: dict[str, list[Any]] = {"id": [7, 7, 5], "time": [1.5, 0.5, 2.0], "a": [1, 2, 3], "b": [None, 4.0, 5.0]}
STATIC: dict[str, list[Any]] = {"age": [1, 2, 3], "id": ["p", "x", "q"], "height": [0.5, 0.6, 0.7]}


def as_dict(table: dict[str, list[Any]]) -> Any:
    return table


def as_pandas(table: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(table)


def as_nullable_pandas(table: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(table).convert_dtypes()


def as_polars(table: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(table)


def as_arrow(table: dict[str, list[Any]]) -> Any:
    return pyarrow.table(table)


def as_arrays(table: dict[str, list[Any]]) -> Any:
    return {name: np.array([NAN if v is None else v for v in column]) for name, column in table.items()}


KINDS = [as_dict, as_arrays, as_arrow, as_pandas, as_nullable_pandas, as_polars]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)


@kinds
def test_long(kind: Callable[[dict[str, list[Any]]], Any]) -> None:
    series = from_long(kind(LONG), static=kind(STATIC))
    wanted = from_lists(
        [[1, 3], [0, 2]],
        [[[3.0, NAN, 6.0], [4.0, 1.0, NAN]], [[2.0, NAN, NAN], [NAN, NAN, NAN]]],
        [[3.0, 0.7], [1.0, 0.5]],
        ["a", "b", "c"],
        ["q", "p"],
    )
    assert same(series, wanted)


@kinds
def test_some_channels(kind: Callable[[dict[str, list[Any]]], Any]) -> None:
    series = from_long(kind(LONG), channels=["c", "a"], dtype=torch.float64)
    wanted = from_lists(
        [[1, 3], [0]], [[[6.0, 3.0], [NAN, 4.0]], [[NAN, 2.0]]], None, ["c", "a"], ["q", "p"], dtype=torch.float64
    )
    assert same(series, wanted)


@kinds
def test_wide(kind: Callable[[dict[str, list[Any]]], Any]) -> None:
    series = from_wide(kind(WIDE))
    assert same(series, from_lists([[0.5, 1.5], [2.0]], [[[2, 4], [1, NAN]], [[3, 5]]], None, ["a", "b"], [7, 5]))
    assert same(
        from_wide(kind(WIDE), values=["b"]), from_lists([[0.5, 1.5], [2]], [[4, NAN], [5]], None, ["b"], [7, 5])
    )


def test_a_sample_without_a_value_of_the_wanted_channels_stays() -> None:
    series = from_long(LONG, channels=["c"])
    assert series.ids == ("q", "p") and series.length.tolist() == [1, 0]


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_long_and_wide_say_the_same_in_any_order(seed: int, random: Any) -> None:
    series = random_series(seed, shortest=1)
    rows = [
        (sample, float(series.t[b, r]), *torch.where(series.mask, series.x, NAN)[b, r].tolist())
        for b, sample in enumerate(series.ids or ())
        for r in range(int(series.length[b]))
    ]
    names = ("id", "time", *(series.channels or ()))
    random.shuffle(rows)
    wide = from_wide(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), dtype=torch.float64)
    cells = [(row[0], row[1], name, value) for row in rows for name, value in zip(names[2:], row[2:], strict=True)]
    random.shuffle(cells)
    table = dict(zip(("id", "time", "channel", "value"), map(list, zip(*cells, strict=True)), strict=True))
    long = from_long(table, dtype=torch.float64)
    for made in (wide, long):
        assert made.ids is not None and series.ids is not None
        assert same(made[[made.ids.index(name) for name in series.ids]], series)


def test_tensors_as_columns() -> None:
    table = {"id": torch.tensor([1, 0]), "time": torch.tensor([0, 1]), "a": torch.ones(2, requires_grad=True)}
    series = from_wide(table)
    assert series.ids == (1, 0) and series.t.flatten().tolist() == [0.0, 1.0] and not series.x.requires_grad


def test_numbers_as_channels_are_sorted_as_numbers() -> None:
    table = {"id": [0] * 3, "time": [0.0] * 3, "channel": [10, 9, 1], "value": [1.0, 2.0, 3.0]}
    series = from_long(table)
    assert series.channels == ("1", "9", "10") and series.x.flatten().tolist() == [3.0, 2.0, 1.0]
    mixed = from_long(table | {"channel": [10, "x", 1]})
    assert mixed.channels == ("1", "10", "x")


def test_static_as_a_tensor_and_list() -> None:
    for static in (torch.tensor([[1], [2]]), [[1.0], [2.0]], np.array([[1.0], [2.0]])):
        series = from_wide(WIDE, static=static)
        assert series.static is not None and series.static.tolist() == [[1.0], [2.0]]


@kinds
def test_empty_tables(kind: Callable[[dict[str, list[Any]]], Any]) -> None:
    if kind is as_arrow:
        empty: Any = pyarrow.table({"id": pyarrow.array([], pyarrow.string()), "time": [], "a": []})
    else:
        empty = kind({"id": [], "time": [], "a": []})
    assert from_wide(empty).x.shape == (0, 0, 1)
    assert from_long(kind({name: [] for name in LONG})).x.shape == (0, 0, 0)


def test_duplicates_in_tables() -> None:
    table = {"id": ["p", "p"], "time": [1.0, 1.0], "a": [1.0, 4.0]}
    with pytest.raises(ValueError, match=r"sample 'p' has several values of channel 'a' at the time 1.0"):
        from_wide(table)
    assert from_wide(table, duplicates="mean").x.item() == 2.5


DATES = [datetime.datetime(2020, 1, 1, hour) for hour in range(6)]


@pytest.mark.parametrize(
    "dates",
    [DATES, np.array(DATES, "M8[ns]"), np.array(DATES, "M8[s]"), pyarrow.array(DATES)],
    ids=["list", "nanoseconds", "seconds", "pyarrow"],
)
def test_dates_are_no_numbers(dates: Any) -> None:
    with pytest.raises(TypeError, match=r"column 'time' must have numbers; .* for dates give hours since the first"):
        from_long(LONG | {"time": dates})


@pytest.mark.parametrize("kind", [as_pandas, as_polars], ids=lambda f: f.__name__)
def test_dates_of_data_frames(kind: Callable[[dict[str, list[Any]]], Any]) -> None:
    with pytest.raises(TypeError, match=r"column 'time' must have numbers"):
        from_long(kind(LONG | {"time": DATES}))


def test_dates_as_names() -> None:
    series = from_wide({"id": np.array(DATES[:2], "M8[s]"), "time": [0, 0], "a": [1, 2]})
    assert series.ids == ("2020-01-01T00:00:00", "2020-01-01T01:00:00")


BIG = [2**60 + i for i in range(6)]


@pytest.mark.parametrize("times", [BIG, np.array(BIG), torch.tensor(BIG), pyarrow.array(BIG)])
def test_whole_times_that_float64_cannot_tell_apart(times: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'time' has the whole number 1152921504606846981, and above 2\*\*53"):
        from_long(LONG | {"time": times})


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: from_long([1, 2]), TypeError, "table must be a dict of columns, or a DataFrame"),
        (lambda: from_wide([1, 2], values=["a"]), TypeError, "table must be a dict of columns, or a DataFrame"),
        (lambda: from_wide(None), (TypeError, ValueError), "must be"),
        (lambda: from_long(LONG, time="hour"), KeyError, "table has no column 'hour'; it has id, time, channel, value"),
        (
            lambda: from_long(LONG | {"time": [1.0]}),
            ValueError,
            "columns of table must have the same length; they have",
        ),
        (lambda: from_wide(WIDE | {"time": [1.0]}), ValueError, "columns of table must have the same length"),
        (lambda: from_long(LONG | {"value": list("abcdef")}), TypeError, "'value' must have numbers; it has str 'a'"),
        (lambda: from_long(LONG | {"value": list("123456")}), TypeError, "'value' must have numbers; it has str '1'"),
        (lambda: from_long(LONG | {"value": [1j] * 6}), TypeError, "'value' must have numbers; it has complex"),
        (
            lambda: from_long(LONG | {"value": torch.ones(6, dtype=torch.complex64)}),
            TypeError,
            "column 'value' must have real numbers; it has complex ones",
        ),
        (
            lambda: from_long(LONG | {"time": [None] * 6}),
            ValueError,
            "column 'time' must have a finite time in each row; it has nan in row 0",
        ),
        (
            lambda: from_wide(WIDE | {"a": [0.5, float("inf"), 1.0]}),
            ValueError,
            "values must be finite, or NaN where missing: sample .* has inf in channel 'a' at the time",
        ),
        (lambda: from_long(LONG | {"id": [None] * 6}), ValueError, "'id' must have a name in each row; it has None"),
        (lambda: from_long(LONG | {"id": [1, NAN] * 3}), ValueError, "'id' must have a name .* float nan in row 1"),
        (lambda: from_long(LONG | {"id": [[1]] * 6}), TypeError, "'id' must have names, as texts or whole numbers"),
        (lambda: from_long(LONG | {"channel": [None] * 6}), ValueError, "'channel' must have a name in each row"),
        (lambda: from_long(LONG | {"value": torch.ones(6, 2)}), ValueError, "'value' must be one-dimensional; it has"),
        (
            lambda: from_long(LONG, channels=["z"]),
            ValueError,
            "table has no channel 'z'; it has a, b, c",
        ),
        (lambda: from_long(LONG, channels="a"), TypeError, r"channels must be a list of names; got str 'a'"),
        (lambda: from_long(LONG, channels=["a", "a"]), ValueError, "channels must be different names; 'a' stands"),
        (lambda: from_long(LONG, channels=[]), ValueError, "channels must be a list of at least one name"),
        (lambda: from_wide(WIDE, values=[]), ValueError, "values must be a list of at least one name"),
        (lambda: from_wide(WIDE, values="a"), TypeError, r"values must be a list of names; got str 'a': give \['a'\]"),
        (lambda: from_wide(WIDE | {"c": ["x"] * 3}), TypeError, "column 'c' must have numbers; it has str 'x'"),
        (
            lambda: from_long(LONG, static={"id": ["p"], "a": [1]}),
            ValueError,
            "static has no row for id 'q', one of 1 without",
        ),
        (lambda: from_long(LONG, static={"id": ["p", "q", "q"], "a": [1] * 3}), ValueError, "one row for each 'id'"),
        (lambda: from_long(LONG, static={"id": ["p", "q"]}), ValueError, "static must be a list of at least one name"),
        (lambda: from_long(LONG, static={"a": [1, 2]}), KeyError, "table has no column 'id'"),
        (lambda: from_long(LONG, static=STATIC | {"age": [1, 2, None]}), ValueError, "static must be finite"),
        (lambda: from_long(LONG, dtype=torch.int32), TypeError, "dtype must be a floating-point torch.dtype"),
        (lambda: from_long(LONG, duplicates="sum"), ValueError, "duplicates must be one of"),  # type: ignore[arg-type]
    ],
)
def test_wrong_tables(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not there")
def test_missing_names_of_pandas() -> None:
    import pandas as pd

    table = pd.DataFrame(LONG)
    table.loc[2, "id"] = pd.NA
    for frame in (table, table.convert_dtypes()):
        with pytest.raises(ValueError, match=r"column 'id' must have a name in each row; .* in row 2"):
            from_long(frame)


def test_many_rows_are_read_by_columns() -> None:
    """300 000 numbers of an array take no Python object each: that would be some seconds."""
    rows = 100_000
    table = {"id": np.arange(rows) % 50, "time": np.arange(rows), **{f"v{i}": np.random.rand(rows) for i in range(3)}}
    series = from_wide(table)
    assert series.x.shape == (50, 2000, 3) and bool(series.mask.all())
