"""f that jumps at an event, with the time or with the state: each side is seen from its own, in every gradient mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import SETTINGS
from odenet import Event
from odenet.compat import torchdiffeq as drop_in

D = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SIDES = {"<=": torch.le, "<": torch.lt}


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=D, requires_grad=True)


def same(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
    return y


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_a_time_at_which_f_switches(gradient: Any, side: str, per_sample: bool) -> None:
    """y' = -k y until T, then c: y(1) = exp(-k T) + c (1 - T), and dy/dT = f just before less f just after."""
    k, c, T = number(1.3), number(0.4), number(0.6)

    def f(t: Tensor, y: Tensor, k: Tensor, c: Tensor, T: Tensor) -> Tensor:
        on = SIDES[side](t, T).reshape(-1, 1) if per_sample else SIDES[side](t, T)
        return torch.where(on, -k * y, c.expand_as(y))

    event = Event(lambda t, y, k, c, T: (t - T).reshape(-1) if per_sample else t - T, reset=same)
    ts = torch.tensor([0.0, 0.8, 1.0], dtype=D)
    sol = odenet.solve(
        f, torch.ones(1, 1, dtype=D), ts, args=(k, c, T), event=event, gradient=gradient, per_sample=per_sample,
        dense=True, **TIGHT,
    )  # fmt: skip
    for t, y in ((1.0, sol.y1), (0.8, sol.ys[0, 1] if per_sample else sol.ys[1]), (0.7, sol(0.7))):
        exact = (-k * T).exp() + c * (t - T)
        torch.testing.assert_close(y.sum(), exact, rtol=1e-8, atol=0.0)
        mine = torch.autograd.grad(y.sum(), (k, c, T), retain_graph=True)
        torch.testing.assert_close(mine, torch.autograd.grad(exact, (k, c, T)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_the_number_of_the_report(gradient: Any) -> None:
    T = number(0.6)
    sol = odenet.solve(
        lambda t, y, T: torch.where(t < T, -1.3 * y, torch.zeros_like(y)), torch.ones(1, dtype=D), [0.0, 1.0],
        args=(T,), event=Event(lambda t, y, T: t - T, reset=same), gradient=gradient, **TIGHT,
    )  # fmt: skip
    assert float(torch.autograd.grad(sol.y1.sum(), T)[0]) == pytest.approx(-0.595928, abs=1e-6)


@pytest.mark.parametrize("steps", [{}, {"method": "rk4", "step": 0.01}, {"method": "gl6", "step": 0.05}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", SIDES)
def test_other_steps_against_time_and_in_float32(side: str, dtype: torch.dtype, steps: dict[str, Any]) -> None:
    T, end = torch.tensor(-0.6, dtype=dtype, requires_grad=True), -1.0

    def f(t: Tensor, y: Tensor, T: Tensor) -> Tensor:
        return torch.where(SIDES[side](-t, -T), 1.3 * y, torch.zeros_like(y))

    tolerance = {} if steps else {"rtol": 1e-6, "atol": 1e-6}
    sol = odenet.solve(
        f, torch.ones(1, dtype=dtype), torch.tensor([0.0, end], dtype=dtype), args=(T,),
        event=Event(lambda t, y, T: t - T, reset=same), **steps, **tolerance,
    )  # fmt: skip
    assert float(sol.y1.detach()) == pytest.approx(math.exp(-0.78), abs=1e-5)
    assert float(torch.autograd.grad(sol.y1.sum(), T)[0]) == pytest.approx(1.3 * math.exp(-0.78), abs=1e-4)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("side", [torch.gt, torch.ge])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_a_state_at_which_f_switches(gradient: Any, side: Any, per_sample: bool) -> None:
    """y' = -a y above the level c and -b y below it, from 1: y(1) = c exp(-b (1 - t)), where t = -log(c) / a."""
    a, b, c = number(1.3), number(0.4), number(0.5)

    def f(t: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.where(side(y, c), -a * y, -b * y)

    event = Event(lambda t, y, a, b, c: y[..., 0] - c, reset=same)
    sol = odenet.solve(
        f, torch.ones(2, 1, dtype=D) if per_sample else torch.ones(1, dtype=D), [0.0, 1.0], args=(a, b, c),
        event=event, gradient=gradient, per_sample=per_sample, **TIGHT,
    )  # fmt: skip
    exact = c * torch.exp(-b * (1 + c.log() / a)) * (2 if per_sample else 1)
    torch.testing.assert_close(sol.y1.sum(), exact, rtol=1e-7, atol=0.0)
    mine = torch.autograd.grad(sol.y1.sum(), (a, b, c))
    torch.testing.assert_close(mine, torch.autograd.grad(exact, (a, b, c)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_an_event_that_only_notes_the_switch_down(gradient: Any, per_sample: bool) -> None:
    """What follows moves with its time as after a reset; where f does not jump it goes on from a fixed time."""
    T = number(0.6)

    def f(t: Tensor, y: Tensor, T: Tensor) -> Tensor:
        return torch.where((t < T).reshape(-1, 1) if per_sample else t < T, -1.3 * y, torch.zeros_like(y))

    event = Event(lambda t, y, T: (t - T).reshape(-1), terminal=False)
    sol = odenet.solve(
        f, torch.ones(1, 1, dtype=D), [0.0, 1.0], args=(T,), event=event, gradient=gradient, per_sample=per_sample,
        **TIGHT,
    )  # fmt: skip
    assert float(torch.autograd.grad(sol.y1.sum(), T)[0]) == pytest.approx(-1.3 * math.exp(-0.78), abs=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_the_drop_in_sees_the_slope_before_its_event(interface: str, side: str) -> None:
    T = number(0.6)

    class Field(torch.nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.where(SIDES[side](t, T), -1.3 * y, 5.0 * torch.ones_like(y))

    time, ys = drop_in.odeint_event(
        Field(), torch.ones(1, dtype=D), torch.tensor(0.0, dtype=D), event_fn=lambda t, y: t - T, rtol=1e-9, atol=1e-9,
        odeint_interface=getattr(drop_in, interface),
    )  # fmt: skip
    assert float(ys[-1].detach()) == pytest.approx(math.exp(-0.78), abs=1e-8)
    grads = [float(torch.autograd.grad(x.sum(), T, retain_graph=True)[0]) for x in (time, ys[-1])]
    assert grads == pytest.approx([1.0, -1.3 * math.exp(-0.78)], abs=1e-7)


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_a_ball_on_springs_touches_its_floor_from_above(gradient: Any) -> None:
    """A bounce is no switch: f differs below the floor, where the ball never is, before the bounce or after it."""
    g = number(9.81)

    def f(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return torch.stack([y[1], torch.where(y[0] < 0, 1e3 - g, -g)])

    event = Event(lambda t, y, g: y[0], direction=-1, reset=lambda t, y, g: torch.stack([y[0].clamp(min=0), -y[1]]))
    sol = odenet.solve(
        f, torch.tensor([1.0, 0.0], dtype=D), [0.0, 1.0], args=(g,), event=event, gradient=gradient, **TIGHT
    )  # fmt: skip
    first = (2 / g).sqrt()
    exact = g * first * (1 - first) - g / 2 * (1 - first) ** 2
    torch.testing.assert_close(sol.y1[0], exact, rtol=1e-6, atol=1e-6)
    mine = torch.autograd.grad(sol.y1[0], g)
    torch.testing.assert_close(mine, torch.autograd.grad(exact, g), rtol=1e-5, atol=1e-6)
