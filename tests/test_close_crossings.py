"""Events whose values are near the rounding of the state: soon after the start, steep, or close to one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet import Event
from slow_cases import slow_unless

METHODS: dict[str, dict[str, Any]] = {
    "tsit5": {},
    "dopri5": {"method": "dopri5"},
    "dopri8": {"method": "dopri8"},
    "bosh3": {"method": "bosh3"},
    "rk4": {"method": "rk4", "step": 0.1},
    "implicit_midpoint": {"method": "implicit_midpoint", "step": 0.1},
    "reversible": {"gradient": "reversible", "step": 0.1},
}
STEEP: dict[str, Callable[[Tensor], Tensor]] = {
    "square root": lambda y: y.sign() * y.abs().sqrt(),
    "cube root": lambda y: y.sign() * y.abs() ** (1 / 3),
    "tanh": lambda y: torch.tanh(1e4 * y),
}
SLACK = {torch.float32: 1e-6, torch.float64: 5e-14}
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
ways = pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per sample"])


def rising(t: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(y)


def found(fn: Any, start: float, dtype: torch.dtype, per_sample: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """Times of all hits, of one sample or of two alike, and the value of fn at the last."""
    y0 = torch.full((2,) if per_sample else (), start, dtype=dtype)
    event = Event(lambda t, y: fn(y), terminal=False)
    sol = odenet.solve(rising, y0, [0.0, 2.0], event=event, per_sample=per_sample, **options)
    return (sol.hits.t[0], sol.hits.y[0]) if per_sample else (sol.hits.t, sol.hits.y)


@both
@ways
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-5])
def test_soon_after_the_start(distance: float, method: str, per_sample: bool, dtype: torch.dtype) -> None:
    times, _ = found(lambda y: y + 0.7 - distance, -0.7, dtype, per_sample, **METHODS[method])
    assert times.tolist() == pytest.approx([distance], rel=1e-9, abs=SLACK[dtype])


@both
@pytest.mark.parametrize("method", slow_unless(["tsit5", "dopri5", "dopri8", "bosh3"], "tsit5", "bosh3"))
@pytest.mark.parametrize("fn", STEEP)
def test_steep(fn: str, method: str, dtype: torch.dtype) -> None:
    for i in range(12):
        start = 0.3 + 0.07 * i
        times, _ = found(STEEP[fn], -start, dtype, False, **METHODS[method])
        # the weights of dopri8 are large, and so are its rounding errors
        assert times.tolist() == pytest.approx([start], abs=(4 if method == "dopri8" else 1) * SLACK[dtype])


@both
@ways
@pytest.mark.parametrize("method", ["tsit5", "dopri5", "dopri8"])
@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-5])
def test_close_to_one_another(distance: float, method: str, per_sample: bool, dtype: torch.dtype) -> None:
    times, _ = found(lambda y: (y - distance) * (y + distance), -0.7, dtype, per_sample, **METHODS[method])
    assert times.tolist() == pytest.approx([0.7 - distance, 0.7 + distance], abs=SLACK[dtype])


@both
@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-5])
def test_another_event_soon_after(distance: float, dtype: torch.dtype) -> None:
    events = [Event(lambda t, y: y[0] - 0.7, terminal=False), Event(lambda t, y: y[1] - 0.7 - distance)]
    sol = odenet.solve(rising, torch.zeros(2, dtype=dtype), [0.0, 2.0], event=events)
    assert sol.hits.which.tolist() == [0, 1]
    assert sol.hits.t.tolist() == pytest.approx([0.7, 0.7 + distance], abs=SLACK[dtype])


def test_the_logarithm_of_an_energy() -> None:
    """As small a value at the start as a float32 state gives."""
    matrix = torch.tensor([[-0.1, 1.0], [-1.0, -0.1]])
    y0, level = torch.tensor([-0.048063185065984726, 1.2959892749786377]), math.log(1.6818)

    def solved(dtype: torch.dtype) -> float:
        floor = torch.log((y0.to(dtype) ** 2).sum() + 1e-3) - level - 2.2e-5
        event = Event(lambda t, y: torch.log((y * y).sum() + 1e-3) - level - floor)
        sol = odenet.solve(lambda t, y: y @ matrix.to(dtype).T, y0.to(dtype), [0.0, 2.0], event=event, rtol=1e-6)
        assert sol.event is not None
        return float(sol.event.t)

    assert solved(torch.float32) == pytest.approx(solved(torch.float64), abs=3e-6)
