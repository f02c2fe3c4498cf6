"""Steps whose times are computed for many at once are those that are computed one by one, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet.engine.planned_steps import StepPlanner

D = torch.float64
STARTS = {
    "double": torch.tensor([0.3, 1.2], dtype=D),
    "single": torch.tensor([0.3, 1.2]),
    "several": {"a": torch.tensor([0.3], dtype=D), "b": torch.tensor([[0.5, 1.0]]), "c": torch.tensor([1j])},
}
TIMES = {
    "up": [0.0, 1.0],
    "down": [1.3, 0.0],
    "cut": [0.0, 0.21, 0.33, 0.33, 1.0],
    "many": torch.linspace(0.0, 2.0, 60, dtype=D),
}


def f(t: Tensor, y: Any) -> Any:
    if isinstance(y, Tensor):
        return -y * torch.cos(t)
    return {k: -x * torch.cos(t) for k, x in y.items()}


def both(monkeypatch: pytest.MonkeyPatch, solve: Any) -> tuple[Any, Any, int]:
    """With foreseen steps and without, and how many there were."""
    used = []
    step = StepPlanner.step
    monkeypatch.setattr(StepPlanner, "step", lambda self, *given: used.append(step(self, *given)) or used[-1])
    mine = solve()
    monkeypatch.setattr(StepPlanner, "applies", staticmethod(lambda p: False))
    return mine, solve(), sum(x is not None for x in used)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "heun3", "rk4", "rk4_38", "tsit5", "dopri8"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("times", TIMES)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, method: str, start: str, times: str) -> None:
    def solve() -> list[Tensor]:
        out: list[Tensor] = []
        given = STARTS[start]
        leaves = [given] if isinstance(given, Tensor) else list(given.values())
        leaves = [x.clone().requires_grad_() for x in leaves]
        y0 = leaves[0] if isinstance(given, Tensor) else dict(zip(given, leaves, strict=True))
        for more in ({"step": 0.05}, {"controller": odenet.Grid(finite=False)}):
            sol = odenet.solve(f, y0, TIMES[times], method=method, **more)
            ys = [sol.ys] if isinstance(sol.ys, Tensor) else list(sol.ys.values())
            out.extend(x.detach() for x in ys)
            out.extend(torch.autograd.grad(sum(x.abs().sum().double() for x in ys), leaves))
        return out

    mine, plain, used = both(monkeypatch, solve)
    assert used > 0
    for a, b in zip(mine, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "reversible", "forward"])
def test_after_an_event_that_sets_the_state_anew(monkeypatch: pytest.MonkeyPatch, gradient: str) -> None:
    """The steps that were foreseen are not those that come."""

    def solve() -> tuple[Tensor, ...]:
        y0 = torch.tensor([1.0, 0.0], dtype=D, requires_grad=True)
        event = odenet.Event(lambda t, y: y[0], reset=lambda t, y: torch.stack([y[0], -0.8 * y[1]]), direction=-1)
        sol = odenet.solve(
            lambda t, y: torch.stack([y[1], -9.81 + 0 * y[0]]), y0, [0.0, 0.7, 1.1], method="rk4", step=0.03,
            gradient=gradient, event=event,
        )  # fmt: skip
        return sol.ys.detach(), *torch.autograd.grad(sol.ys.sum(), y0)

    mine, plain, used = both(monkeypatch, solve)
    assert used > 5 or gradient == "reversible"  # which has a step of its own
    for a, b in zip(mine, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("method", ["euler", "rk4", "tsit5"])
@pytest.mark.parametrize("times", TIMES)
def test_steps_between_outputs_taken_as_one(
    monkeypatch: pytest.MonkeyPatch, method: str, times: str, gradient: str
) -> None:
    """Nobody looks at them: values, counts and gradients are those of single steps."""

    def solve() -> tuple[Any, ...]:
        y0 = torch.tensor([0.3, 1.2], dtype=D, requires_grad=gradient == "backprop")
        with torch.set_grad_enabled(gradient == "backprop"):
            sol = odenet.solve(f, y0, TIMES[times], method=method, step=0.013, gradient=gradient)
            grads = torch.autograd.grad(sol.ys.square().sum(), y0) if gradient == "backprop" else ()
        return sol.ys.detach(), torch.tensor([sol.stats.nfe, sol.stats.accepted]), *grads

    taken = []
    to_stop = StepPlanner.to_stop
    monkeypatch.setattr(StepPlanner, "to_stop", lambda self, most: taken.append(to_stop(self, most)) or taken[-1])
    mine, plain, _ = both(monkeypatch, solve)
    assert sum(map(len, taken)) > 30
    for a, b in zip(mine, plain, strict=True):
        assert torch.equal(a, b)


def test_a_step_between_outputs_that_fails_is_found() -> None:
    """At its own time, also where f does not bear what comes after it, or max_steps ends the solve before."""

    def bursts(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, 1.0) * y

    def strict(t: Tensor, y: Tensor) -> Tensor:
        if not bool(torch.isfinite(y).all()):
            raise ArithmeticError("y is not finite")
        return bursts(t, y)

    y0, given = torch.ones(2, dtype=D), {"method": "euler", "step": 0.01}
    for field in (bursts, strict):
        with torch.no_grad(), pytest.raises(odenet.NonFiniteError) as failure:
            odenet.solve(field, y0, [0.0, 1.0], **given)
        assert failure.value.t == pytest.approx(0.51, abs=0.011)
    with torch.no_grad(), pytest.raises(ArithmeticError, match="my own"):
        odenet.solve(own_error, y0, [0.0, 1.0], **given)
    with torch.no_grad(), pytest.raises(odenet.MaxStepsError) as stopped:
        odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], max_steps=40, **given)
    assert stopped.value.t == pytest.approx(0.4)


def own_error(t: Tensor, y: Tensor) -> Tensor:
    if float(t) > 0.5:
        raise ArithmeticError("my own")
    return -y


@pytest.mark.parametrize("options", [{"dense": True}, {"save_steps": True}, {"progress": True}], ids=str)
def test_who_looks_at_each_step_sees_it(options: dict[str, Any]) -> None:
    seen: list[float] = []
    if "progress" in options:
        options = {"progress": lambda fraction, stats: seen.append(fraction)}
    with torch.no_grad():
        sol = odenet.solve(lambda t, y: -y, torch.ones(2, dtype=D), [0.0, 1.0], method="euler", step=0.01, **options)
    if "save_steps" in options:
        assert len(sol.steps.t) == 100
    elif "dense" in options:
        assert float(sol(torch.tensor([0.505], dtype=D))[0, 0]) == pytest.approx(0.99**50 * (1 - 0.005), rel=1e-4)
    else:
        assert len(seen) == 100
