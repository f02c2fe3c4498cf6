"""Samples that have ended leave the batch: how many rows f sees, and that nothing else changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import APPROXIMATE, SETTINGS
from slow_cases import slow_unless

D = torch.float64


class Counting:
    """A field that adds up the rows it is evaluated on."""

    def __init__(self, f: Any) -> None:
        self.f, self.rows = f, 0

    def __call__(self, t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        assert t.shape == y.shape[:1]
        self.rows += len(y)
        return self.f(t, y, *args)


def oscillator(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.stack([y[:, 1] * w, -y[:, 0] * w], -1)


def relaxation(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    return -k[:, None] * (y - torch.cos(t)[:, None])


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    return torch.stack([y[:, 1], mu * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], -1)


def case(name: str, count: int) -> tuple[Any, Tensor, Tensor]:
    spread = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=D)
    y0 = torch.tensor([2.0, 1.0], dtype=D).repeat(count, 1)
    if name == "frequencies":
        return oscillator, y0, 0.1 * 500.0**spread
    if name == "easy":
        return oscillator, y0, 0.001 * 300.0**spread
    if name == "van der pol":
        return van_der_pol, y0, 0.1 * 100.0**spread
    k = torch.ones(count, dtype=D)
    k[count // 2] = 1000.0
    return relaxation, y0, k


CASES = ("frequencies", "easy", "van der pol", "one stiff")


@pytest.mark.parametrize("count", [2, 3, 20, 300])
@pytest.mark.parametrize("name", CASES)
def test_forward_rows(name: str, count: int) -> None:
    """`stats.nfe` is what each sample needs alone (tests/method_suite.py)."""
    f, y0, k = case(name, count)
    counting = Counting(f)
    sol = odenet.solve(counting, y0, [0.0, 2.0], args=(k,), per_sample=True)
    assert counting.rows <= 1.3 * int(sol.stats.nfe.sum())


@pytest.mark.parametrize("how", [odenet.Discrete(), odenet.Discrete(checkpoints=1000)], ids=["default", "checkpoints"])
@pytest.mark.parametrize("name", CASES)
def test_rows_as_alone(name: str, how: odenet.Discrete) -> None:
    """Forwards and backwards, with the gradients of each sample alone."""
    f, y0, k = case(name, 12)

    def run(rows: slice) -> tuple[int, Tensor, Tensor, Tensor]:
        counting, own, y = Counting(f), k[rows].clone().requires_grad_(), y0[rows].clone().requires_grad_()
        sol = odenet.solve(counting, y, [0.0, 2.0], args=(own,), per_sample=True, gradient=how)
        return counting.rows, sol.y1.detach(), *torch.autograd.grad(sol.y1.square().sum(), (y, own))

    def all_rows(rows: slice) -> int:
        counting, own = Counting(f), k[rows].clone().requires_grad_()
        odenet.solve(counting, y0[rows], [0.0, 2.0], args=(own,), per_sample=True, gradient=how).y1.sum().backward()
        return counting.rows

    together, alone = run(slice(None)), [run(slice(i, i + 1)) for i in range(12)]
    assert torch.equal(together[1], torch.cat([x[1] for x in alone]))
    for i in (2, 3):
        torch.testing.assert_close(together[i], torch.cat([x[i] for x in alone]), rtol=1e-9, atol=1e-9)
    needed = sum(all_rows(slice(i, i + 1)) for i in range(12))
    assert all_rows(slice(None)) <= 1.3 * needed


def results(gradient: Any, args: tuple[Tensor, ...], f: Any, **options: Any) -> list[Tensor]:
    y0 = torch.tensor([2.0, 1.0], dtype=D).repeat(8, 1).requires_grad_()
    ts = torch.linspace(0.0, 1.0, 5, dtype=D).repeat(8, 1).requires_grad_()
    sol = odenet.solve(f, y0, ts, args=args, per_sample=True, gradient=gradient, rtol=1e-8, atol=1e-8, **options)
    value = sol.ys.square().sum() + sol.y1.sum()
    return [sol.ys, *torch.autograd.grad(value, (y0, ts, *(x for x in args if x.requires_grad)))]


@pytest.mark.parametrize("gradient", slow_unless(SETTINGS, "discrete", "adjoint", SETTINGS[-1]), ids=str)
def test_every_gradient(gradient: Any) -> None:
    """As with a field that cannot do without the whole batch; args with a row a sample, and a shared one of 8 rows."""
    k = (0.5 * 40.0 ** torch.linspace(0, 1, 8, dtype=D)).requires_grad_()
    shared = torch.linspace(0.5, 1.5, 8, dtype=D).requires_grad_()

    def f(t: Tensor, y: Tensor, k: Tensor, shared: Tensor) -> Tensor:
        return oscillator(t, y, k) * shared.mean()

    def whole(t: Tensor, y: Tensor, k: Tensor, shared: Tensor) -> Tensor:
        return f(t, y, k, shared) + torch.zeros(8, 1, dtype=D)

    for a, b in zip(results(gradient, (k, shared), f), results(gradient, (k, shared), whole), strict=True):
        tolerance = 1e-9 if gradient not in APPROXIMATE else 1e-5
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_closed_over_rows() -> None:
    """A field that closes over a row a sample keeps the whole batch."""
    k = 0.5 * 40.0 ** torch.linspace(0, 1, 8, dtype=D)
    y0 = torch.ones(8, 2, dtype=D)
    closed = odenet.solve(lambda t, y: oscillator(t, y, k), y0, [0.0, 1.0], per_sample=True)
    given = odenet.solve(oscillator, y0, [0.0, 1.0], args=(k,), per_sample=True)
    assert torch.equal(closed.y1, given.y1) and torch.equal(closed.stats.nfe, given.stats.nfe)


def test_failures_and_dense() -> None:
    """Statuses and dense output are those of all samples, in their order."""
    k = torch.tensor([1.0, 1e6, 2.0, 30.0], dtype=D)
    y0 = torch.ones(4, 2, dtype=D)
    options: dict[str, Any] = {"args": (k,), "per_sample": True, "dense": True, "on_failure": "return"}
    sol = odenet.solve(oscillator, y0, [0.0, 1.0], max_steps=300, **options)
    assert sol.status.tolist() == [0, 1, 0, 0]
    alone = odenet.solve(oscillator, y0[2:3], [0.0, 1.0], **(options | {"args": (k[2:3],)}))
    t = torch.tensor([0.3, 0.0, 0.3, 0.3], dtype=D)[:, None]
    assert torch.equal(sol(t)[2:3, 0], alone(0.3))


@pytest.mark.slow
def test_a_million_samples() -> None:
    count = 10**6
    k = (0.1 * 50.0 ** torch.linspace(0, 1, count)).requires_grad_()
    y0 = torch.ones(count, 2)
    counting = Counting(oscillator)
    sol = odenet.solve(counting, y0, [0.0, 1.0], args=(k,), per_sample=True, rtol=1e-3, atol=1e-4)
    assert counting.rows <= 1.3 * int(sol.stats.nfe.sum())
    sol.y1[:, 0].sum().backward()
    w = k.detach().double()
    assert k.grad is not None
    torch.testing.assert_close(k.grad.double(), w.cos() - w.sin(), rtol=0.0, atol=2e-2)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_dense_output_of_a_sample_of_no_length(gradient: str) -> None:
    """It leaves the batch before the first step, and its solution is its first state all the same."""
    y0 = torch.tensor([[2.0], [3.0], [5.0]], dtype=D, requires_grad=True)
    ts = torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]], dtype=D)
    sol = odenet.solve(lambda t, y: -y, y0, ts, per_sample=True, dense=True, rtol=1e-9, atol=1e-9, gradient=gradient)
    middle = sol(torch.tensor([[1.0], [1.0], [1.0]], dtype=D))
    expected = torch.tensor([[2.0], [3.0 * math.exp(-1)], [5.0]], dtype=D)
    torch.testing.assert_close(middle.detach()[:, 0], expected, rtol=1e-7, atol=1e-7)
    (g,) = torch.autograd.grad(middle.sum(), y0)
    torch.testing.assert_close(g, torch.tensor([[1.0], [math.exp(-1)], [1.0]], dtype=D), rtol=1e-6, atol=1e-6)
