"""Gradients: torchdiffeq's, the drop-in's, and those of the closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compat.sides import Riccati, Rotation, close, double, rotation_start, start

UP = (0.0, 0.4, 1.0)


def gradients(ys: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    whole = ys if isinstance(ys, Tensor) else torch.cat([y.reshape(len(y), -1) for y in ys], 1)
    weights = torch.linspace(1, 2, whole.numel(), dtype=whole.dtype).reshape(whole.shape)
    return torch.autograd.grad((whole * weights).sum(), inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "implicit_adams"])
@pytest.mark.parametrize("function", ["odeint", "odeint_adjoint"])
def test_of_a_tensor(ode: Any, function: str, method: str, reverse: bool) -> None:
    """By y0, parameters and t: to the tolerance, and for t to the order of linear interpolation."""
    f, y0 = Riccati(), start().requires_grad_()
    t = double(*UP).flip(0).requires_grad_() if reverse else double(*UP).requires_grad_()
    fixed = method in ("rk4", "implicit_adams")
    options = {"step_size": 0.037} if fixed else {}
    ys = getattr(ode, function)(f, y0, t, rtol=1e-9, atol=1e-9, method=method, options=options)
    inputs = (y0, t, *f.parameters())
    close(gradients(ys, inputs), gradients(f.exact(y0, t), inputs), 1e-2 if fixed else 1e-4)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_of_constant_steps_are_the_same(theirs: Any, ours: Any, method: str, interp: str) -> None:
    """To rounding, also by t; no output ends a step, as torchdiffeq has no gradient for such a time."""
    f, y0, t = Riccati(), start().requires_grad_(), double(*UP).requires_grad_()
    inputs = (y0, t, *f.parameters())
    for options in ({"step_size": 0.037, "interp": interp}, {"interp": interp}):
        both = [gradients(ode.odeint(f, y0, t, method=method, options=options), inputs) for ode in (theirs, ours)]
        close(both[1], both[0], 1e-12)


@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
@pytest.mark.parametrize("function", ["odeint", "odeint_adjoint"])
def test_of_a_tuple(theirs: Any, ours: Any, function: str, method: str) -> None:
    f, t = Rotation(), double(*UP).requires_grad_()
    state = tuple(x.requires_grad_() for x in rotation_start())
    options = {"step_size": 0.037} if method == "midpoint" else {}
    inputs = (*state, t, *f.parameters())
    both = [
        gradients(getattr(ode, function)(f, state, t, rtol=1e-8, atol=1e-8, method=method, options=options), inputs)
        for ode in (theirs, ours)
    ]
    close(both[1], both[0], 5e-3 if method == "midpoint" else 1e-5)
    close(both[1], gradients(f.exact(state, t), inputs), 3e-2 if method == "midpoint" else 1e-5)


@pytest.mark.parametrize("method", ["trapezoid", "radauIIA5", "gl4", "sdirk2"])
@pytest.mark.parametrize("function", ["odeint", "odeint_adjoint"])
def test_of_implicit_methods(ours: Any, function: str, method: str) -> None:
    f, y0, t = Riccati(), start().requires_grad_(), double(*UP).requires_grad_()
    ys = getattr(ours, function)(f, y0, t, method=method, options={"step_size": 0.05})
    inputs = (y0, t, *f.parameters())
    close(gradients(ys, inputs), gradients(f.exact(y0, t), inputs), 5e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"adjoint_rtol": 1e-10, "adjoint_atol": 1e-10},
        {"adjoint_method": "dopri8"},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.01}},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"max_step": 0.05}},
        {"adjoint_method": "scipy_solver", "adjoint_options": {"solver": "RK45"}},
    ],
    ids=str,
)
def test_settings_of_the_backward_solve(ours: Any, given: dict[str, Any]) -> None:
    f, y0, t = Riccati(), start().requires_grad_(), double(*UP)
    ys = ours.odeint_adjoint(f, y0, t, rtol=1e-8, atol=1e-8, method="dopri5", **given)
    inputs = (y0, *f.parameters())
    close(gradients(ys, inputs), gradients(f.exact(y0, t), inputs), 1e-5)


def test_what_a_norm_of_the_backward_solve_gets(ode: Any) -> None:
    f, state, seen = Rotation(), rotation_start(), []

    def norm(tensors: Any) -> Tensor:
        seen.append([x.shape for x in tensors])
        return torch.stack([x.abs().max() for x in tensors]).max()

    ys = ode.odeint_adjoint(f, state, double(*UP), rtol=1e-7, atol=1e-7, adjoint_options={"norm": norm})
    gradients(ys, tuple(f.parameters()))
    shapes = [x.shape for x in state]
    assert seen and all(s == [torch.Size([]), *shapes, *shapes, torch.Size([])] for s in seen)


def test_options_on_the_last_node(ode: Any) -> None:
    ys = ode.odeint_adjoint(Riccati(), start(), double(*UP), adjoint_options={"safety": 0.8})
    assert ys.grad_fn.adjoint_options["safety"] == 0.8 and "norm" in ys.grad_fn.adjoint_options


def test_func_without_module(ode: Any) -> None:
    rate, y0, t = double(0.5).requires_grad_(), double(1.0).requires_grad_(), double(0.0, 1.0)
    ys = ode.odeint_adjoint(lambda t, y: -rate * y, y0, t, adjoint_params=(rate,))
    mine = torch.autograd.grad(ys[-1].sum(), (rate, y0))
    close(mine, torch.autograd.grad((y0 * torch.exp(-rate)).sum(), (rate, y0)), 1e-5)


def test_what_func_closes_over_gets_its_gradient(ours: Any) -> None:
    """A parameter that is not named, and a tensor that was computed: torchdiffeq's adjoint gives neither."""
    rate, y0, t = double(0.5).requires_grad_(), double(1.0), double(0.0, 1.0)
    exact = torch.autograd.grad((y0 * torch.exp(-2 * rate)).sum(), rate)
    ys = ours.odeint_adjoint(lambda t, y: -2 * rate * y, y0, t, adjoint_params=())
    close(torch.autograd.grad(ys[-1].sum(), rate), exact, 1e-5)
    computed = {"deep": [[[[[[2 * rate]]]]]]}
    for function, more in ((ours.odeint, {}), (ours.odeint_adjoint, {"adjoint_params": ()})):
        ys = function(lambda t, y: -computed["deep"][0][0][0][0][0][0] * y, y0, t, **more)
        close(torch.autograd.grad(ys[-1].sum(), rate, retain_graph=True), exact, 1e-5)


def test_second_derivatives_of_odeint(ode: Any) -> None:
    f, y0, t = Riccati(), start().requires_grad_(), double(*UP)
    found = []
    for ys in (ode.odeint(f, y0, t, rtol=1e-9, atol=1e-9), f.exact(y0, t)):
        (grad,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), y0))
    close(found[0], found[1], 1e-4)


def test_a_divergence_inside_f(ode: Any) -> None:
    """A continuous normalizing flow, as its users write it: autograd inside func, a tuple state."""

    class CNF(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

        def forward(self, t: Tensor, states: Any) -> Any:
            z = states[0]
            with torch.set_grad_enabled(True):
                z.requires_grad_(True)
                dz = self.net(z)
                trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, -trace[:, None]

    found = []
    for function in (ode.odeint, ode.odeint_adjoint):
        f = CNF()
        z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        zs, logp = function(f, (z, z.new_zeros(5, 1)), double(1.0, 0.0), rtol=1e-7, atol=1e-7)
        loss = zs[-1].square().sum() - logp[-1].sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, tuple(f.parameters()), allow_unused=True)[:3]))
    close(found[1], found[0], 1e-4)


def test_scipy_solver_has_a_gradient(ours: Any) -> None:
    f, y0, t = Riccati(), start().requires_grad_(), double(*UP)
    inputs = (y0, *f.parameters())
    exact = gradients(f.exact(y0, t), inputs)
    for function in (ours.odeint, ours.odeint_adjoint):
        ys = function(f, y0, t, rtol=1e-8, atol=1e-8, method="scipy_solver")
        close(gradients(ys, inputs), exact, 1e-5)
