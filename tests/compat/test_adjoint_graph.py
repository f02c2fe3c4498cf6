"""The graph of odeint_adjoint's result: which tensors get gradients, what its nodes hold, which derivatives raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from compat.sides import Fall, Riccati, Rotation, close, double, rotation_start, start
from gradient_settings import NAMES

METHODS = pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams", "scipy_solver"])


class Idle(Riccati):
    """A module that uses only `rate`; one of its other parameters requires no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 3).double()
        self.frozen = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)


@METHODS
def test_a_parameter_that_func_does_not_use_has_the_gradient_zero(ode: Any, method: str) -> None:
    f, y0, t = Idle(), start(), double(0.0, 0.4, 1.0)
    ode.odeint_adjoint(f, y0, t, method=method).sum().backward()
    (want,) = torch.autograd.grad(f.exact(y0, t).sum(), f.rate)
    close(f.rate.grad, want, 1e-1 if method == "explicit_adams" else 5e-2 if method == "rk4" else 1e-4)
    for x in f.idle.parameters():
        assert x.grad is not None and torch.equal(x.grad, torch.zeros_like(x))
    assert f.frozen.grad is None


def test_adjoint_params_computed_and_added_by_clients_have_gradients(ode: Any) -> None:
    raw, idle = double(0.7).requires_grad_(), double(1.0, 2.0).requires_grad_()
    rate = raw.exp()
    ys = ode.odeint_adjoint(
        lambda t, y: -rate * y, double(1.0), double(0.0, 1.0), adjoint_params=(rate, idle, 2 * idle)
    )
    got = torch.autograd.grad(ys[-1].sum(), (raw, idle))
    close(got[0], torch.autograd.grad(torch.exp(-raw.exp()).sum(), raw)[0], 1e-5)
    assert torch.equal(got[1], torch.zeros(2, dtype=torch.float64))


ASKING = {
    "a parameter": lambda f, y0, t: f.idle.requires_grad_(),
    "y0": lambda f, y0, t: y0.requires_grad_(),
    "t": lambda f, y0, t: t.requires_grad_(),
}


class Plain(nn.Module):
    """A module that uses no tensor that requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(double(1.0, 2.0), requires_grad=False)

    def forward(self, t: Tensor, y: Any) -> Any:
        return y if isinstance(y, Tensor) else tuple(y)


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.5, 0.0), (0.3,)])
def test_the_result_has_its_options_if_it_requires_a_gradient(ode: Any, asking: str, times: tuple[float, ...]) -> None:
    f, y0, t = Plain(), double(1.0, 2.0), double(*times)
    x = ASKING[asking](f, y0, t)
    ys = ode.odeint_adjoint(f, y0, t, adjoint_options={"max_num_steps": 500})
    assert ys.grad_fn.adjoint_options["max_num_steps"] == 500 and callable(ys.grad_fn.adjoint_options["norm"])
    (got,) = torch.autograd.grad(ys[-1].sum(), x)
    ends = double(times[0], times[-1])
    growth = torch.exp(ends[1] - ends[0])
    if asking == "a parameter":
        want = torch.zeros(2, dtype=torch.float64)
    elif asking == "y0":
        want = growth.expand(2)
    else:
        want = torch.zeros(len(times), dtype=torch.float64)
        want[0], want[-1] = want[0] - 3 * growth, want[-1] + 3 * growth
        want = want if len(times) > 1 else torch.zeros(1, dtype=torch.float64)
    close(got, want, 1e-5)


def test_without_gradients_there_is_no_graph(ode: Any) -> None:
    assert ode.odeint_adjoint(Plain(), double(1.0), double(0.0, 1.0)).grad_fn is None


@pytest.mark.parametrize("kind", ["default", "given", "seminorm", "own", "options"])
@pytest.mark.parametrize("tuples", [False, True])
def test_the_norm_in_adjoint_options_is_torchdiffeqs(theirs: Any, ours: Any, kind: str, tuples: bool) -> None:
    """It takes (t, y, adj_y, *params), with y and adj_y as one vector each if the state is a tuple."""

    def own(state: tuple[Tensor, ...]) -> Tensor:
        assert len(state) == (1 + 2 * 3 + 1 if tuples else 1 + 2 + 1)
        return torch.stack([x.abs().max() for x in state]).max()

    def largest(state: Any) -> Tensor:
        return max(x.abs().max() for x in (state if isinstance(state, tuple) else (state,)))

    more: dict[str, Any] = {
        "default": {}, "given": {"adjoint_options": {}}, "seminorm": {"adjoint_options": {"norm": "seminorm"}},
        "own": {"adjoint_options": {"norm": own}}, "options": {"method": "dopri5", "options": {"norm": largest}},
    }[kind]  # fmt: skip
    f, y0 = (Rotation(), rotation_start()) if tuples else (Riccati(), start())
    size = sum(x.numel() for x in y0) if isinstance(y0, tuple) else y0.numel()
    random = torch.Generator().manual_seed(3)
    found = []
    for ode in (theirs, ours):
        ys = ode.odeint_adjoint(f, y0, double(0.0, 1.0), **more)
        node = ys[0].grad_fn.next_functions[0][0].next_functions[0][0] if tuples else ys.grad_fn
        found.append(node.adjoint_options["norm"])
    for scale in (
        (1.0, 1.0, 1.0, 1.0),
        (9.0, 1.0, 1.0, 1.0),
        (0.1, 9.0, 1.0, 1.0),
        (0.1, 1.0, 9.0, 1.0),
        (0.1, 1, 1, 9.0),
    ):
        parts = [torch.randn(n, dtype=torch.float64, generator=random) for n in (1, size, size, f_size(f))]
        t, y, a, p = (s * x for s, x in zip(scale, parts, strict=True))
        state = (t[0], y, a, p.reshape(next(f.parameters()).shape))
        assert float(found[1](state)) == pytest.approx(float(found[0](state)), rel=1e-12)


def f_size(f: nn.Module) -> int:
    return sum(p.numel() for p in f.parameters())


@pytest.mark.parametrize("tuples", [False, True])
def test_a_norm_in_adjoint_options_is_used_in_the_backward_solve(ode: Any, tuples: bool) -> None:
    f, y0 = (Rotation(), rotation_start()) if tuples else (Riccati(), start())
    ys = ode.odeint_adjoint(f, y0, double(0.0, 1.0))
    first = ys[0] if tuples else ys
    node = first.grad_fn.next_functions[0][0].next_functions[0][0] if tuples else first.grad_fn
    before, seen = node.adjoint_options["norm"], []

    def spy(state: tuple[Tensor, ...]) -> Any:
        seen.append([tuple(x.shape) for x in state])
        return before(state)

    node.adjoint_options["norm"] = spy
    first.sum().backward()
    size = (5,) if tuples else (3,)
    assert seen and all(shapes == [(), size, size, tuple(next(f.parameters()).shape)] for shapes in seen)


def test_the_time_of_an_event_is_in_the_graph_and_constant(ode: Any) -> None:
    f, y0 = Fall(), double(2.0, 1.0).requires_grad_()
    t, ys = ode.odeint_adjoint(f, y0, double(0.0, 1.0), event_fn=lambda t, y: y[0])
    t.backward(retain_graph=True)
    assert torch.equal(y0.grad, torch.zeros_like(y0)) and float(f.g.grad) == 0.0
    ys[-1].sum().backward()
    assert float(y0.grad.abs().sum()) > 0.0


@METHODS
def test_a_first_derivative_with_create_graph(ours: Any, method: str) -> None:
    """The same first derivative as without create_graph; only a second derivative raises."""
    f, y0, t = Riccati(), start().requires_grad_(), double(0.0, 0.4, 1.0).requires_grad_()
    inputs = (y0, f.rate) if method == "scipy_solver" else (y0, f.rate, t)
    ys = ours.odeint_adjoint(f, y0, t if len(inputs) == 3 else t.detach(), method=method)
    plain = torch.autograd.grad(ys.square().sum(), inputs, retain_graph=True)
    graph = torch.autograd.grad(ys.square().sum(), inputs, create_graph=True)
    for a, b in zip(graph, plain, strict=True):
        assert torch.equal(a, b)
    total = ys.sum() + sum(x.detach().sum() for x in graph)
    total.backward(retain_graph=True, inputs=inputs)
    with pytest.raises(RuntimeError, match=r"second derivative through odeint_adjoint is refused.*odeint"):
        graph[0].square().sum().backward(inputs=inputs)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_the_time_of_an_event_with_create_graph(ode: Any, name: str) -> None:
    f, y0, t0 = Fall(), double(2.0, 1.0).requires_grad_(), double(0.0).requires_grad_()
    inputs = (y0, f.g)
    level = double(0.5).requires_grad_()
    t, ys = ode.odeint_event(
        f, y0, t0, event_fn=lambda t, y: y[0] - level[0], odeint_interface=getattr(ode, name), rtol=1e-9, atol=1e-9
    )
    got = torch.autograd.grad(t + ys[-1, 1], inputs, create_graph=True)
    lands = f.lands(y0, level[0])
    want = torch.autograd.grad(lands + y0[1] - f.g * lands, inputs)
    for a, b in zip(got, want, strict=True):
        close(a.detach(), b, 1e-5)
    if ode.__name__ != "torchdiffeq":  # which leaves terms of the second derivative out in silence
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(got[0].sum(), y0)


@pytest.mark.parametrize("gradient", NAMES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_time_of_a_native_event_with_create_graph(gradient: str, per_sample: bool) -> None:
    k = double(0.7).requires_grad_()
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64) if per_sample else double(1.0)
    sol = odenet.solve(
        lambda t, y, k: -k * y, y0, [0.0, 5.0], args=(k,), gradient=gradient, per_sample=per_sample, rtol=1e-9,
        atol=1e-11, event=odenet.Event(lambda t, y, k: y[..., 0] - 0.5),
        **({"method": "tsit5", "step": 0.01} if gradient == "reversible" else {}),
    )  # fmt: skip
    (first,) = torch.autograd.grad(sol.event.t.sum(), k, create_graph=True)
    log = torch.log(2 * y0).sum()
    assert float(first.detach()) == pytest.approx(-float(log) / 0.49, rel=1e-4)
    with pytest.raises(RuntimeError, match=r"second derivative.*first derivatives only.*constant_time=True"):
        torch.autograd.grad(first.square().sum(), k)
