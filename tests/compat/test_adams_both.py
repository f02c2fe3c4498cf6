"""Adams methods over few steps: at most 1.5 times torchdiffeq's evaluations, and nearer to the solution."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from compat.sides import Riccati, close, start

COUNTS = {1: 4, 2: 8, 3: 9, 4: 10, 7: 13, 10: 16, 20: 26, 100: 106}  # torchdiffeq's, explicit


def counted(ode: Any, method: str, steps: int, size: float, f: Any, y0: Tensor, **options: Any) -> tuple[int, Tensor]:
    calls = 0

    def func(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return f(t, y)

    t = torch.linspace(0.0, steps * size, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        ys = ode.odeint(func, y0, t, method=method, options=options)
    return calls, ys


PROBLEMS = {
    "decay": (lambda t, y: -y, lambda y0, t: y0 * torch.exp(-t)[:, None]),
    "riccati": (Riccati(), lambda y0, t: Riccati().exact(y0, t).detach()),
}


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
def test_few_steps(theirs: Any, ours: Any, method: str, steps: int, problem: str) -> None:
    f, exact = PROBLEMS[problem]
    size = 0.05
    (theirs_calls, want), (calls, got) = (counted(ode, method, steps, size, f, start()) for ode in (theirs, ours))
    assert calls <= 1.5 * theirs_calls
    if method == "explicit_adams":
        assert theirs_calls == COUNTS[steps]
    t = torch.linspace(0.0, steps * size, steps + 1, dtype=torch.float64)
    worst, other = (float((ys - exact(start(), t)).abs().max()) for ys in (got, want))
    assert worst <= 1.000001 * other + 1e-15 or other != other


def test_one_step_is_that_of_rk4(ours: Any) -> None:
    _, got = counted(ours, "explicit_adams", 2, 0.1, Riccati(), start())
    close(got, counted(ours, "rk4", 2, 0.1, Riccati(), start())[1], 1e-14)


def drawn(seed: int) -> tuple[Any, Tensor]:
    """A random field of one of four kinds, and a random state."""
    g, n = torch.Generator().manual_seed(seed), 4
    a = torch.randn(n, n, generator=g, dtype=torch.float64)
    w = torch.randn(n, 2 * n, generator=g, dtype=torch.float64)
    v = 0.3 * torch.randn(2 * n, n, generator=g, dtype=torch.float64)
    fields = (
        lambda t, y: torch.tanh(y @ w) @ v,
        lambda t, y: 0.7 * (a - a.T) @ y - 0.3 * y,
        lambda t, y: torch.sin(y + t) - 0.5 * y,
        lambda t, y: torch.cos(2 * t) * torch.tanh(w @ (v @ y)),
    )
    return fields[seed % 4], torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*did not converge")
@pytest.mark.parametrize("span", [1.0, 4.0])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_few_steps_of_random_fields(theirs: Any, ours: Any, method: str, span: float) -> None:
    """At most 1.5 times the evaluations, and no larger median error, also with steps that are too long."""
    fields = [drawn(seed) for seed in range(24)]
    exact = [
        solve_ivp(
            lambda t, y, f=f: f(torch.tensor(t), torch.tensor(y)).numpy(), (0.0, span), y0.numpy(), "DOP853",
            rtol=1e-12, atol=1e-13,
        ).y[:, -1]
        for f, y0 in fields
    ]  # fmt: skip
    for steps in (1, 2, 4, 8, 12, 20):
        ratios = []
        for (f, y0), right in zip(fields, exact, strict=True):
            (most, want), (calls, got) = (counted(o, method, steps, span / steps, f, y0) for o in (theirs, ours))
            assert calls <= 1.5 * most
            worst, other = (float((ys[-1] - torch.as_tensor(right)).abs().max()) for ys in (got, want))
            ratios.append(worst / max(other, 1e-14))
        assert statistics.median(ratios) <= 1.0 + 1e-9, (steps, ratios)
