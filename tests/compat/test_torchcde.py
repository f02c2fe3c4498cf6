"""torchcde's interface: splines of SciPy, equations with closed forms, finite differences; torchcde is not needed."""

from __future__ import annotations

import doctest
import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import scipy.linalg
import torch
from torch import Tensor, nn

from odenet.compat import torchcde
from odenet.compat.torchcde import (
    CubicSpline,
    LinearInterpolation,
    TupleControl,
    cdeint,
    linear_interpolation_coeffs,
    logsig_windows,
    logsignature_windows,
    natural_cubic_coeffs,
    natural_cubic_spline_coeffs,
)
from odenet.compat.torchcde import hermite_cubic_coefficients_with_backward_differences as hermite_coeffs
from odenet.compat.torchcde.misc import forward_fill, tridiagonal_solve
from odenet.series.log_signature import log_signature, lyndon_words

D = torch.float64
NAN = float("nan")
TIGHT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
CUBIC = (hermite_coeffs, natural_cubic_coeffs, natural_cubic_spline_coeffs)
ALL = (linear_interpolation_coeffs, *CUBIC)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def times(length: int) -> Tensor:
    return 0.3 + (0.2 + torch.rand(length, dtype=D)).cumsum(0)


def values(*shape: int, missing: float = 0.0) -> Tensor:
    x = torch.randn(*shape, dtype=D)
    return torch.where(torch.rand(shape) < missing, NAN, x)


def control(make: Any, x: Tensor, t: Tensor | None = None) -> Any:
    return (LinearInterpolation if make is linear_interpolation_coeffs else CubicSpline)(make(x, t), t)


# --- interpolation


@pytest.mark.parametrize("make", [natural_cubic_coeffs, natural_cubic_spline_coeffs])
@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_natural_spline_is_that_of_scipy(make: Any, missing: float) -> None:
    t, x = times(12), values(2, 3, 12, 2, missing=missing)
    X, s = control(make, x, t), torch.linspace(0.5, float(t[-1]), 50, dtype=D).clamp(min=t[0])
    for i, j, c in itertools.product(range(2), range(3), range(2)):
        own = x[i, j, :, c].numpy()
        seen = np.flatnonzero(~np.isnan(own))
        filled = own.copy()
        ends = (slice(0, seen[0]), slice(seen[-1] + 1, 12))
        if make is natural_cubic_spline_coeffs:
            ends = (slice(0, min(1, seen[0])), slice(max(11, seen[-1] + 1), 12))
        filled[ends[0]], filled[ends[1]] = own[seen[0]], own[seen[-1]]
        knots = ~np.isnan(filled)
        spline = scipy.interpolate.CubicSpline(t.numpy()[knots], filled[knots], bc_type="natural")
        np.testing.assert_allclose(X.evaluate(s)[i, j, :, c], spline(s), atol=1e-9)
        np.testing.assert_allclose(X.derivative(s)[i, j, :, c], spline(s, 1), atol=1e-8)


def test_hermite_spline_is_that_of_scipy() -> None:
    t, x = times(9), values(3, 9, 2)
    slopes = np.diff(x.numpy(), axis=-2) / np.diff(t.numpy())[:, None]
    slopes = np.concatenate([slopes[:, :1], slopes], -2)
    spline = scipy.interpolate.CubicHermiteSpline(t.numpy(), x.numpy(), slopes, axis=1)
    X, s = control(hermite_coeffs, x, t), torch.linspace(float(t[0]), float(t[-1]), 40, dtype=D)
    np.testing.assert_allclose(X.evaluate(s), spline(s.numpy()), atol=1e-9)
    np.testing.assert_allclose(X.derivative(s), spline.derivative()(s.numpy()), atol=1e-8)


def test_linear_interpolation_is_that_of_numpy() -> None:
    t, x = times(15), values(4, 15, 3, missing=0.4)
    X, s = control(linear_interpolation_coeffs, x, t), torch.linspace(float(t[0]), float(t[-1]), 40, dtype=D)
    for i, c in itertools.product(range(4), range(3)):
        seen = ~torch.isnan(x[i, :, c])
        np.testing.assert_allclose(X.evaluate(s)[i, :, c], np.interp(s, t[seen], x[i, seen, c]), atol=1e-12)


@pytest.mark.parametrize("make", ALL)
def test_a_channel_without_values_is_zero_and_one_value_is_constant(make: Any) -> None:
    x = torch.full((6, 2), NAN)
    x[3, 1] = 1.5
    X, s = control(make, x), torch.linspace(0.0, 5.0, 7)
    torch.testing.assert_close(X.evaluate(s), torch.tensor([0.0, 1.5]).expand(7, 2))
    torch.testing.assert_close(X.derivative(s), torch.zeros(7, 2))


@pytest.mark.parametrize("make", ALL)
def test_the_derivative_is_that_of_autograd(make: Any) -> None:
    t = times(6)
    X = control(make, values(2, 6, 3), t)
    s = torch.linspace(float(t[0]) - 0.5, float(t[-1]) + 0.5, 12, dtype=D)  # the outer pieces go on behind the ends
    expected = torch.func.vmap(torch.func.jacfwd(X.evaluate))(s).movedim(0, -2)
    torch.testing.assert_close(X.derivative(s), expected)


@pytest.mark.parametrize("make", ALL)
def test_shapes_and_knots(make: Any) -> None:
    t, x = times(5), values(2, 1, 5, 3)
    X = control(make, x, t)
    torch.testing.assert_close(X.evaluate(X.grid_points), x)
    torch.testing.assert_close(X.grid_points, t)
    torch.testing.assert_close(X.interval, t[[0, -1]])
    for shape in ((), (4,), (2, 3), (0,)):
        s = torch.rand(shape) + 1.0
        assert X.evaluate(s).shape == X.derivative(s).shape == (2, 1, *shape, 3)
        assert X.evaluate(s).dtype == D
    torch.testing.assert_close(X.evaluate(1.25), X.evaluate(torch.tensor(1.25)))


def test_a_knot_belongs_to_the_piece_before_it() -> None:
    X = LinearInterpolation(torch.tensor([[0.0], [1.0], [3.0], [2.0]]))
    assert X.derivative(X.grid_points)[:, 0].tolist() == [1.0, 1.0, 2.0, -1.0]


@pytest.mark.parametrize("make", ALL)
def test_gradients_of_values_and_times(make: Any) -> None:
    t, x = times(6), values(2, 6, 2, missing=0.3)
    seen = ~torch.isnan(x)

    def path(given: Tensor, t: Tensor, s: Tensor) -> Tensor:
        X = control(make, torch.full_like(x, NAN).masked_scatter(seen, given), t)
        return X.evaluate(s).square() + X.derivative(s)

    s = t[:-1] + 0.37 * t.diff()
    assert torch.autograd.gradcheck(path, [v.detach().clone().requires_grad_() for v in (x[seen], t, s)])


def test_rectilinear() -> None:
    x = torch.tensor([[0.1, 5.0, 1.0], [0.4, NAN, 2.0], [1.0, 7.0, NAN]])
    expected = [[0.1, 5.0, 1.0], [0.4, 5.0, 1.0], [0.4, 5.0, 2.0], [1.0, 5.0, 2.0], [1.0, 7.0, 2.0]]
    torch.testing.assert_close(linear_interpolation_coeffs(x, rectilinear=0), torch.tensor(expected))
    swapped = linear_interpolation_coeffs(x[None, :, [1, 2, 0]], rectilinear=2)
    torch.testing.assert_close(swapped, torch.tensor(expected)[None, :, [1, 2, 0]])


def test_rectilinear_refuses_what_is_not_causal() -> None:
    with pytest.warns(UserWarning, match="looks ahead"):
        out = linear_interpolation_coeffs(torch.tensor([[0.0, NAN], [1.0, 3.0]]), rectilinear=0)
    assert out.tolist() == [[0.0, 3.0], [1.0, 3.0], [1.0, 3.0]]
    with pytest.raises(AssertionError, match="misses times in channel 0"):
        linear_interpolation_coeffs(torch.tensor([[0.0, 1.0], [NAN, 3.0]]), rectilinear=0)
    for channel in (2, -1, True):
        with pytest.raises(AssertionError, match="number of the time channel, 0 to 1"):
            linear_interpolation_coeffs(torch.zeros(2, 2), rectilinear=channel)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), None, "floating point, with NaN"),
        (torch.zeros(3), None, r"\(\.\.\., length, channels\)"),
        (torch.zeros(1, 2), None, "at least two rows"),
        (torch.zeros(0, 2), None, "at least two rows"),
        (torch.zeros(3, 2), torch.arange(3), "t must be a tensor of floating point"),
        (torch.zeros(3, 2), torch.zeros(3, 1), "one-dimensional"),
        (torch.zeros(3, 2), torch.zeros(2), "a time for each row of x, 3; got 2"),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 1.0]), r"t\[2\] = 1.0 does not, after 1.0"),
        (torch.zeros(3, 2), torch.tensor([0.0, NAN, 1.0]), r"t\[1\] = nan"),
    ],
)
def test_a_wrong_path(make: Any, x: Tensor, t: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(x, t)


def test_wrong_coefficients() -> None:
    coeffs = natural_cubic_coeffs(values(5, 2))
    with pytest.raises(ValueError, match="four numbers for each channel"):
        CubicSpline(values(5, 2))
    with pytest.raises(ValueError, match=r"\(5,\) for coeffs of 4 pieces"):
        CubicSpline(coeffs, times(4))
    with pytest.raises(ValueError, match="a time for each of 5 rows"):
        LinearInterpolation(values(5, 2), times(4))
    with pytest.raises(ValueError, match="floating point"):
        CubicSpline(torch.zeros(4, 8, dtype=torch.long))


def test_a_control_is_a_module() -> None:
    X = CubicSpline(natural_cubic_coeffs(values(5, 2).float()))
    assert {b.dtype for b in X.double().buffers()} == {D}
    assert isinstance(X, torchcde.InterpolationBase)
    assert X.evaluate(0.5).dtype == D
    assert torchcde.NaturalCubicSpline is CubicSpline


# --- helpers


def test_tridiagonal_solve_against_a_dense_one() -> None:
    b, diagonal, upper, lower = (torch.randn(3, n, dtype=D) for n in (7, 7, 6, 6))
    dense = torch.diag_embed(diagonal) + torch.diag_embed(upper, 1) + torch.diag_embed(lower, -1)
    torch.testing.assert_close(tridiagonal_solve(b, upper, diagonal, lower), torch.linalg.solve(dense, b))


def test_forward_fill() -> None:
    x = torch.tensor([[NAN, 1.0, NAN, 2.0, NAN]])
    expected = torch.tensor([[NAN, 1.0, 1.0, 2.0, 2.0]])
    torch.testing.assert_close(forward_fill(x, fill_index=-1), expected, equal_nan=True)
    torch.testing.assert_close(forward_fill(x.mT), expected.mT, equal_nan=True)
    with pytest.raises(AssertionError, match="two dimensions"):
        forward_fill(x[0])


# --- cdeint


class Linear(nn.Module):
    """f(t, z) holds A_c z of each channel c: dz = sum of A_c z dX_c."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.3 * torch.randn(channels, hidden, hidden, dtype=D))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.einsum("cij,...j->...ic", self.A, z)


class LinearProduct(Linear):
    def prod(self, t: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        return torch.einsum("cij,...j,...c->...i", self.A, z, dx)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("adjoint", [True, False])
def test_one_channel_has_a_closed_form(make: Any, adjoint: bool) -> None:
    """z(t) = exp(A (X(t) - X(0))) z0, and gradients of A, z0, the data and its times; nothing is in adjoint_params."""
    t, x, z0, f = times(5), values(3, 5, 1), values(3, 2), Linear(2, 1)
    kinks = make is linear_interpolation_coeffs  # whose times have no gradient
    inputs = [v.requires_grad_() for v in ((x, z0) if kinks else (t, x, z0))] + [f.A]
    X = control(make, x, t)
    out = t.detach()[[0, 1, 3, 4]]
    z = cdeint(X, f, z0, out, adjoint=adjoint, options={"jump_t": X.grid_points}, **TIGHT)
    rise = X.evaluate(out) - X.evaluate(out[:1])
    exact = (torch.matrix_exp(f.A[0] * rise[..., None]) @ z0[:, None, :, None])[..., 0]
    assert z.shape == (3, 4, 2)
    torch.testing.assert_close(z, exact, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(exact)
    mine = torch.autograd.grad((z * weight).sum(), inputs, retain_graph=True)
    torch.testing.assert_close(mine, torch.autograd.grad((exact * weight).sum(), inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [Linear, LinearProduct])
@pytest.mark.parametrize("adjoint", [True, False])
def test_lines_of_several_channels_have_a_closed_form(cls: type[Linear], adjoint: bool) -> None:
    """Along a line z becomes exp(sum of A_c dX_c) z, and the lines follow one another."""
    x, z0, f = values(2, 4, 3), values(2, 3), cls(3, 3)
    inputs = (x.requires_grad_(), z0.requires_grad_(), f.A)
    exact = [z0]
    for rise in x.diff(dim=1).unbind(1):
        exact.append((torch.matrix_exp(torch.einsum("bc,cij->bij", rise, f.A)) @ exact[-1][..., None])[..., 0])
    X = LinearInterpolation(linear_interpolation_coeffs(x))
    z = cdeint(X, f, z0, X.grid_points, adjoint, options={"jump_t": X.grid_points}, **TIGHT)
    torch.testing.assert_close(z, torch.stack(exact, 1), rtol=1e-5, atol=1e-6)
    mine = torch.autograd.grad(z[:, -1].square().sum(), inputs)
    torch.testing.assert_close(mine, torch.autograd.grad(exact[-1].square().sum(), inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adjoint", [True, False])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_gradcheck_of_fixed_steps_over_any_batch(batch: tuple[int, ...], adjoint: bool) -> None:
    steps: dict[str, Any] = {"method": "rk4", "options": {"step_size": 0.125}}

    def solve(x: Tensor, z0: Tensor, A: Tensor) -> Tensor:
        X = CubicSpline(natural_cubic_coeffs(x))
        z = cdeint(X, lambda t, z: torch.einsum("cij,...j->...ic", A, z).tanh(), z0, X.interval, adjoint, **steps)
        assert z.shape == (*batch, 2, 2)
        return z[..., -1, :]

    inputs = (values(*batch, 3, 2), values(*batch, 2), values(2, 2, 2))
    assert torch.autograd.gradcheck(solve, [v.requires_grad_() for v in inputs], atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("form", [tuple, list])
def test_a_tuple_is_solved_as_its_parts(form: Any) -> None:
    Xa, Xb = CubicSpline(natural_cubic_coeffs(values(2, 4, 2))), LinearInterpolation(values(4, 1))
    X, fa, fb = TupleControl(Xa, Xb), Linear(3, 2), Linear(4, 1)
    za, zb = values(2, 3).requires_grad_(), values(4).requires_grad_()
    options: dict[str, Any] = {"options": {"jump_t": Xb.grid_points}, "rtol": 1e-6, "atol": 1e-8}

    def func(t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return fa(t, z[0]), fb(t, z[1])

    both = cdeint(X, func, form([za, zb]), X.interval, **options)
    alone = [cdeint(*parts, X.interval, **options) for parts in ((Xa, fa, za), (Xb, fb, zb))]
    assert isinstance(both, tuple)
    for mine, own in zip(both, alone, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-5)
    inputs = (za, zb, fa.A, fb.A)
    mine = torch.autograd.grad(sum(z.sum() for z in both), inputs)
    torch.testing.assert_close(mine, torch.autograd.grad(sum(z.sum() for z in alone), inputs), rtol=1e-4, atol=1e-5)


def test_one_part_that_is_not_asked_for_gets_zeros() -> None:
    X = TupleControl(LinearInterpolation(values(4, 1)), LinearInterpolation(values(4, 1)))
    z0 = values(2).requires_grad_(), values(2).requires_grad_()
    cdeint(X, lambda t, z: tuple(x[..., None] for x in z), z0, X.interval)[0].sum().backward()
    assert z0[1].grad is not None
    assert z0[1].grad.tolist() == [0.0, 0.0]


def test_back_in_time() -> None:
    X, f, z0 = LinearInterpolation(values(2, 4, 2)), Linear(3, 2), values(2, 3)
    options: dict[str, Any] = {"options": {"jump_t": X.grid_points}} | TIGHT
    z1 = cdeint(X, f, z0, X.interval, **options)[:, -1]
    torch.testing.assert_close(cdeint(X, f, z1, X.interval.flip(0), **options)[:, -1], z0, rtol=1e-4, atol=1e-5)


def test_a_control_by_the_solution_of_another() -> None:
    x = values(1, 5, 2).requires_grad_()
    X, f, g = CubicSpline(hermite_coeffs(x)), Linear(2, 2), Linear(2, 2)
    t = torch.linspace(0.0, 4.0, 9, dtype=D)
    Y = CubicSpline(natural_cubic_coeffs(cdeint(X, f, torch.ones(1, 2, dtype=D), t), t), t)
    cdeint(Y, g, torch.ones(1, 2, dtype=D), t[[0, -1]])[:, -1].sum().backward()
    assert all(v.grad is not None and bool((v.grad != 0).all()) for v in (x, f.A, g.A))


def test_times_of_kinks_have_no_gradient() -> None:
    X = LinearInterpolation(values(3, 1), times(3).requires_grad_())
    for control_ in (X, TupleControl(X)):
        z0 = torch.ones(1, dtype=D)
        with pytest.warns(UserWarning, match=r"Use t.detach\(\), or CubicSpline"), torch.no_grad():
            parts = isinstance(control_, TupleControl)
            func = (lambda t, z: (z[0][..., None],)) if parts else (lambda t, z: z[..., None])
            cdeint(control_, func, (z0,) if parts else z0, X.interval)


def test_defaults_are_those_of_torchcde() -> None:
    X, f, z0 = CubicSpline(natural_cubic_coeffs(values(6, 2))), Linear(3, 2), values(3).requires_grad_()
    tolerances = {"rtol": 1e-4, "atol": 1e-6}
    given = tolerances | {f"adjoint_{k}": v for k, v in tolerances.items()}
    a, b = cdeint(X, f, z0, X.interval), cdeint(X, f, z0, X.interval, **given, method="dopri5")
    assert torch.equal(a, b)
    assert torch.equal(*(torch.autograd.grad(z.sum(), z0)[0] for z in (a, b)))
    assert not torch.equal(a, cdeint(X, f, z0, X.interval, rtol=1e-6))


def test_func_gets_a_number_of_its_dtype() -> None:
    X = CubicSpline(natural_cubic_coeffs(values(3, 4, 2).float()))

    def func(t: Tensor, z: Tensor) -> Tensor:
        assert t.shape == ()
        assert t.dtype == z.dtype == torch.float32
        return z[..., None].expand(3, 5, 2)

    out = cdeint(X, func, torch.ones(3, 5), torch.linspace(0.0, 3.0, 4, dtype=D), method="rk4")
    assert out.dtype == torch.float32


X2 = LinearInterpolation(torch.zeros(2, 4, 3))
GOOD: dict[str, Any] = {"X": X2, "func": lambda t, z: z.new_zeros(2, 5, 3), "z0": torch.zeros(2, 5), "t": X2.interval}


class WrongProduct:
    def prod(self, t: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        return z[..., None] * dx[..., None, :]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": 1.0}, ValueError, r"X must have a method derivative\(t\)"),
        ({"func": 1.0}, ValueError, r"func must be callable, func\(t, z\)"),
        ({"func": lambda t, z: z}, ValueError, r"\(2, 5, 3\) for z0 of shape \(2, 5\) .* got shape \(2, 5\)"),
        ({"func": lambda t, z: 1.0}, ValueError, r"func\(t, z\) must be a tensor"),
        ({"func": lambda t, z: z.new_zeros(2, 5, 3, dtype=D)}, ValueError, "one dtype; got torch.float64"),
        ({"func": WrongProduct()}, ValueError, r"func.prod\(t, z, dX\) must be \(..., hidden\), \(2, 5\)"),
        ({"func": nn.Linear(5, 3), "z0": torch.zeros(2, 5, dtype=D)}, ValueError, "z0 and X.derivative.* one dtype"),
        ({"z0": torch.zeros(5)}, ValueError, r"leading dimensions of z0, \(\); got shape \(2, 3\)"),
        ({"z0": torch.zeros(())}, ValueError, "z0 must be .* got a number"),
        ({"z0": [1.0]}, ValueError, "X.derivative.* must be a tuple of 1 tensors"),
        ({"z0": 1.0}, ValueError, "z0 must be a tensor or a tuple of tensors"),
        ({"t": 1.0}, ValueError, "t must be a tensor of times"),
        ({"t": torch.tensor([0.0, 0.0])}, AssertionError, "strictly increasing"),
        ({"backend": "scipy"}, ValueError, "backend"),
        ({"event_fn": lambda t, z: z}, ValueError, "event_fn has no meaning in cdeint"),
        ({"method": "rk5"}, ValueError, "method"),
        ({"adjoint": False, "adjoint_params": ()}, TypeError, "adjoint_params"),
    ],
)
def test_a_wrong_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cdeint(**GOOD | change)


def test_controls_that_do_not_go_together() -> None:
    a, b = LinearInterpolation(values(4, 1)), LinearInterpolation(values(5, 1))
    c = LinearInterpolation(values(3, 1), torch.tensor([0.0, 1.0, 3.0], dtype=D))
    with pytest.raises(ValueError, match="at least one control"):
        TupleControl()
    with pytest.raises(ValueError, match="one interval"):
        TupleControl(a, b)
    with pytest.raises(RuntimeError, match="different knots"):
        _ = TupleControl(a, c).grid_points
    assert torch.equal(TupleControl(a, a).grid_points, a.grid_points)
    assert [x.shape for x in TupleControl(a, c).evaluate(0.5)] == [(1,), (1,)]


# --- log-signatures


def coefficient(x: Tensor, word: tuple[int, ...]) -> float:
    """Of one word in the log-signature: an entry of the logarithm of a product of matrix exponentials.

    Channel c is a matrix with a 1 at (j, j + 1) where letter j of the word is c: no other word has an entry (0, k).
    """
    k = len(word)
    matrices = np.zeros((x.shape[-1], k + 1, k + 1))
    for j, letter in enumerate(word):
        matrices[letter, j, j + 1] = 1.0
    product = np.eye(k + 1)
    for rise in x.diff(dim=0).numpy():
        product = product @ scipy.linalg.expm(np.tensordot(rise, matrices, 1))
    nilpotent = product - np.eye(k + 1)
    return sum((-1) ** (n + 1) / n * np.linalg.matrix_power(nilpotent, n) for n in range(1, k + 1))[0, k]


@pytest.mark.parametrize(("channels", "depth"), [(1, 3), (2, 1), (2, 4), (3, 3), (4, 2)])
def test_log_signature_is_a_logarithm_of_matrices(channels: int, depth: int) -> None:
    x = values(2, 6, channels)
    out = log_signature(x.diff(dim=-2), depth)
    words = lyndon_words(channels, depth)
    assert out.shape == (2, len(words))
    for row, path in zip(out, x, strict=True):
        np.testing.assert_allclose(row, [coefficient(path, w) for w in words], atol=1e-12)


def test_lyndon_words_are_smaller_than_their_rotations() -> None:
    for letters, length in ((1, 4), (2, 5), (3, 4)):
        found = [
            w
            for n in range(1, length + 1)
            for w in itertools.product(range(letters), repeat=n)
            if all(w < w[i:] + w[:i] for i in range(1, n))
        ]
        assert lyndon_words(letters, length) == found


def test_a_window_is_that_part_of_the_path() -> None:
    """The derivative along window k is the log-signature of the path between its ends, missing values filled in."""
    t, x = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0, 3.1, 3.5], dtype=D), values(2, 7, 3, missing=0.3)
    filled = linear_interpolation_coeffs(x, t)
    X = LinearInterpolation(filled, t)
    out = logsig_windows(x, 3, 1.5, t)
    assert out.shape == (2, 4, 14)
    torch.testing.assert_close(out[:, 0, :3], filled[:, 0])
    ends = [0.0, 1.5, 3.0, 3.5]
    for k, (a, b) in enumerate(itertools.pairwise(ends)):
        knots = torch.cat([torch.tensor([a]), t[(t > a) & (t < b)], torch.tensor([b])])
        expected = log_signature(X.evaluate(knots).diff(dim=-2), 3)
        torch.testing.assert_close(LinearInterpolation(out).derivative(k + 0.5), expected)
    old, times_ = logsignature_windows(x, 3, 1.5, t)
    assert times_.tolist() == ends
    torch.testing.assert_close(old.diff(dim=-2), out.diff(dim=-2) * torch.tensor([1.5, 1.5, 0.5], dtype=D)[:, None])


def test_depth_one_keeps_the_increments() -> None:
    x = values(9, 2)
    torch.testing.assert_close(logsig_windows(x, 1, 4.0), x[::4])
    torch.testing.assert_close(logsig_windows(x, 2, 100.0)[:, :2], x[[0, -1]])


def test_gradients_of_windows() -> None:
    t, x = times(6), values(6, 2)
    assert torch.autograd.gradcheck(lambda x, t: logsig_windows(x, 3, 0.9, t), (x.requires_grad_(), t.requires_grad_()))


@pytest.mark.parametrize(
    ("depth", "window", "message"), [(0, 1.0, "depth"), (2, 0.0, "window_length"), (2, NAN, "window_length")]
)
def test_wrong_windows(depth: int, window: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logsig_windows(values(4, 2), depth, window)


@pytest.mark.parametrize("module", ["solver", "interpolation_linear", "interpolation_cubic"])
def test_examples_of_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"odenet.compat.torchcde.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_times_that_require_a_gradient_change_no_bit() -> None:
    """Of the solution and the other gradients, in fixed steps: both ways through the solver round alike."""
    X, f, z0 = CubicSpline(natural_cubic_coeffs(values(1, 10, 3).float())), Linear(3, 3).float(), torch.rand(1, 3)
    for adjoint in (True, False):
        found = []
        for required in (True, False):
            t = torch.tensor([0.0, 4.0, 9.0], requires_grad=required)
            z = cdeint(X, f, z0, t, adjoint, method="rk4", options={"step_size": 0.5})
            found.append((z, torch.autograd.grad(z[:, -1].sum(), f.A, retain_graph=required)[0]))
            if required:  # the second output ends a step: it moves along that step's line
                moved = torch.autograd.grad(z[:, 1].sum(), t)[0][1]
                assert bool(moved != 0)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_z0_of_another_dtype() -> None:
    path = torchcde.CubicSpline(torchcde.natural_cubic_coeffs(torch.randn(4, 6, 3, dtype=torch.float64)))

    def func(t: Tensor, z: Tensor) -> Tensor:
        return z[..., None] * torch.ones(3, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"z0 and X.derivative\(t\) must have one dtype"):
        torchcde.cdeint(path, func, torch.randn(4, 2), torch.tensor([0.0, 5.0]))
