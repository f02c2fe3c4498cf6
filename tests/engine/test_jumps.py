"""Jump times in the loop: evaluations just before and after, and no more of them than it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet import PID

D = torch.float64


def steady(t: Tensor, y: Tensor) -> Tensor:
    return torch.cos(t)[..., None] - y if t.ndim else torch.cos(t) - y


def kinked(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    return torch.where(t < 0.6, k, -2 * k) * y


@pytest.mark.parametrize("per_sample", [False, True])
def test_one_evaluation_for_each_jump(per_sample: bool) -> None:
    """dopri5 evaluates f six times an attempt, twice at the start, and once anew after each time at which f jumps."""
    y0 = torch.zeros(3, 1, dtype=D) if per_sample else torch.zeros(1, dtype=D)
    sol = odenet.solve(
        steady, y0, [0.0, 2.0], method="dopri5", per_sample=per_sample, rtol=1e-6, atol=1e-6,
        controller=PID(jump_ts=[0.7, 1.1]),
    )  # fmt: skip
    nfe, tried = sol.stats.nfe, sol.stats.accepted + sol.stats.rejected
    assert bool(torch.as_tensor(nfe == 6 * tried + 2 + 2).all()), (nfe, tried)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_time_that_is_a_stop_for_two_reasons_is_hit_once(per_sample: bool) -> None:
    """An output, a step_ts and two jump_ts at one time: as one jump there."""
    y0 = torch.zeros(2, 1, dtype=D) if per_sample else torch.zeros(1, dtype=D)
    found = [
        odenet.solve(steady, y0, [0.0, 0.7, 2.0], method="dopri5", per_sample=per_sample, controller=PID(**times))
        for times in ({"jump_ts": [0.7]}, {"jump_ts": [0.7, 0.7], "step_ts": [0.7]})
    ]
    assert torch.equal(found[0].ys, found[1].ys)
    assert bool(torch.as_tensor(found[0].stats.nfe == found[1].stats.nfe).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "control", [PID(jump_ts=[1.0]), odenet.ConstantStep(0.25, jump_ts=[1.0])], ids=["pid", "steps"]
)
def test_a_solve_that_ends_at_a_jump_sees_what_is_before_it(control: Any, per_sample: bool, sign: float) -> None:
    """rk4 and dopri5 evaluate f at the end of a step. The solve from 0 to 1 is that of the slope before 1."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        before = torch.where(t < 1.0, 1.0, 100.0) if sign > 0 else torch.where(t > 1.0, 1.0, 100.0)
        return before.reshape(-1, 1) * torch.ones_like(y) if per_sample else before * torch.ones_like(y)

    y0 = torch.zeros(2, 1, dtype=D) if per_sample else torch.zeros(1, dtype=D)
    start = 1.0 - sign
    method = "dopri5" if control.adaptive else "rk4"
    sol = odenet.solve(f, y0, [start, 1.0], method=method, per_sample=per_sample, controller=control)
    torch.testing.assert_close(sol.y1, torch.full_like(y0, sign), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4", "implicit_adams", "trbdf2", "gl4"])
def test_a_solve_that_starts_at_a_jump_sees_what_is_behind_it(method: str, per_sample: bool, sign: float) -> None:
    """With as many evaluations as without a jump there."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        behind = torch.where((t - 1.0) * sign > 0.0, 1.0, 100.0)
        return behind.reshape(-1, 1) * torch.ones_like(y) if per_sample else behind * torch.ones_like(y)

    def smooth(t: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    y0 = torch.zeros(2, 1, dtype=D) if per_sample else torch.zeros(1, dtype=D)
    control = (
        odenet.ConstantStep(0.25, jump_ts=[1.0]) if method in ("rk4", "gl4", "implicit_adams") else PID(jump_ts=[1.0])
    )
    found = [
        odenet.solve(g, y0, [1.0, 1.0 + sign], method=method, per_sample=per_sample, controller=control)
        for g in (f, smooth)
    ]
    torch.testing.assert_close(found[0].y1, torch.full_like(y0, sign), rtol=1e-9, atol=1e-9)
    assert all(bool(torch.as_tensor(a == b).all()) for a, b in zip(*(s.stats.values() for s in found), strict=True))


@pytest.mark.parametrize("gradient", ["discrete", "backprop", odenet.Discrete(checkpoints=2), "forward"], ids=str)
@pytest.mark.parametrize("method", ["dopri8", "tsit5"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_outputs_within_a_step_that_ends_at_a_jump(per_sample: bool, method: str, gradient: Any) -> None:
    """dopri8 evaluates f for them alone, and at the end of the step just before the jump."""
    k, times = torch.tensor(-0.8, dtype=D, requires_grad=True), [0.0, 0.45, 0.55, 0.75, 1.0]
    y0 = torch.tensor([[1.3], [0.4]] if per_sample else [1.3], dtype=D)

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return kinked(t[..., None] if per_sample else t, y, k)

    sol = odenet.solve(
        f, y0, times, args=(k,), per_sample=per_sample, method=method, rtol=1e-9, atol=1e-9, gradient=gradient,
        controller=PID(jump_ts=[0.6]),
    )  # fmt: skip
    t = torch.tensor(times, dtype=D)
    exact = y0[..., None, :] * torch.exp(k * torch.where(t < 0.6, t, 0.6 - 2 * (t - 0.6)))[:, None]
    torch.testing.assert_close(sol.ys, exact, rtol=1e-7, atol=1e-7)
    (mine,), (true,) = (torch.autograd.grad(ys.square().sum(), k) for ys in (sol.ys, exact))
    assert float(mine) == pytest.approx(float(true), rel=1e-6)


@pytest.mark.parametrize("form", ["number", "tensor"])
def test_tolerances_of_each_component_beside_one_of_all(form: str) -> None:
    """rtol as a tensor with one entry a component, atol a number, and the other way round."""
    y0, each = torch.tensor([1.0, 2.0], dtype=D), torch.full((2,), 1e-7, dtype=D)
    one: Any = 1e-7 if form == "number" else torch.tensor(1e-7, dtype=D)
    found = [
        odenet.solve(lambda t, y: torch.stack([y[1], -y[0]]), y0, [0.0, 3.0], rtol=rtol, atol=atol)
        for rtol, atol in ((1e-7, 1e-7), (each, one), (one, each))
    ]
    for other in found[1:]:
        assert torch.equal(found[0].ys, other.ys) and found[0].stats.nfe == other.stats.nfe


@pytest.mark.parametrize("name", ["step_ts", "jump_ts"])
def test_times_made_of_ts_are_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must give times"):
        control: Any = PID(**{name: lambda ts: None})  # pyright: ignore
        odenet.solve(steady, torch.zeros(1), [0.0, 1.0], controller=control)


@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "esdirk54"])
def test_a_continuous_adjoint_sees_either_side(method: str, gradient: str) -> None:
    """y(1) = y0 exp(0.6 k - 0.4 * 2 k). The way back over the jump takes no more than over both sides apart."""
    k, y0 = torch.tensor(-0.8, dtype=D, requires_grad=True), torch.tensor([1.3], dtype=D)

    def solved(f: Any, y0: Tensor, ts: list[float], **options: Any) -> tuple[Tensor, Tensor, int]:
        sol = odenet.solve(f, y0, ts, args=(k,), method=method, gradient=gradient, rtol=1e-9, atol=1e-9, **options)
        (slope,) = torch.autograd.grad(sol.y1.sum(), k)
        return sol.y1.detach(), slope, sol.stats.backward_nfe

    y1, slope, whole = solved(kinked, y0, [0.0, 1.0], controller=PID(jump_ts=[0.6]))
    assert float(slope + 0.2 * y1) == pytest.approx(0.0, abs=1e-8)
    middle, _, first = solved(lambda t, y, k: k * y, y0, [0.0, 0.6])
    _, _, second = solved(lambda t, y, k: -2 * k * y, middle, [0.6, 1.0])
    assert whole <= 1.1 * (first + second)
