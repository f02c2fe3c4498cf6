"""sol(t) at the ends of a solve, where rounding has put t past them."""

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


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def slopes(sol: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    t = t.clone().requires_grad_()
    y = sol(t)
    return y.detach(), torch.autograd.grad(y.sum(), t)[0]


def past(t: Tensor, up: bool) -> Tensor:
    return torch.nextafter(t, torch.full_like(t, math.inf if up else -math.inf))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_a_time_past_an_end_by_rounding_moves_the_solution(gradient: Any, sign: float, per_sample: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        y0 = torch.ones(1, dtype=dtype, requires_grad=True)
        sol = odenet.solve(
            lambda t, y: -sign * y, y0, [0.0, sign * 0.3], gradient=gradient, dense=True, per_sample=per_sample
        )  # fmt: skip
        t = torch.linspace(0, sign * 0.3, 4, dtype=dtype)  # in float32 the last one is past the end
        ends = torch.stack([past(t[0], sign < 0), t[1], past(t[3], sign > 0)])
        for asked in (t, ends):
            y, slope = slopes(sol, asked)
            torch.testing.assert_close(y.flatten(), torch.exp(-asked.abs()), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(slope, -sign * torch.exp(-asked.abs()), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(y.flatten()[-1], sol.y1.detach().flatten()[0])
        with pytest.raises(ValueError, match="t must lie between"):
            sol(sign * 0.301)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_the_same_of_a_solution_with_events(gradient: Any, per_sample: bool) -> None:
    event = Event(lambda t, y: y.reshape(-1) - 0.8, reset=lambda t, y: torch.ones_like(y))
    y0 = torch.ones(1, dtype=torch.float32, requires_grad=True)
    sol = odenet.solve(decay, y0, [0.0, 0.3], gradient=gradient, dense=True, per_sample=per_sample, event=event)
    y, slope = slopes(sol, torch.linspace(0, 0.3, 4))
    first = math.log(1 / 0.8)
    exact = torch.exp(-torch.tensor([0.0, 0.1, 0.2, 0.3 - first]))
    torch.testing.assert_close(y.flatten(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slope, -exact, rtol=1e-3, atol=1e-3)


def test_the_number_of_the_report_and_the_drop_in() -> None:
    t = torch.linspace(0, 0.3, 4)
    sol = odenet.solve(decay, torch.ones(()), [0.0, 0.3], dense=True)
    assert float(slopes(sol, t)[1][-1]) == pytest.approx(-0.7408, abs=1e-4)
    for start, end in ((0.0, 0.3), (0.3, 0.0)):
        dense = drop_in.odeint_dense(decay, torch.ones(1), torch.tensor(start), torch.tensor(end))
        asked = past(torch.tensor([start, end]), end > start)
        asked = torch.stack([past(asked[0], end < start), past(asked[1], end > start)])
        y, slope = slopes(dense, asked)
        torch.testing.assert_close(y.flatten(), torch.tensor([1.0, math.exp(start - end)]))
        torch.testing.assert_close(slope, -y.flatten(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", ["dopri8", "tsit5", "dopri5"])
def test_single_precision_between_steps(method: str, per_sample: bool) -> None:
    """The weights of dopri8's dense output are large, and cancel: outputs are as good as the ends of steps."""
    ts = torch.linspace(0.0, 5.0, 101, dtype=torch.float64)
    sol = odenet.solve(
        lambda t, y: -y * torch.cos(t).to(y.dtype).reshape(-1, 1), torch.full((2, 1), 2.0), ts, method=method,
        rtol=1e-7, atol=1e-7, dense=True, per_sample=per_sample,
    )  # fmt: skip
    found = sol.ys.double().reshape(2, -1) if per_sample else sol.ys.double()[..., 0].mT
    torch.testing.assert_close(found, (2 * torch.exp(-torch.sin(ts))).expand(2, -1), rtol=0.0, atol=6e-6)
    assert float((sol(5.0) - sol.y1).abs().max()) < 1e-6
