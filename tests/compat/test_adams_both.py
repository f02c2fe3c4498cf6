"""Adams methods of few steps: at most half as many evaluations again as torchdiffeq, and nearer to the solution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
