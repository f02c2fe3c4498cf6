"""The built-in controllers against the contract; predictive control by its formula; callables from ts to times."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import odenet
from contract_suite import ControllerContract
from odenet.control.controller import Attempt
from odenet.control.first_step import initial_step_size
from odenet.control.stop_times import StopRule

D = torch.float64


class TestPID(ControllerContract):
    controller = odenet.PID(0.4, 0.3)


class TestPredictive(ControllerContract):
    controller = odenet.Predictive()


def test_predictive_by_the_book() -> None:
    """Hairer & Wanner II, (IV.8.24) and (IV.8.25): the smaller one of both step sizes."""
    control = odenet.Predictive(safety=1.0)
    for last_h, h, last_r, r, order in ((0.1, 0.15, 0.2, 0.5, 4), (0.2, 0.1, 0.01, 0.3, 6), (0.1, 0.1, 0.9, 0.1, 4)):
        first = control.decide(Attempt(last_h, last_r, order), control.init_state(last_h))
        assert first.h == pytest.approx(last_h * last_r ** (-1 / order), rel=1e-6)
        second = control.decide(Attempt(h, r, order), first.state)
        plain = r ** (-1 / order)
        predicted = plain * h / last_h * (last_r / r) ** (1 / order)
        assert second.h == pytest.approx(h * min(plain, predicted), rel=1e-6)


def test_settings_as_documented() -> None:
    assert StopRule.from_controller(odenet.ConstantStep(0.1, perturb=True)).perturb is True
    with pytest.raises(TypeError, match=r"^perturb must"):
        odenet.ConstantStep(0.1, perturb="no")  # pyright: ignore[reportArgumentType]
    for control in (odenet.PID(), odenet.Predictive()):
        found = (control.safety, control.factor_min, control.factor_max, control.min_step, control.max_step)
        assert found == (0.9, 0.2, 10.0, 0.0, math.inf)
    for name in ("safety", "factor_min", "factor_max", "min_step", "max_step", "first_step"):
        with pytest.raises(TypeError, match=f"^{name} "):
            odenet.Predictive(**{name: "small"})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ts", [[0.0, 0.4, 1.0], [1.0, 0.6, 0.0]], ids=["up", "down"])
@pytest.mark.parametrize("name", ["step_ts", "jump_ts"])
def test_times_made_of_ts(name: str, ts: list[float]) -> None:
    """The callable gets ts; times inside the interval end a step, in both directions of time."""
    seen: list[Any] = []

    def made(given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return torch.tensor([0.25, 0.75, 7.0])

    sol = odenet.solve(
        lambda t, y: -y, torch.ones(1, dtype=D), ts, controller=odenet.PID(**{name: made}), save_steps=True
    )
    assert all(torch.equal(x, torch.tensor(ts, dtype=D)) for x in seen) and seen
    assert {0.25, 0.75} <= set(sol.steps.t.tolist()) and 7.0 not in sol.steps.t
    for wrong, error in ((lambda ts: [math.inf], ValueError), (lambda ts: None, TypeError)):
        with pytest.raises(error, match=name):
            odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), ts, controller=odenet.PID(**{name: wrong}))


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("span", [5e-30, 5.0, -5.0, 5e30])
@pytest.mark.parametrize("large", [False, True])
def test_first_step_of_floats_and_tensors(span: float, dtype: torch.dtype, large: bool) -> None:
    """Equal, also where squares overflow; a span above 1e20, or below its inverse, is the unit of time."""
    size = 1.0 if not large else 1e15 if dtype == torch.float32 else 1e200
    y0 = (size * torch.tensor([1.0, -2.0], dtype=dtype),)

    def guess(span: float, host: bool) -> float:
        rate, t0 = -0.15 / abs(span), torch.zeros((), dtype=D)

        def f(t: Any, y: Any) -> Any:
            return (rate * y[0].double(),)

        given: Any = span if host else torch.tensor(span, dtype=D)
        return float(initial_step_size(f, t0, given, y0, f(t0, y0), 5, [0.0], [1e-6]))

    assert guess(span, True) == pytest.approx(guess(span, False), rel=1e-6)
    assert 0.0 < guess(span, True) < abs(span)
    if abs(span) != 5.0:
        assert guess(span, True) == pytest.approx(abs(span) * guess(1.0, True), rel=1e-6)
