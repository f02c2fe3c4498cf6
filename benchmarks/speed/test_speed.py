"""Times of small solves, by pytest-benchmark: `make bench-quick` compares them with the run before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet

GRADIENTS = ("discrete", "backprop", "adjoint", "gauss", "reversible")
Benchmark = Callable[..., Any]  # pytest-benchmark's fixture


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take hundreds of times as long as what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def field() -> odenet.nn.MLPField:
    torch.manual_seed(0)
    return odenet.nn.MLPField(4, hidden=(32,), time=False)


@pytest.fixture(scope="module")
def y0() -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_solve(benchmark: Benchmark, field: nn.Module, y0: Tensor, compile: bool) -> None:
    """A small adaptive solve without gradients; what it compiles is compiled before."""
    with torch.no_grad():
        odenet.solve(field, y0, [0.0, 1.0], compile=compile)
        sol = benchmark(odenet.solve, field, y0, [0.0, 1.0], compile=compile)
    assert sol.stats.accepted > 0


@pytest.mark.parametrize("steps", [1, 100])
def test_constant_steps(benchmark: Benchmark, y0: Tensor, steps: int) -> None:
    """rk4 on f = -y: the difference of the two times is that of 396 evaluations."""
    with torch.no_grad():
        sol = benchmark(odenet.solve, lambda t, y: -y, y0, [0.0, 1.0], method="rk4", step=1 / steps)
    assert sol.stats.nfe == 4 * steps


def test_layer(benchmark: Benchmark, field: nn.Module, y0: Tensor) -> None:
    """A training step of a layer."""
    layer = odenet.nn.NeuralODE(field)

    def train() -> None:
        layer.zero_grad()
        layer(y0).square().mean().backward()

    benchmark(train)
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient(benchmark: Benchmark, field: nn.Module, y0: Tensor, gradient: Any) -> None:
    """A solve of twenty steps and its gradient to y0 and the weights."""
    inputs = (y0.requires_grad_(), *field.parameters())

    def train() -> tuple[Tensor, ...]:
        sol = odenet.solve(field, y0, [0.0, 1.0], method="tsit5", step=0.05, gradient=gradient)
        return torch.autograd.grad(sol.y1.square().mean(), inputs)

    assert all(torch.isfinite(x).all() for x in benchmark(train))
