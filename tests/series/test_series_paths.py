"""Control paths: values and slopes beside SciPy, what looks ahead and what does not, padding, cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odenet.series import ControlPath, Series, from_lists, hermite, linear, natural, rectilinear
from odenet.series.control_path import piece_value_of_each
from odenet.series.interpolation import extension
from series.random_series import SERIES, random_series

FEWER = settings(max_examples=40)  # each for six kinds of path
NAN = float("nan")
Make = Callable[..., ControlPath]


def linear_online(series: Series, counts: bool = False) -> ControlPath:
    return linear(series, counts, online=True)


def hermite_online(series: Series, counts: bool = False) -> ControlPath:
    return hermite(series, counts, online=True)


ALL: list[Make] = [linear, linear_online, rectilinear, hermite, hermite_online, natural]
ONLINE: list[Make] = [linear_online, rectilinear, hermite_online]
SMOOTH: list[Make] = [hermite, hermite_online, natural]
paths = pytest.mark.parametrize("make", ALL, ids=lambda f: f.__name__)


def filled(series: Series, online: bool) -> np.ndarray:
    """Time and values at the rows by NumPy, for one complete sample."""
    t = series.t[0].numpy()
    columns = [t]
    for c in range(series.num_channels):
        seen = series.mask[0, :, c].numpy()
        x = series.x[0, :, c].numpy()
        if online:
            held = [x[: r + 1][seen[: r + 1]] for r in range(len(t))]
            columns.append(np.array([h[-1] if len(h) else 0.0 for h in held]))
        else:
            columns.append(np.interp(t, t[seen], x[seen]) if seen.any() else np.zeros(len(t)))
    return np.stack(columns, 1)


def one_sample(seed: int, rows: int) -> Series:
    return random_series(seed, size=1, rows=rows, shortest=rows)


SINGLE = st.builds(one_sample, st.integers(0, 10**6), st.integers(2, 9))


@given(SINGLE, st.booleans())
def test_linear(series: Series, online: bool) -> None:
    path = linear(series, online=online)
    s = torch.linspace(0.0, float(path.knots[-1]), 41, dtype=torch.float64)
    x = filled(series, online)
    wanted = np.stack([np.interp(s, range(len(x)), column) for column in x.T], 1)
    np.testing.assert_allclose(path.evaluate(s)[0], wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(path.derivative(s[:-1])[0], np.diff(x, axis=0)[s[:-1].int()], rtol=0, atol=1e-12)


@given(SINGLE)
def test_rectilinear(series: Series) -> None:
    path = rectilinear(series)
    x = filled(series, online=True)
    corners = [x[:1]] + [np.stack([np.r_[b[:1], a[1:]], b]) for a, b in pairwise(x)]
    np.testing.assert_allclose(path.evaluate(path.knots)[0], np.concatenate(corners), rtol=1e-12, atol=1e-12)
    middle = path.derivative(path.knots[:-1] + 0.5)[0].numpy()
    assert not middle[::2, 1:].any() and not middle[1::2, 0].any()  # the time alone, then the values alone
    np.testing.assert_array_equal(path.times[0, path.rows.long()], series.t[0])


@given(SINGLE, st.booleans())
def test_hermite(series: Series, online: bool) -> None:
    x = filled(series, online)
    t = series.t[0].numpy()
    slopes = np.diff(x, axis=0) / np.diff(t)[:, None]
    wanted = CubicHermiteSpline(t, x, np.concatenate([slopes[:1], slopes]))
    check_spline(hermite(series, online=online), wanted)


@given(SINGLE, st.booleans())
def test_natural(series: Series, ends: bool) -> None:
    """Each channel through its own observed values, over time; at the ends where it has none, constant ones."""
    mask = series.mask.clone()
    mask[:, [0, -1]] |= ends
    series = Series(series.t, series.x, mask)
    path = natural(series)
    for c in range(series.num_channels):
        seen = mask[0, :, c].nonzero()[:, 0].tolist()
        if not seen:
            assert not path.pieces[..., 1 + c].any()
            continue
        rows, t = [*range(seen[0]), *seen, *range(seen[-1] + 1, len(mask[0]))], series.t[0].numpy()
        wanted = CubicSpline(t[rows], np.interp(t[rows], t[seen], series.x[0, seen, c]), bc_type="natural")
        check_spline(path, wanted, 1 + c)
    check_spline(path, CubicSpline(series.t[0], series.t[0], bc_type="natural"), 0)


def check_spline(path: ControlPath, wanted: Any, channel: int | slice = slice(None)) -> None:
    """The path is a function of time, which is linear in s between rows."""
    s = torch.linspace(0.0, float(path.knots[-1]), 41, dtype=torch.float64)
    times, gaps = path.times[0].numpy(), np.diff(path.times[0])
    t, speed = np.interp(s, range(len(times)), times), gaps[np.minimum(s.int().numpy(), len(gaps) - 1)]
    np.testing.assert_allclose(path.position(torch.as_tensor(t))[0], s, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(path.evaluate(s)[0, :, channel], wanted(t), rtol=1e-8, atol=1e-8)
    slopes = wanted(t, 1) * (speed if isinstance(channel, int) else speed[:, None])
    np.testing.assert_allclose(path.derivative(s)[0, :, channel], slopes, rtol=1e-8, atol=1e-8)


@paths
@FEWER
@given(series=SERIES, counts=st.booleans())
def test_paths_of_any_series(make: Make, series: Series, counts: bool) -> None:
    """Their form; they begin at the first row, have no gaps, and stay where a sample ends."""
    path = make(series, counts)
    rows, width = max(series.t.shape[1], 2), 1 + series.num_channels * (1 + counts)
    step = 2 if make is rectilinear else 1
    assert path.knots.tolist() == list(range(step * (rows - 1) + 1))
    assert path.rows.tolist() == [step * row for row in range(rows)]
    assert path.num_channels == width and path.pieces.shape[2:] == (len(series), width)
    assert torch.isfinite(path.pieces).all() and path.interval.tolist() == [0.0, step * (rows - 1)]
    assert path.last is not None and path.last.tolist() == [step * max(n - 1, 0) for n in series.length.tolist()]
    assert torch.equal(path.times[:, path.rows.long()], series.padded(2).t)
    s = path.knots
    left = path.pieces[:, 0] + path.pieces[:, 1:].sum(1)  # at the end of each piece, of length 1
    right = path.evaluate(s[1:]).movedim(0, 1)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    for b, end in enumerate(path.last.tolist()):
        behind = path.evaluate(torch.arange(end, float(s[-1]) + 0.1, 0.25))[b]
        torch.testing.assert_close(behind, path.evaluate(end)[b].expand(behind.shape), rtol=1e-9, atol=1e-9)
        assert not path.derivative(torch.arange(end, float(s[-1]), 0.25))[b].any() or end == s[-1]
    at_rows = path.evaluate(path.rows)
    torch.testing.assert_close(at_rows[..., 0], path.times[:, path.rows.long()], rtol=1e-12, atol=1e-12)
    seen = series.padded(2).mask
    values = at_rows[..., 1 : 1 + series.num_channels]
    torch.testing.assert_close(values[seen], series.padded(2).x[seen], rtol=1e-12, atol=1e-12)
    if counts:
        counted = seen.cumsum(1).double()
        torch.testing.assert_close(at_rows[..., 1 + series.num_channels :], counted, rtol=1e-9, atol=1e-9)


@paths
@FEWER
@given(series=SERIES, more=st.integers(1, 6), counts=st.booleans())
def test_padding_changes_nothing(make: Make, series: Series, more: int, counts: bool) -> None:
    """Neither more of it, nor the other samples of the batch."""
    path = make(series, counts)
    padded = make(series.padded(series.t.shape[1] + more), counts)
    torch.testing.assert_close(padded.pieces[: len(path.pieces)], path.pieces, rtol=1e-9, atol=1e-9)
    for b in range(len(series)):
        alone = make(series[b].trimmed(), counts)
        torch.testing.assert_close(path.pieces[: len(alone.pieces), :, b], alone.pieces[:, :, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", SMOOTH, ids=lambda f: f.__name__)
@pytest.mark.parametrize("regular", [False, True])
@FEWER
@given(series=SERIES)
def test_smooth_paths(make: Make, regular: bool, series: Series) -> None:
    """dX/dt is continuous but where a sample ends, and of natural splines the second derivative.

    dX/ds is so too where the rows are at even times.
    """
    if regular:
        t = 0.3 * torch.arange(series.t.shape[1], dtype=series.t.dtype)
        series = Series(t, series.x, series.mask, series.length)
    path = make(series)
    inner = path.knots[1:-1]
    if not len(inner):
        return
    assert path.last is not None
    ends = inner[:, None] == path.last
    assert linear(series).jumps.tolist() == inner.tolist()
    assert path.smooth or not regular
    assert path.jumps.tolist() == (inner[ends.any(1)] if path.smooth else inner).tolist()
    gaps = torch.where(path.times.diff(dim=1) > 0, path.times.diff(dim=1), 1.0).T[..., None]  # (K - 1, B, 1)
    a, h = path.pieces[:-1], gaps[:-1]
    left, right = (a[:, 1] + 2 * a[:, 2] + 3 * a[:, 3]) / h, path.pieces[1:, 1] / gaps[1:]
    torch.testing.assert_close(left[~ends], right[~ends], rtol=1e-7, atol=1e-7)
    if make is natural:
        inside = ~ends & ~(inner[:, None] > path.last)
        second = (2 * a[:, 2] + 6 * a[:, 3]) / h**2
        torch.testing.assert_close(
            second[inside], (2 * path.pieces[1:, 2] / gaps[1:] ** 2)[inside], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("make", ONLINE, ids=lambda f: f.__name__)
@FEWER
@given(seed=st.integers(0, 10**6), row=st.integers(0, 6), counts=st.booleans())
def test_nothing_before_a_row_depends_on_later_rows(make: Make, seed: int, row: int, counts: bool) -> None:
    series, other = random_series(seed, rows=8, shortest=8), random_series(seed + 1, rows=8, shortest=8)
    later = torch.arange(8) > row
    t = torch.where(later, series.t[:, row : row + 1] + other.t, series.t)
    x = torch.where(later[:, None], other.x, series.x)
    mask = torch.where(later[:, None], other.mask, series.mask)
    path, changed = make(series, counts), make(Series(t, x, mask), counts)
    until = int(path.rows[row])
    assert torch.equal(path.pieces[:until], changed.pieces[:until])
    assert torch.equal(path.evaluate(float(until)), changed.evaluate(float(until)))
    shorter = make(Series(series.t[:, : row + 1], series.x[:, : row + 1], series.mask[:, : row + 1]), counts)
    assert torch.equal(path.pieces[:until], shorter.pieces[:until])


@pytest.mark.parametrize("make", [linear, hermite, natural], ids=lambda f: f.__name__)
def test_the_others_look_ahead(make: Make) -> None:
    """What the test above would find."""
    t, x = torch.arange(3.0), torch.tensor([[[0.0], [NAN], [2.0]]])
    path, changed = make(Series(t, x)), make(Series(t, 2 * x))
    assert not torch.equal(path.evaluate(0.5), changed.evaluate(0.5))


@paths
def test_gradients(make: Make) -> None:
    series = random_series(2, size=3, rows=5, missing=0.4)
    t, x = series.t.clone().requires_grad_(), series.x.clone().requires_grad_()

    def value(t: Tensor, x: Tensor) -> Tensor:
        path = make(Series(t, x, series.mask, series.length))
        s = torch.linspace(0.1, float(path.knots[-1]) - 0.1, 7)
        return torch.cat([path.evaluate(s), path.derivative(s)])

    assert torch.autograd.gradcheck(value, (t, x))


@paths
def test_gradients_in_s(make: Make) -> None:
    path = make(random_series(2, rows=5, shortest=3))
    s = torch.tensor([0.3, 1.6, 3.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(path.evaluate, (s,))
    value = path.evaluate(s).sum((0, 2))
    (slope,) = torch.autograd.grad(value.sum(), s)
    torch.testing.assert_close(slope, path.derivative(s).sum((0, 2)))


@paths
def test_one_and_many_positions(make: Make) -> None:
    path = make(random_series(5, rows=6))
    s = torch.tensor([-0.5, 0.0, 1.0, 2.3, float(path.knots[-1]), 99.0], dtype=torch.float64)
    many = path.evaluate(s)
    assert many.shape == (4, 6, 3)
    for i, one in enumerate(s.tolist()):
        assert torch.equal(path.evaluate(one), many[:, i])
        torch.testing.assert_close(path.derivative(one), path.derivative(s)[:, i])
    each = torch.tensor([0.2, 1.7, 2.0, 3.9], dtype=torch.float64)  # one for each sample
    own = piece_value_of_each(path.pieces.movedim(2, 0), path.knots, each)
    assert torch.equal(own, torch.stack([path.evaluate(s)[b] for b, s in enumerate(each)]))
    with pytest.raises(IndexError, match="1 numbers s for 4 samples"):  # as when a solve goes on with some samples
        piece_value_of_each(path.pieces.movedim(2, 0), path.knots, each[:1])
    with pytest.raises(ValueError, match=r"s must be a number or \(S,\)"):
        path.evaluate(torch.zeros(2, 2))


@paths
@FEWER
@given(series=SERIES.filter(len), seed=st.integers(0, 100))
def test_positions_of_times(make: Make, series: Series, seed: int) -> None:
    """The time channel of a piecewise linear path at the position of t is t; outside, the ends."""
    path = make(series)
    assert path.last is not None
    share = torch.rand(len(series), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = series.padded(2).t[:, :1]
    t = start + (path.times[:, -1:] - start) * share
    s = path.position(t)
    assert bool(((s >= 0) & (s <= path.last[:, None])).all())
    if not path.smooth:
        for b in range(len(series)):
            torch.testing.assert_close(path.evaluate(s[b])[b, :, 0], t[b], rtol=1e-9, atol=1e-9)
    at_rows = path.position(path.times[:, path.rows.long()])
    assert torch.equal(at_rows, path.rows.minimum(path.last[:, None]))
    outside = path.position(torch.tensor([-1e3, 1e3], dtype=torch.float64))
    assert not outside[:, 0].any() and torch.equal(outside[:, 1], path.last)


def test_positions_between_rows() -> None:
    path = rectilinear(from_lists([[0.0, 2.0, 3.0], [1.0]], [[[1.0]] * 3, [[1.0]]]))
    assert path.position(torch.tensor([1.0, 2.0, 2.5, 4.0])).tolist() == [[0.5, 2.0, 2.5, 4.0], [0.0] * 4]
    assert path.position(torch.tensor([[1.0], [0.0]])).tolist() == [[0.5], [0.0]]
    for wrong in (torch.zeros(()), torch.zeros(3, 1)):
        with pytest.raises(ValueError, match=r"t must be \(Q,\) or \(2, Q\), times for each sample"):
            path.position(wrong)


@paths
def test_no_series(make: Make) -> None:
    with pytest.raises(TypeError, match=r"series must be an odenet.series.Series, as from_lists makes; got Tensor"):
        make(torch.zeros(1, 2, 3))


@paths
def test_float32(make: Make) -> None:
    path = make(random_series(0).to(torch.float32))
    assert {path.knots.dtype, path.pieces.dtype, path.times.dtype, path.evaluate(0.5).dtype} == {torch.float32}


class Operations(TorchDispatchMode):
    """Counts operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(make: Make, rows: int) -> int:
    series = random_series(0, rows=rows, shortest=rows // 2)
    with Operations() as counter:
        path = make(series, True)
        path.evaluate(torch.linspace(0, 1, rows, dtype=torch.float64))
    return counter.count


@paths
def test_operations(make: Make) -> None:
    """As many for 1000 rows as for 100; of a natural spline, as many more as for each other factor of ten."""
    counts = [operations(make, rows) for rows in (100, 1000, 10_000)]
    if make is natural:
        assert counts[1] - counts[0] < 4 * 70 and abs((counts[2] - counts[1]) - (counts[1] - counts[0])) < 70
    else:
        assert counts[0] == counts[1] == counts[2]


def test_extensions_in_time_alone() -> None:
    t0, gap = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    path = extension(3, t0, gap, 4)
    s = torch.tensor([0.0, 1.0, 4.0])
    torch.testing.assert_close(path.evaluate(s)[..., 0], torch.stack([t0, t0 + gap, t0 + 4 * gap], 1))
    assert not path.evaluate(s)[..., 1:].any()
    torch.testing.assert_close(path.derivative(2.5), torch.stack([gap, torch.zeros(2), torch.zeros(2)], 1))
    assert torch.equal(path.times, torch.stack([t0, t0 + 4 * gap], 1))
