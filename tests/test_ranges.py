"""Numbers far from one: states, tolerances and units of time. The witness is the closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import NAMES
from odenet.compat.torchdiffeq import odeint
from odenet.core.norms import max_abs, rms

D = torch.float64


def chain(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-y[..., 0], y[..., 0] - y[..., 1] / 2], -1)


def chain_at(t: float, first: float) -> Tensor:
    """The solution of `chain` from (first, 0)."""
    a, b = torch.exp(torch.tensor([-t, -t / 2], dtype=D))
    return first * torch.stack([a, 2 * (b - a)])


FORMS: list[dict[str, Any]] = [{}, {"per_sample": True}, {"atol": 0.0}, {"per_sample": True, "atol": 0.0}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, D])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("method", ["tsit5", "dopri5", "dopri8", "bosh3"])
def test_large_states_beside_a_zero(method: str, form: dict[str, Any], dtype: torch.dtype) -> None:
    """The quotient of slope and tolerance has a square beyond float32."""
    for first in (1e13, 1e30):
        y0 = torch.tensor([first, 0.0], dtype=dtype)
        y0 = y0.expand(3, 2) if "per_sample" in form else y0
        sol = odenet.solve(chain, y0, [0.0, 2.0], method=method, **form)
        y1 = sol.y1.to(torch.complex128 if dtype.is_complex else D).real
        torch.testing.assert_close(y1 / first, (chain_at(2.0, first) / first).expand_as(y1), rtol=0.0, atol=1e-4)
        assert int(torch.as_tensor(sol.stats.accepted).max()) < 150


@pytest.mark.parametrize("gradient", NAMES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_of_large_states(gradient: str, per_sample: bool) -> None:
    y0 = torch.tensor([1e13, 0.0], requires_grad=True)
    start = y0.expand(2, 2) if per_sample else y0
    sol = odenet.solve(chain, start, [0.0, 1.0], gradient=gradient, per_sample=per_sample)
    (found,) = torch.autograd.grad(sol.y1.sum() / len(sol.y1.reshape(-1, 2)), y0)
    expected = torch.stack([chain_at(1.0, 1.0).sum(), torch.exp(torch.tensor(-0.5, dtype=D))])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.0)


@pytest.mark.slow
def test_large_states_compiled_and_in_the_drop_in() -> None:
    y0 = torch.tensor([1e13, 0.0])
    expected = chain_at(2.0, 1e13)
    for y1 in (
        odenet.solve(chain, y0, [0.0, 2.0], compile=True).y1,
        odeint(chain, y0, torch.tensor([0.0, 2.0]), rtol=1e-5, atol=1e-7)[-1],
        odeint(
            lambda t, y: (y[1], -y[1]), (torch.zeros(1), torch.full((1,), 1e30)), torch.tensor([0.0, 2.0]), rtol=1e-5
        )[1][-1],
    ):
        scale = float(y1.abs().max())
        if len(y1) == 2:
            torch.testing.assert_close(y1.double() / 1e13, expected / 1e13, rtol=0.0, atol=1e-4)
        else:
            assert scale == pytest.approx(1e30 * 0.1353352832, rel=1e-3)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_component_that_stays_zero_has_no_error(dtype: torch.dtype, per_sample: bool) -> None:
    """With atol=0 its tolerance is zero, and so is its error; 0 / 0 was NaN, and the solve failed."""
    y0 = torch.tensor([1.0, 0.0], dtype=dtype).expand(2, 2) if per_sample else torch.tensor([1.0, 0.0], dtype=dtype)
    for atol in (0.0, torch.tensor([1e-7, 0.0]), 1e-60):  # 1e-60 is zero in float32
        sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], atol=atol, per_sample=per_sample)
        expected = torch.tensor([0.36787944117, 0.0], dtype=dtype).expand_as(y0)
        torch.testing.assert_close(sol.y1, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
def test_a_cotangent_that_is_zero_or_tiny(gradient: str) -> None:
    """The backward tolerances are in units of it, or zero where they are given so."""
    y0 = torch.ones(2, requires_grad=True)
    sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=gradient)
    (found,) = torch.autograd.grad(sol.y1 @ torch.tensor([1e-35, 0.0]), y0)
    torch.testing.assert_close(found / 1e-35, torch.tensor([0.3678794, 0.0]), rtol=1e-3, atol=1e-6)
    how = {"adjoint": odenet.Adjoint, "gauss": odenet.GaussAdjoint}[gradient](atol=0.0)
    sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=how)
    (found,) = torch.autograd.grad(sol.y1[0], y0)
    torch.testing.assert_close(found, torch.tensor([0.3678794, 0.0]), rtol=1e-3, atol=1e-6)


SETTINGS: list[dict[str, Any]] = [{}, {"method": "dopri8"}, {"method": "bosh3"}, {"method": "rk4", "step": 0.05}]


@pytest.mark.parametrize("options", [*SETTINGS, {"per_sample": True}], ids=str)
@pytest.mark.parametrize("unit", [1e-304, 1e-300, 1e-100, 1e-30, 1e30, 1e100, 1e300])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_units_of_time(unit: float, sign: float, options: dict[str, Any]) -> None:
    """A solve takes the same steps in any of them, about."""
    options = options | ({"step": options["step"] * unit} if "step" in options else {})
    y0 = torch.tensor([[1.0, 2.0]], dtype=D)
    ts = torch.tensor([0.0, 0.3 * sign * unit, sign * unit], dtype=D)
    sol = odenet.solve(lambda t, y: -sign * y / unit, y0, ts, dense=True, **options)
    for t, y in ((0.3, sol.ys[:, 1] if "per_sample" in options else sol.ys[1]), (1.0, sol.y1)):
        torch.testing.assert_close(y.reshape(1, 2), y0 * torch.exp(torch.tensor(-t, dtype=D)), rtol=1e-3, atol=0.0)
    half = sol(0.5 * sign * unit).reshape(1, 2)
    torch.testing.assert_close(half, y0 * torch.exp(torch.tensor(-0.5, dtype=D)), rtol=1e-3, atol=0.0)
    assert float(torch.as_tensor(sol.t1)) == float(ts[-1])
    assert int(torch.as_tensor(sol.stats.accepted + sol.stats.rejected).max()) < 40


def test_a_slope_that_vanishes_beside_the_state() -> None:
    """Over a short time nothing happens, in float32 too, where steps of that size do not exist."""
    for dtype in (torch.float32, D):
        y0 = torch.tensor([1.0, 0.0], dtype=dtype)
        y1 = odenet.solve(chain, y0, [0.0, 1e-100]).y1
        assert y1.tolist() == [1.0, pytest.approx(1e-100, rel=1e-3) if dtype is D else 0.0]


def test_fast_from_a_time_that_is_not_zero() -> None:
    """Steps that are lost beside t are not tried: a fast decay at t = 1 is over in the first that is not."""
    y0 = torch.ones(2, dtype=D)
    sol = odenet.solve(lambda t, y: -1e12 * (t < 1 + 1e-11) * y, y0, [1.0, 1.0 + 1e-9], controller=odenet.PID())
    assert float(sol.y1.max()) < 1e-3
    with pytest.raises(odenet.StepUnderflowError, match=r"rounding of t.*count time from here"):
        odenet.solve(lambda t, y: -1e40 * y, y0, [1.0, 2.0])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("many", [2, 100])
def test_spans_that_a_dtype_cannot_hold(many: int, per_sample: bool) -> None:
    ts = torch.linspace(0.0, 1.0, many, dtype=D) * 1e50
    for dtype in (torch.float32, torch.float16, torch.complex64):
        y0 = {"a": torch.ones(2, 1, dtype=D), "b": torch.ones(2, 1, dtype=dtype)}
        with pytest.raises(ValueError, match=rf"ts spans 1e\+50.*{dtype}.*larger unit, or use float64"):
            odenet.solve(lambda t, y: y, y0, ts, per_sample=per_sample)


def test_an_infinite_slope_is_told_with_the_dtype() -> None:
    with pytest.raises(odenet.NonFiniteError, match="too large for the dtype"):
        odenet.solve(lambda t, y: y * 1e30 * 1e30, torch.ones(2), [0.0, 1e-60])


def test_the_size_of_the_attempt_that_failed() -> None:
    """On a grid the next step is asked for with no bound; what was tried is the step to the next time."""
    control = odenet.Grid([0.25, 0.5, 0.75])
    with pytest.raises(odenet.SolveError) as caught:
        odenet.solve(
            lambda t, y: torch.where(t > 0.6, torch.nan, 1.0) * y, torch.ones(2, dtype=D), [0.0, 1.0], method="rk4",
            controller=control,
        )  # fmt: skip
    assert caught.value.t == 0.5 and caught.value.dt == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.complex64])
@pytest.mark.parametrize("batched", [False, True])
def test_norms(dtype: torch.dtype, batched: bool) -> None:
    """Against the formula in twice the precision, far beyond the squares of float32."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-30, 1.0, 1e30):
        leaves = [torch.randn(3, *s, dtype=dtype, generator=generator) * size for s in ((), (4,), (2, 5))]
        wide = [x.abs().to(D).reshape(3, -1) / size for x in leaves]
        flat = torch.cat(wide, 1)
        exact = (flat**2).mean(1 if batched else None).sqrt() if batched else (flat**2).mean().sqrt()
        torch.testing.assert_close(rms(tuple(leaves), batched) / size, exact, rtol=1e-6, atol=0.0)
        top = flat.amax(1) if batched else flat.max()
        torch.testing.assert_close(max_abs(tuple(leaves), batched) / size, top, rtol=1e-6, atol=0.0)
    assert bool(rms((torch.tensor([1.0, torch.inf]),), False).isinf())
    assert bool(rms((torch.tensor([1.0, torch.nan]),), False).isnan())


@pytest.mark.parametrize("gradient", NAMES)
def test_a_neighbour_near_the_largest_number(gradient: str) -> None:
    """Its dense output overflows; nobody asks for it, and what all samples share gets the others' gradients."""
    y0, rate = torch.tensor([[1.0, 2.0], [3e37, 1.0], [0.5, 0.1]]), torch.tensor(1.0, requires_grad=True)
    options = {"step": 0.05} if gradient == "reversible" else {}
    y1 = odenet.solve(
        lambda t, y: -rate * y, y0, [0.0, 1.0], per_sample=True, gradient=gradient, rtol=1e-6, atol=1e-6, **options
    ).y1
    (found,) = torch.autograd.grad(y1[::2].sum(), rate)
    assert float(found) == pytest.approx(-3.6 * math.exp(-1), rel=1e-4)
