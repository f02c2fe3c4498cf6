"""Steps whose times are computed for many at once are those that are computed one by one, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet.engine.ahead import Ahead

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
    step = Ahead.step
    monkeypatch.setattr(Ahead, "step", lambda self, *given: used.append(step(self, *given)) or used[-1])
    mine = solve()
    monkeypatch.setattr(Ahead, "possible", staticmethod(lambda p: False))
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
