"""f takes derivatives by torch.func of a network that it closes over: all gradients, and compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import APPROXIMATE, NAMES


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def by_vjp(net: nn.Module) -> Callable[..., Any]:
    def f(t: Tensor, y: Tensor) -> Tensor:
        out, backward = torch.func.vjp(net, y)  # type: ignore[misc]
        return out + backward(torch.ones_like(y))[0]

    return f


def by_vjp_of_all_rows(net: nn.Module) -> Callable[..., Any]:
    def f(t: Tensor, y: Tensor) -> Tensor:
        out, backward = torch.func.vjp(net, y)  # type: ignore[misc]
        basis = torch.eye(2, dtype=y.dtype).unsqueeze(1).expand(2, len(y), 2)
        return out + torch.func.vmap(lambda v: backward(v)[0])(basis).sum(0)

    return f


def by_jvp(net: nn.Module) -> Callable[..., Any]:
    def f(t: Tensor, y: Tensor) -> Tensor:
        out, tangent = torch.func.jvp(net, (y,), (torch.ones_like(y),))  # type: ignore[misc]
        return out + tangent

    return f


def by_grad_of_an_energy(net: nn.Module) -> Callable[..., Any]:
    def energy(y: Tensor) -> Tensor:
        return net(y).square().sum()

    return lambda t, y: -torch.func.grad(energy)(y)


def by_jacrev(net: nn.Module) -> Callable[..., Any]:
    jacobian = torch.func.vmap(torch.func.jacrev(net))  # type: ignore[arg-type]
    return lambda t, y: net(y) + (jacobian(y) @ y.unsqueeze(-1)).squeeze(-1)


FIELDS = (by_vjp, by_vjp_of_all_rows, by_jvp, by_grad_of_an_energy, by_jacrev)


def gradients(f: Any, net: nn.Module, options: dict[str, Any]) -> tuple[Tensor, ...]:
    y0 = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64).view(5, 2).requires_grad_()
    y1 = odenet.solve(f, y0, [0.0, 1.0], **options).y1
    return torch.autograd.grad(y1.square().sum(), (y0, *net.parameters()))


@pytest.mark.parametrize("make", FIELDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("gradient", [name for name in NAMES if name != "backprop"])
def test_every_gradient(make: Any, gradient: str) -> None:
    """Backpropagation, which knows nothing of captured tensors, is the witness."""
    net = network()
    f = make(net)
    tight = {"method": "dopri8", "rtol": 1e-8, "atol": 1e-8}
    options: dict[str, Any] = tight if gradient in APPROXIMATE else {"method": "rk4", "step": 0.25}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script")  # PyTorch's own, of forward mode
        exact = gradients(f, net, options | {"gradient": "backprop"})
        found = gradients(f, net, options | {"gradient": gradient})
    # "reversible" is another method: its gradient is that of its own solution
    rtol = 1e-3 if gradient == "reversible" else 1e-6 if gradient in APPROXIMATE else 1e-10
    torch.testing.assert_close(found, exact, rtol=rtol, atol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_vjp, by_vjp_of_all_rows, by_grad_of_an_energy], ids=lambda f: f.__name__)
def test_compiled(make: Any) -> None:
    """Without a warning: it is compiled."""
    net = network()
    f = make(net)
    options = {"method": "bosh3", "rtol": 1e-6, "atol": 1e-6}
    expected = gradients(f, net, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compile=True")
        torch.testing.assert_close(gradients(f, net, options | {"compile": True}), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_transposed_weight_is_compiled() -> None:
    """The gradient of a weight that f uses transposed has the transposed layout."""
    net, w = network(), torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return net(y) @ (w.t() * (w @ w)).sin()

    def all_gradients(**options: Any) -> tuple[Tensor, ...]:
        options |= {"method": "bosh3", "rtol": 1e-6, "atol": 1e-6}
        y1 = odenet.solve(f, torch.ones(5, 2, dtype=torch.float64), [0.0, 1.0], **options).y1
        return torch.autograd.grad(y1.square().sum(), (w, *net.parameters()))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compile=True")
        torch.testing.assert_close(all_gradients(compile=True), all_gradients(), rtol=1e-5, atol=1e-7)


def test_empty_pytrees_in_args_reach_f() -> None:
    def f(t: Tensor, y: Tensor, options: dict[str, Any], more: tuple[Any, ...]) -> Tensor:
        assert options == {} and more == ()
        return -y

    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for gradient in NAMES:
        sol = odenet.solve(f, y0, [0.0, 1.0], args=({}, ()), gradient=gradient)
        assert sol.y1.detach().allclose(torch.exp(torch.tensor(-1.0, dtype=torch.float64)), atol=1e-4)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_field_that_keeps_its_input(trace: str) -> None:
    """The trace is taken inside a transform, whose tensors outlive it in the module."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
            self.last: Tensor | None = None

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            self.last = x
            return self.rate * x

    field = Keeping()
    flow = odenet.nn.CNF(field, event_shape=2, trace=trace, rtol=1e-8, atol=1e-8)
    found = flow.log_prob(torch.zeros(3, 2, dtype=torch.float64))
    exact = -math.log(2 * math.pi) - 2 * 0.7  # the density of N(0, exp(1.4) I) at 0
    torch.testing.assert_close(found, torch.full((3,), exact, dtype=torch.float64), rtol=1e-8, atol=0.0)
    (grad,) = torch.autograd.grad(found.sum(), field.rate)
    assert float(grad) == pytest.approx(-6.0, rel=1e-6)


def test_a_closure_that_keeps_inputs_that_ask_for_a_gradient() -> None:
    kept: list[Tensor] = []

    def f(t: Tensor, x: Tensor) -> Tensor:
        kept.append(x)
        return 0.7 * x

    flow = odenet.nn.CNF(f, event_shape=2, rtol=1e-8, atol=1e-8)
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(grad, -math.exp(-1.4) * torch.ones_like(x), rtol=1e-6, atol=0.0)
