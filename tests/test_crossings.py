"""Crossings that lie close together within a step, and event functions that jump: none is missed, none is made up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from odenet import Event
from odenet.events.chebyshev import nodes
from odenet.events.roots import RootQuery, first_roots
from slow_cases import slow_unless

D = torch.float64


def decay(t: Tensor, y: Tensor) -> Tensor:
    """So slow that steps are long."""
    return -0.1 * y


def waves(kind: str, k: float, phase: float, level: float, of: Any) -> Any:
    """An event function of t and a number y, with `of` the module of its functions: torch or numpy."""
    return {
        "of t": lambda t, y: of.sin(k * t + phase) - level,
        "of y": lambda t, y: of.sin(k * y + phase) - level,
        "late": lambda t, y: 1.3 - of.sin(k * t + phase) * (t / 8),
        "two": lambda t, y: of.sin(k * t + phase) - level + 0.5 * of.cos(3.1 * k * t),
    }[kind]


def by_a_fine_search(g: Any, end: float, direction: int) -> Any:
    t = np.linspace(0.0, end, 400_001)
    sign = np.sign(g(t, np.exp(-0.1 * t)))
    up, down = (sign[:-1] < 0) & (sign[1:] > 0), (sign[:-1] > 0) & (sign[1:] < 0)
    return t[1:][{1: up, -1: down, 0: up | down}[direction]]


@pytest.mark.parametrize("terminal", slow_unless([False, True], True))
@pytest.mark.parametrize("direction", [0, 1, -1])
@pytest.mark.parametrize("kind", ["of t", "of y", "late", "two"])
def test_waves_that_are_short_against_the_steps(kind: str, direction: int, terminal: bool) -> None:
    """Steps of the decay are as long as some twenty waves: every crossing counts, and the first is the first."""
    random, end = np.random.default_rng(5), 15.0
    for _ in range(3):
        numbers = random.uniform(1, 60), random.uniform(0, 6), random.uniform(-0.95, 0.95)
        g = waves(kind, *numbers, torch)
        event = Event(lambda t, y, g=g: g(t, y[0]), terminal=terminal, direction=direction)
        sol = odenet.solve(decay, torch.ones(1, dtype=D), [0.0, end], rtol=1e-4, atol=1e-6, event=event)
        expected = by_a_fine_search(waves(kind, *numbers, np), end, direction)[: 1 if terminal else None]
        assert len(sol.hits.t) == len(expected)
        np.testing.assert_allclose(sol.hits.t.numpy(), expected, atol=1e-3)


def test_each_sample_has_waves_of_its_own() -> None:
    k = torch.tensor([0.3, 7.0, 31.0], dtype=D)
    event = Event(lambda t, y: torch.sin(k * t), terminal=False, direction=1)
    sol = odenet.solve(decay, torch.ones(3, 1, dtype=D), [0.1, 20.0], per_sample=True, event=event)
    for k_of_one, t in zip(k.tolist(), sol.hits.t, strict=True):
        many = int(20.0 * k_of_one / (2 * math.pi))
        torch.testing.assert_close(t[t.isfinite()], torch.arange(1, many + 1, dtype=D) * 2 * math.pi / k_of_one)


def test_roots_of_short_waves() -> None:
    """The first root of each of some sines on [0, 1], up to forty waves, and of square waves, against their formula.

    Of a square wave each half has to have a sample: others look like a constant.
    """
    random = torch.Generator().manual_seed(1)
    k, phase = 6.3 + 245 * torch.rand(200, dtype=D, generator=random), 3 * torch.rand(200, dtype=D, generator=random)
    square = torch.arange(200) % 2 == 0
    k = torch.where(square, 6.3 + (k - 6.3) * (9 / 245), k)
    asked = 0

    def g(x: Tensor, live: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        sine = torch.sin(k * x + phase)
        return torch.where(square, torch.where(sine > 0, 1.0, -1.0), sine)

    samples = torch.stack([g(torch.full_like(k, x), square) for x in nodes()], -1)
    zero = torch.zeros_like(k)
    found = first_roots(g, samples, RootQuery(zero, samples[:, 0].sign(), zero, zero))
    torch.testing.assert_close(found.where, (math.pi - phase) / k, rtol=0, atol=1e-9)
    rising = first_roots(g, samples, RootQuery(zero + 1, samples[:, 0].sign(), zero, zero))
    torch.testing.assert_close(rising.where, (2 * math.pi - phase) / k, rtol=0, atol=1e-9)
    assert asked < 10_000


def sign_of(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("at_zero", [1.0, -1.0])
@pytest.mark.parametrize(
    ("dtype", "error", "direction"),
    [(torch.float64, 1e-8, 0), (torch.float64, 1e-8, -1), (torch.float32, 1e-3, -1)],
    ids=["float64", "float64 downwards", "float32 downwards"],
)
def test_a_ball_that_only_knows_its_side_of_the_floor(
    dtype: torch.dtype, error: float, at_zero: float, direction: int, per_sample: bool
) -> None:
    """An event function of two values bounces as the height itself does."""

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], torch.full_like(y[..., 1], -9.81)], -1)

    def bounce(t: Tensor, y: Tensor) -> Tensor:
        return y * y.new_tensor([1.0, -0.8])

    def side(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y[..., 0] == 0, at_zero, sign_of(y[..., 0]))

    y0, rtol = torch.tensor([[10.0, 0.0], [7.0, 1.0]], dtype=dtype), error / 10
    sols = [
        odenet.solve(
            fall, y0 if per_sample else y0[0], [0.0, 6.0], per_sample=per_sample, rtol=rtol, atol=rtol,
            event=Event(fn, terminal=False, direction=direction, reset=bounce),
        )
        for fn in (side, lambda t, y: y[..., 0])
    ]  # fmt: skip
    torch.testing.assert_close(sols[0].hits.t, sols[1].hits.t, rtol=0, atol=error, equal_nan=True)
    torch.testing.assert_close(sols[0].y1, sols[1].y1, rtol=0, atol=10 * error)


@pytest.mark.parametrize("direction", [0, 1, -1])
def test_a_square_wave_goes_on_to_be_seen(direction: int) -> None:
    """After a jump its value is as far from zero as ever, and still looked at."""
    asked = 0

    def square(t: Tensor, y: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return sign_of(torch.sin(11.0 * t)) + 0 * y[0]

    sol = odenet.solve(
        decay, torch.ones(1, dtype=D), [0.05, 10.0], event=Event(square, terminal=False, direction=direction)
    )
    turns = [i for i in range(1, 36) if direction == 0 or (direction > 0) == (i % 2 == 0)]
    torch.testing.assert_close(sol.hits.t, torch.tensor(turns, dtype=D) * math.pi / 11.0, rtol=1e-9, atol=1e-9)
    assert asked < 20_000  # a jump had been searched through at each later step, 4000 values each


def test_a_jump_has_no_gradient_of_its_time() -> None:
    """Also where the event function hides its y from autograd: its time had been taken for a constant."""
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    for fn in (lambda t, y: sign_of(y[0] - 0.5), lambda t, y: sign_of(y[0] - 0.5) + 0 * y[0]):
        sol = odenet.solve(decay, y0, [0.0, 20.0], event=Event(fn))
        assert float(sol.event.t.detach()) == pytest.approx(10 * math.log(2), rel=1e-4)
        with pytest.raises(RuntimeError, match=r"no derivative.*jumps.*constant_time=True"):
            sol.y1.sum().backward()
    sol = odenet.solve(decay, y0, [0.0, 20.0], event=Event(lambda t, y: t - 3.0))
    (grad,) = torch.autograd.grad(sol.y1.sum(), y0)
    assert float(grad) == pytest.approx(math.exp(-0.3), rel=1e-4)


def test_noise_about_zero_ends() -> None:
    """What is zero but for rounding is no end of searching."""
    asked = 0

    def energy(t: Tensor, y: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return (1 + 1e-16 * y[0]) - 1

    def swing(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0]])

    odenet.solve(swing, torch.tensor([1.0, 0.0], dtype=D), [0.0, 20.0], event=Event(energy, terminal=False))
    assert asked < 80_000
