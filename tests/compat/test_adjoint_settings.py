"""The settings of the backward solve, observed by evaluations of func and arguments of norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compat.sides import Riccati, close, double, rotation_start, start

TOL = 1e-9
TIMES = (0.0, 0.3, 0.35, 0.8, 1.0)


def loss(ys: Any) -> Tensor:
    """A loss that weights every value differently."""
    parts = ys if isinstance(ys, tuple) else (ys,)
    return sum(((1 + torch.arange(x.numel()).reshape(x.shape)).sqrt() * x.sin()).sum() for x in parts)  # type: ignore[return-value]


def inputs(f: nn.Module, reverse: bool) -> tuple[Any, Tensor]:
    t = double(*TIMES).flip(0) if reverse else double(*TIMES)
    y0 = start() if isinstance(f, Riccati) else rotation_start()
    asking = y0.requires_grad_() if isinstance(y0, Tensor) else tuple(x.requires_grad_() for x in y0)
    return asking, t.requires_grad_()


def gradients(value: Tensor, f: nn.Module, y0: Any, t: Tensor, with_t: bool = True) -> tuple[Tensor, ...]:
    state = (y0,) if isinstance(y0, Tensor) else y0
    return torch.autograd.grad(value, (*state, *f.parameters(), *((t,) if with_t else ())))


@pytest.mark.parametrize("reverse", [False, True])
def test_coarse_gradients_are_those_of_the_computed_values(ours: Any, reverse: bool) -> None:
    """Finite differences of the numerical solution, which is far from the exact one."""
    f = Riccati()
    t = double(1.0, 0.0) if reverse else double(0.0, 1.0)

    def end(y0: Tensor, rate: Tensor) -> Tensor:
        return ours.odeint(
            lambda t, y: -rate * y * y * torch.cos(t), y0, t, method="heun2", options={"step_size": 0.34}
        )[-1]

    y0, rate = start().requires_grad_(), f.rate.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (y0, rate))


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_gradients_of_a_length_one_solve(ode: Any, name: str, method: str) -> None:
    f, y0 = Riccati(), start().requires_grad_()
    ys = getattr(ode, name)(f, y0, double(0.0), method=method)
    assert ys.shape == (1, 3)
    (got,) = torch.autograd.grad(ys.sum(), y0)
    assert torch.equal(got, torch.ones_like(y0))


@pytest.mark.parametrize("as_module", [False, True])
def test_func_without_module(ode: Any, as_module: bool) -> None:
    """`adjoint_params` lists the tensors of a plain function; a generator works."""
    f = Riccati()
    y0, t = inputs(f, reverse=False)
    func = f if as_module else lambda t, y: f(t, y)
    ys = ode.odeint_adjoint(func, y0, t, rtol=TOL, atol=TOL, adjoint_params=(p for p in f.parameters()))
    got = gradients(loss(ys), f, y0, t)
    for a, b in zip(got, gradients(loss(f.exact(y0, t)), f, y0, t), strict=True):
        close(a, b, 2e-5)


class CountingRiccati(Riccati):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(t, y)


def backwards(ode: Any, **options: Any) -> tuple[int, tuple[Tensor, ...]]:
    """The number of evaluations of func in the backward pass, and the gradients."""
    f = CountingRiccati()
    y0, t = inputs(f, reverse=False)
    t = t.detach()
    ys = ode.odeint_adjoint(f, y0, t, **({"rtol": TOL, "atol": TOL} | options))
    f.calls = 0
    found = gradients(loss(ys), f, y0, t, with_t=False)
    return f.calls, found


def exact_gradients() -> tuple[Tensor, ...]:
    f = Riccati()
    y0, t = inputs(f, reverse=False)
    return gradients(loss(f.exact(y0, t.detach())), f, y0, t, with_t=False)


@pytest.mark.parametrize("which", ["adjoint_rtol", "adjoint_atol"])
def test_adjoint_tolerances(ode: Any, which: str) -> None:
    """The defaults are those of the forward solve; a loose tolerance saves evaluations and costs accuracy."""
    other = "adjoint_atol" if which == "adjoint_rtol" else "adjoint_rtol"
    strict_calls, strict = backwards(ode, **{which: TOL, other: 1e-12})
    loose_calls, loose = backwards(ode, **{which: 1e-4, other: 1e-12})
    assert loose_calls < strict_calls
    same_calls, same = backwards(ode, adjoint_rtol=TOL, adjoint_atol=TOL)
    default_calls, default = backwards(ode)
    assert same_calls == default_calls and all(torch.equal(a, b) for a, b in zip(same, default, strict=True))
    for a, b, witness in zip(strict, loose, exact_gradients(), strict=True):
        close(a, witness, 1e-6)
        close(b, witness, 1e-2)


def test_adjoint_method(theirs: Any, ours: Any) -> None:
    """Coarse steps reveal the method: its errors are large, and equal in both packages."""
    options = {"adjoint_method": "midpoint", "adjoint_options": {"step_size": 0.1}}
    (_, want), (_, got) = backwards(theirs, **options), backwards(ours, **options)
    for a, b, witness in zip(got, want, exact_gradients(), strict=True):
        close(a, b, 1e-2)
        close(a, witness, 5e-2)
    assert any(float((a - w).abs().max()) > 1e-6 for a, w in zip(got, exact_gradients(), strict=True))
    fine = {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.01}}
    for ode in (theirs, ours):
        for a, witness in zip(backwards(ode, **fine)[1], exact_gradients(), strict=True):
            close(a, witness, 1e-6)


@pytest.mark.parametrize(("method", "tol"), [("heun3", 1e-3), ("rk4", 3e-6)])
def test_constant_steps_keep_their_order(ode: Any, method: str, tol: float) -> None:
    """Also for parameters, with any interpolation: every output ends a step here."""
    f, y0, t = Riccati(), start().requires_grad_(), torch.linspace(0, 1, 11, dtype=torch.float64)
    got = gradients(loss(ode.odeint_adjoint(f, y0, t, method=method)), f, y0, t, with_t=False)
    for a, witness in zip(got, gradients(loss(f.exact(y0, t)), f, y0, t, with_t=False), strict=True):
        close(a, witness, tol)


def test_adjoint_options_follow_options(ode: Any) -> None:
    """The forward options hold backwards as well, without their norm."""

    def norm(error: Tensor) -> Tensor:
        assert error.shape == (3,)
        return error.abs().max()

    calls, got = backwards(ode, options={"max_step": 0.01, "norm": norm}, method="dopri5")
    assert calls >= 6 * 100
    for a, witness in zip(got, exact_gradients(), strict=True):
        close(a, witness, 1e-6)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_seminorm(ode: Any, method: str) -> None:
    tol = TOL if method == "dopri5" else 1e-7
    full, _ = backwards(ode, method=method, rtol=tol, atol=tol)
    semi, got = backwards(ode, method=method, rtol=tol, atol=tol, adjoint_options={"norm": "seminorm"})
    assert semi <= full
    for a, witness in zip(got, exact_gradients(), strict=True):
        close(a, witness, 1e-5 if method == "dopri5" else 2e-3)  # theirs: bosh3's interpolant in the forward values


def test_custom_adjoint_norm_of_a_tensor(ode: Any) -> None:
    """It gets (t, y, adj_y, *params) as one tuple; this library passes zeros for t and params."""
    seen = []

    def norm(state: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(state, tuple)
        seen.append([tuple(x.shape) for x in state])
        return torch.stack([x.abs().max() for x in state]).max()

    given = {"norm": norm}
    _, got = backwards(ode, adjoint_options=given)
    assert seen and all(shapes == [(), (3,), (3,), (3,)] for shapes in seen)
    assert given == {"norm": norm}
    for a, witness in zip(got, exact_gradients(), strict=True):
        close(a, witness, 1e-5)


def test_frozen_parameters_are_left_out_of_the_norm(ode: Any) -> None:
    """With a warning, as the caller's norm may count on them."""
    f = Riccati()
    f.register_parameter("idle", nn.Parameter(torch.zeros(7), requires_grad=False))
    lengths = set()

    def norm(state: tuple[Tensor, ...]) -> Tensor:
        lengths.add(len(state))
        return torch.stack([x.abs().max() for x in state]).max()

    y0 = start().requires_grad_()
    with pytest.warns(UserWarning, match="norm"):
        ys = ode.odeint_adjoint(f, y0, double(0.0, 1.0), adjoint_options={"norm": norm})
    ys.sum().backward()
    assert lengths == {4} and f.rate.grad is not None and f.idle.grad is None


def test_adjoint_frees_and_repeats(ode: Any) -> None:
    """Two backward passes with `retain_graph` give the same; without gradients there is no graph."""
    f = Riccati()
    y0, t = inputs(f, reverse=False)
    ys = ode.odeint_adjoint(f, y0, t)
    first = torch.autograd.grad(loss(ys), f.rate, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss(ys), f.rate)[0])
    with torch.no_grad():
        assert not ode.odeint_adjoint(f, y0, t).requires_grad
