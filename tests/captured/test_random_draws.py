"""f that draws random numbers: exact gradients of what was computed, or a refusal; from any generator that f holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from captured.ways import D
from odenet import Discrete, Event
from odenet.compat.torchdiffeq import odeint, odeint_adjoint
from odenet.errors import CaptureError

EXACT = ["discrete", Discrete(checkpoints=1), Discrete(checkpoints=3), "forward"]
REFUSE = ["adjoint", "gauss", "reversible"]
SOLVES: dict[str, dict[str, Any]] = {
    "euler": {"method": "euler", "step": 0.1},
    "rk4": {"method": "rk4", "step": 0.1},
    "midpoint": {"method": "midpoint", "step": 0.05},
    "adaptive": {"method": "tsit5", "rtol": 1e-1, "atol": 1e-1},
}


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 4)).to(D)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.kind == "dropout":
            return self.net(y)
        own = self.generator if self.kind == "a generator of its own" else None
        noise = 1 + 0.02 * torch.randn(y.shape, dtype=y.dtype, generator=own)
        return self.net[3](torch.tanh(self.net[0](y))) * noise


KINDS = ["dropout", "noise", "a generator of its own"]


def gradient_of(kind: str, gradient: Any, times: Any = (0.0, 0.35, 1.0), **options: Any) -> list[Tensor]:
    f = Noisy(kind)
    y0 = torch.ones(3, 4, dtype=D, requires_grad=True)
    torch.manual_seed(7)
    sol = odenet.solve(f, y0, times, gradient=gradient, **options)
    return [sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), [y0, *f.parameters()])]


def same(mine: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", EXACT[1:], ids=str)
def test_dense_solution(gradient: Any, per_sample: bool) -> None:
    """That of a step may be asked for after the step was kept, and evaluates f once more."""
    found = []
    for how in (gradient, "discrete"):
        f, y0 = Noisy("dropout"), torch.ones(3, 4, dtype=D, requires_grad=True)
        torch.manual_seed(7)
        ts = torch.tensor([0.0, 1.0], dtype=D)
        ts = ts.expand(3, 2) if per_sample else ts
        options: dict[str, Any] = {"per_sample": per_sample, "dense": True, "gradient": how} | SOLVES["rk4"]
        value = odenet.solve(f, y0, ts, **options)(torch.tensor([0.33], dtype=D))
        found.append([value.detach(), *torch.autograd.grad(value.square().sum(), [y0, *f.parameters()])])
    same(*found)


@pytest.mark.parametrize("gradient", EXACT[1:], ids=str)
def test_beside_a_sample_that_fails(gradient: Any) -> None:
    """Those that do not fail have the gradients of what was computed."""
    found = []
    for how in (gradient, "discrete"):
        noisy, y0 = Noisy("dropout"), torch.ones(3, 4, dtype=D, requires_grad=True)
        end = torch.tensor([[5.0], [0.4], [6.0]], dtype=D)
        torch.manual_seed(7)
        sol = odenet.solve(
            lambda t, y, f=noisy, end=end: torch.sqrt(end - t[:, None]) * f(t, y), y0, torch.tensor([[0.0, 1.0]] * 3),
            per_sample=True, on_failure="return", gradient=how, **SOLVES["rk4"],
        )  # fmt: skip
        assert sol.status[1] == odenet.Status.NON_FINITE and not bool(sol.status[::2].any())
        found.append([sol.y1.detach(), *torch.autograd.grad(sol.y1.square().sum(), [y0, *noisy.parameters()])])
    same(*found)
    assert not bool(found[0][1][1].any()) and all(bool(x.isfinite().all()) for x in found[0][1:])


@pytest.mark.parametrize("gradient", EXACT, ids=str)
@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: str, solve: str, gradient: Any) -> None:
    same(gradient_of(kind, gradient, **SOLVES[solve]), gradient_of(kind, "backprop", **SOLVES[solve]))


@pytest.mark.parametrize("gradient", ["discrete", Discrete(checkpoints=2)], ids=str)
def test_exact_per_sample(gradient: Any) -> None:
    options: dict[str, Any] = {"per_sample": True, "times": [0.0, 1.0], **SOLVES["rk4"]}
    same(gradient_of("noise", gradient, **options), gradient_of("noise", "backprop", **options))


@pytest.mark.parametrize("kind", KINDS)
def test_backpropagation_is_right_by_finite_differences(kind: str) -> None:
    """With the same draws, the loss is a function of y0."""

    def loss(y0: Tensor) -> Tensor:
        f = Noisy(kind)
        torch.manual_seed(7)
        return odenet.solve(f, y0, [0.0, 1.0], **SOLVES["rk4"]).y1.square().sum()

    y0 = torch.ones(1, 4, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(loss, y0)


@pytest.mark.parametrize("gradient", EXACT[:3], ids=str)
def test_a_backward_pass_leaves_the_generators_as_they_are(gradient: Any) -> None:
    f = Noisy("a generator of its own")
    sol = odenet.solve(f, torch.ones(3, 4, dtype=D), [0.0, 1.0], gradient=gradient, **SOLVES["rk4"])
    before, own = torch.get_rng_state(), f.generator.get_state()
    sol.y1.sum().backward()
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(own, f.generator.get_state())


def test_a_second_backward_pass_draws_the_same_numbers() -> None:
    f = Noisy("noise")
    sol = odenet.solve(f, torch.ones(3, 4, dtype=D), [0.0, 1.0], **SOLVES["rk4"])
    first, second = (
        torch.autograd.grad(sol.y1.square().sum(), list(f.net[0].parameters()), retain_graph=True) for _ in range(2)
    )
    same(list(second), list(first))


def test_second_derivatives() -> None:
    def twice(gradient: Any) -> Tensor:
        f = Noisy("noise")
        torch.manual_seed(7)
        y0 = torch.ones(1, 4, dtype=D, requires_grad=True)
        y1 = odenet.solve(f, y0, [0.0, 1.0], gradient=gradient, **SOLVES["rk4"]).y1
        (first,) = torch.autograd.grad(y1.square().sum(), y0, create_graph=True)
        return torch.autograd.grad(first.square().sum(), y0)[0]

    torch.testing.assert_close(twice("discrete"), twice("backprop"), rtol=1e-9, atol=1e-12)


def test_steps_that_end_at_an_event() -> None:
    def loss(y0: Tensor) -> Tensor:
        f = Noisy("noise")
        torch.manual_seed(7)
        event = Event(lambda t, y: t - 0.52, constant_time=True)
        return odenet.solve(f, y0, [0.0, 1.0], event=event, **SOLVES["rk4"]).y1.square().sum()

    assert torch.autograd.gradcheck(loss, torch.ones(1, 4, dtype=D, requires_grad=True))


def test_times_that_ask_for_a_gradient() -> None:
    def loss(y0: Tensor, end: Tensor) -> Tensor:
        f = Noisy("noise")
        torch.manual_seed(7)
        return odenet.solve(f, y0, torch.stack([0 * end, end / 3, end]), **SOLVES["rk4"]).ys.square().sum()

    y0, end = torch.ones(1, 4, dtype=D, requires_grad=True), torch.tensor(0.97, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (y0, end))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", REFUSE)
def test_refused_by_name(gradient: str, kind: str) -> None:
    with pytest.raises(CaptureError, match="random") as told:
        gradient_of(kind, gradient, **SOLVES["rk4"])
    assert gradient in str(told.value) or "gradient=" in str(told.value)


@pytest.mark.parametrize("gradient", REFUSE)
def test_not_refused_without_a_gradient(gradient: str) -> None:
    with torch.no_grad():
        sol = odenet.solve(Noisy("noise"), torch.ones(3, 4, dtype=D), [0.0, 1.0], gradient=gradient, **SOLVES["rk4"])
    assert bool(torch.isfinite(sol.y1).all())


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_the_drop_in(solve: Any) -> None:
    """Both differentiate what was computed: `odeint_adjoint` turns to backpropagation."""

    def loss(y0: Tensor) -> Tensor:
        f = Noisy("dropout")
        torch.manual_seed(7)
        ts = torch.tensor([0.0, 1.0], dtype=D)
        return solve(f, y0, ts, method="rk4", options={"step_size": 0.1})[-1].square().sum()

    assert torch.autograd.gradcheck(loss, torch.ones(1, 4, dtype=D, requires_grad=True))
