"""Filling beside loops and NumPy, tridiagonal systems beside SciPy, splines beside SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.linalg import solve_banded
from torch import Tensor

from odenet.series.cubic import natural_spline
from odenet.series.filling import forward_fill, linear_fill, observed_neighbours
from odenet.series.tridiagonal import solve_tridiagonal


def data(seed: int, rows: int, missing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Times (2, T), values and mask (2, T, 3)."""
    draw = torch.Generator().manual_seed(seed)
    t = (0.1 + torch.rand(2, rows, generator=draw, dtype=torch.float64)).cumsum(1)
    x = torch.randn(2, rows, 3, generator=draw, dtype=torch.float64)
    return t, x, torch.rand(2, rows, 3, generator=draw) >= missing


CASES = given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from([0.0, 0.4, 0.8, 1.0]))


@CASES
def test_filling_against_loops(seed: int, rows: int, missing: float) -> None:
    t, x, mask = data(seed, rows, missing)
    before, after = observed_neighbours(mask)
    forward, line = forward_fill(x, mask, 7.0), linear_fill(t, x, mask)
    assert forward.shape == line.shape == x.shape
    for b in range(2):
        for c in range(3):
            seen = [r for r in range(rows) if mask[b, r, c]]
            for r in range(rows):
                earlier, later = [k for k in seen if k <= r], [k for k in seen if k >= r]
                assert int(before[b, r, c]) == max(earlier, default=-1)
                assert int(after[b, r, c]) == min(later, default=rows)
                assert float(forward[b, r, c]) == (float(x[b, earlier[-1], c]) if earlier else 7.0)
            wanted = np.interp(t[b], t[b, seen], x[b, seen, c]) if seen else np.zeros(rows)
            np.testing.assert_allclose(line[b, :, c], wanted, rtol=0, atol=1e-12)
            assert torch.equal(line[b, seen, c], x[b, seen, c])  # to the last bit


@CASES
def test_missing_values_are_never_read(seed: int, rows: int, missing: float) -> None:
    t, x, mask = data(seed, rows, missing)
    other = torch.where(mask, x, 1e3)
    assert torch.equal(forward_fill(x, mask), forward_fill(other, mask))
    assert torch.equal(linear_fill(t, x, mask), linear_fill(t, other, mask))


def test_a_channel_without_values_at_one_time() -> None:
    """As that of a sample of one row and of padding."""
    t, x = torch.full((1, 3), 2.0, requires_grad=True), torch.ones(1, 3, 1)
    filled = linear_fill(t, x, torch.zeros(1, 3, 1, dtype=torch.bool))
    (slope,) = torch.autograd.grad(filled.sum(), t)
    assert not filled.any() and not slope.any()


def test_gradients_of_filling() -> None:
    t, x, mask = data(3, 6, 0.5)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: forward_fill(v, mask), (x,))
    assert torch.autograd.gradcheck(lambda s, v: linear_fill(s, v, mask), (t.requires_grad_(), x))


def system(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Diagonally dominant, two of them."""
    draw = torch.Generator().manual_seed(seed)
    lower, upper, b = torch.randn(3, 2, size, generator=draw, dtype=torch.float64)
    lower[:, 0], upper[:, -1] = 0.0, 0.0
    slack = 0.1 + torch.rand(2, size, generator=draw, dtype=torch.float64)
    diagonal = (lower.abs() + upper.abs() + slack) * torch.where(torch.rand(2, size, generator=draw) < 0.5, 1.0, -1.0)
    return lower, diagonal, upper, b


@given(st.integers(0, 10**6), st.integers(1, 70))
def test_tridiagonal_systems_against_scipy(seed: int, size: int) -> None:
    lower, diagonal, upper, b = system(seed, size)
    x = solve_tridiagonal(lower, diagonal, upper, b)
    for i in range(2):
        bands = torch.stack([upper[i].roll(1), diagonal[i], lower[i].roll(-1)])
        np.testing.assert_allclose(x[i], solve_banded((1, 1), bands.numpy(), b[i].numpy()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_gradients_of_tridiagonal_systems(size: int) -> None:
    assert torch.autograd.gradcheck(solve_tridiagonal, tuple(v.requires_grad_() for v in system(0, size)))


@given(st.integers(0, 10**6), st.integers(2, 30), st.sampled_from([0.0, 0.4, 0.8, 0.95]), st.booleans())
def test_natural_splines_against_scipy(seed: int, rows: int, missing: float, ends: bool) -> None:
    """Through the observed values; where the first or last row has none, it is constant up to the one that has."""
    t, x, mask = data(seed, rows, missing)
    mask[:, [0, -1]] |= ends
    values, slopes = natural_spline(t, x, mask, torch.ones(2, rows, dtype=torch.bool))
    for b in range(2):
        for c in range(3):
            seen = [r for r in range(rows) if mask[b, r, c]]
            if not seen:
                assert not values[b, :, c].any() and not slopes[b, :, c].any()
                continue
            knots = [*range(seen[0]), *seen, *range(seen[-1] + 1, rows)]
            assert not ends or knots == seen
            held = np.interp(t[b, knots], t[b, seen], x[b, seen, c])
            spline = CubicSpline(t[b, knots], held, bc_type="natural")
            np.testing.assert_allclose(values[b, :, c], spline(t[b]), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(slopes[b, :, c], spline(t[b], 1), rtol=1e-8, atol=1e-8)
            assert torch.equal(values[b, seen, c], x[b, seen, c])


def test_long_splines() -> None:
    """No error grows with the length."""
    t, x, mask = data(5, 3001, 0.3)
    mask[:, [0, -1]] = True
    values, slopes = natural_spline(t, x, mask, torch.ones(2, 3001, dtype=torch.bool))
    seen = mask[1, :, 2]
    spline = CubicSpline(t[1, seen], x[1, seen, 2], bc_type="natural")
    np.testing.assert_allclose(values[1, :, 2], spline(t[1]), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(slopes[1, :, 2], spline(t[1], 1), rtol=1e-10, atol=1e-9)
