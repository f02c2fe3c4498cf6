"""A solve inside `torch.func`: each vmapped sample solves as in a loop, and derivatives are those of autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import odenet
from odenet.nn import MLPField, NeuralODE

D = torch.float64
METHODS: list[dict[str, Any]] = [
    {"method": "tsit5"},
    {"method": "dopri5"},
    {"method": "dopri8"},
    {"method": "bosh3", "rtol": 1e-3},
    {"method": "rk4", "step": 0.07},
    {"method": "tsit5", "controller": odenet.PID(0.4, 0.3, step_ts=[0.31], jump_ts=[1.0])},
]
INTERPRETED = pytest.mark.parametrize("options", METHODS, ids=lambda o: o["method"] + "-".join(list(o)[1:]))


def f(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
    return torch.sin(y * a) + torch.cos(3 * t) * a - 0.1 * y**3


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3, dtype=D), torch.rand(4, 3, dtype=D) * 6, torch.linspace(0, 1.2, 4, dtype=D)


def solve(y: Tensor, a: Tensor, ts: Any, **options: Any) -> odenet.Solution:
    return odenet.solve(f, y, ts, args=(a,), **{"rtol": 1e-4, "atol": 1e-6, **options})


def same(mine: Tensor, expected: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(mine, expected, rtol=tol, atol=tol)


def numeric_jacobian(y: Tensor, a: Tensor, ts: Tensor, options: Any) -> Tensor:
    def end(x: Tensor) -> Tensor:
        return solve(x, a, ts, gradient="backprop", **options).y1

    return torch.autograd.functional.jacobian(end, y)  # type: ignore[return-value]


@INTERPRETED
def test_vmap_is_a_loop(case: Any, options: Any) -> None:
    """With y0 and args vmapped, states, outputs, counts and dense solution of each sample equal a single solve's."""
    y0, a, ts = case
    inner = torch.tensor([0.0, 0.33, 1.0, 1.2], dtype=D)

    def one(y: Tensor, b: Tensor) -> tuple[Any, ...]:
        sol = solve(y, b, ts, dense=True, **options)
        return sol.ys, sol.y1, sol(inner), *(torch.as_tensor(sol.stats[k]) for k in ("nfe", "accepted", "rejected"))

    mine = vmap(one)(y0, a)
    alone = [torch.stack(x) for x in zip(*(one(y, b) for y, b in zip(y0, a, strict=True)), strict=True)]
    for x, e in zip(mine[:3], alone[:3], strict=True):
        same(x, e, 1e-8)
    for x, e in zip(mine[3:], alone[3:], strict=True):
        assert torch.equal(x, e)
    if "step" not in options:
        assert len(set(mine[4].tolist())) > 1  # each had its own steps


@INTERPRETED
def test_derivatives(case: Any, options: Any) -> None:
    y0, a, ts = case

    def end(y: Tensor, b: Tensor) -> Tensor:
        return solve(y, b, ts, **options).y1

    def loss(y: Tensor, b: Tensor) -> Tensor:
        return solve(y, b, ts, **options).ys.square().sum()

    expected = torch.stack([numeric_jacobian(y, b, ts, options) for y, b in zip(y0, a, strict=True)])
    same(jacrev(end)(y0[0], a[0]), expected[0])
    same(jacfwd(end)(y0[0], a[0]), expected[0])
    same(vmap(jacrev(end))(y0, a), expected)
    same(vmap(jacfwd(end))(y0, a), expected)
    v = torch.randn(3, dtype=D)
    same(jvp(lambda y: end(y, a[0]), (y0[0],), (v,))[1], expected[0] @ v)
    same(vjp(lambda y: end(y, a[0]), y0[0])[1](v)[0], expected[0].T @ v)
    x = y0[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(solve(x, a[0], ts, gradient="backprop", **options).ys.square().sum(), x)
    same(grad(loss)(y0[0], a[0]), g)
    if options["method"] not in ("tsit5", "rk4"):
        return
    second = torch.autograd.functional.hessian(
        lambda y: solve(y, a[0], ts, gradient="backprop", **options).ys.square().sum(), y0[0]
    )
    same(hessian(loss)(y0[0], a[0]), second, 1e-8)  # type: ignore[arg-type]
    same(jacrev(jacrev(loss))(y0[0], a[0]), second, 1e-8)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "gauss", "forward"])
def test_every_gradient_is_exact(case: Any, gradient: str) -> None:
    """Inside a transform every gradient is that of the solver's own operations."""
    y0, a, ts = case

    def end(y: Tensor, b: Tensor) -> Tensor:
        return solve(y, b, ts, gradient=gradient).y1

    expected = torch.stack([numeric_jacobian(y, b, ts, {}) for y, b in zip(y0, a, strict=True)])
    same(vmap(jacrev(end))(y0, a), expected)
    same(jacrev(end)(y0[0], a[0]), expected[0])


def test_reversible(case: Any) -> None:
    y0, a, ts = case
    options = {"method": "rk4", "step": 0.01, "gradient": odenet.Reversible()}

    def end(y: Tensor, b: Tensor) -> Tensor:
        return solve(y, b, ts, **options).y1

    with torch.no_grad():
        same(vmap(end)(y0, a), torch.stack([end(y, b) for y, b in zip(y0, a, strict=True)]))
    x = y0[0].clone().requires_grad_()
    same(grad(lambda y: end(y, a[0]).sum())(y0[0]), torch.autograd.grad(end(x, a[0]).sum(), x)[0])


@pytest.mark.parametrize("options", [METHODS[0], METHODS[4]], ids=["tsit5", "rk4"])
def test_times(case: Any, options: Any) -> None:
    """The gradient of ts, shared or vmapped, also backwards in time; ts[0] may be repeated."""
    y0, a, ts = case
    ts = torch.cat([ts[:1], ts])

    def loss(t: Tensor, y: Tensor, b: Tensor) -> Tensor:
        sol = solve(y, b, t, **options)
        return sol.ys.square().sum() + sol.y1.sum()

    def alone(t: Tensor, y: Tensor, b: Tensor) -> Tensor:
        t = t.clone().requires_grad_()
        sol = solve(y, b, t, gradient="backprop", **options)
        return torch.autograd.grad(sol.ys.square().sum() + sol.y1.sum(), t)[0]

    many = torch.stack([ts, ts * 1.3, -ts * 0.1, ts + 1])
    same(vmap(grad(loss), (None, 0, 0))(ts, y0, a), torch.stack([alone(ts, y, b) for y, b in zip(y0, a, strict=True)]))
    same(vmap(jacfwd(loss))(many, y0, a), torch.stack([alone(*x) for x in zip(many, y0, a, strict=True)]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_ensemble(per_sample: bool) -> None:
    """An ensemble of models by `stack_module_state`, with gradients for each."""
    torch.manual_seed(0)
    models = [MLPField(3, (8,)).double() for _ in range(3)]
    params, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")
    y0, ts = torch.randn(5, 3, dtype=D), [0.0, 0.7, 1.5]

    def loss(p: Any, b: Any) -> Tensor:
        def field(t: Tensor, y: Tensor) -> Tensor:
            return functional_call(base, (p, b), (t, y))

        return odenet.solve(field, y0, ts, per_sample=per_sample).ys.square().sum()

    mine = vmap(loss)(params, buffers)
    grads = vmap(grad(loss))(params, buffers)
    for i, model in enumerate(models):
        expected = odenet.solve(model, y0, ts, per_sample=per_sample).ys.square().sum()
        same(mine[i], expected)
        names, values = zip(*model.named_parameters(), strict=True)
        for name, e in zip(names, torch.autograd.grad(expected, values), strict=True):
            same(grads[name][i], e)


def test_under_autograd(case: Any) -> None:
    """Autograd differentiates through a vmap."""
    y0, a, ts = case
    x, w = y0.clone().requires_grad_(), a.clone().requires_grad_()
    mine = torch.autograd.grad(vmap(lambda y, b: solve(y, b, ts).ys)(x, w).square().sum(), (x, w))
    loss = sum(solve(y, b, ts, gradient="backprop").ys.square().sum() for y, b in zip(x, w, strict=True))
    for m, e in zip(mine, torch.autograd.grad(loss, (x, w)), strict=True):  # type: ignore[arg-type]
        same(m, e)


def test_a_layer_and_a_pytree() -> None:
    layer = NeuralODE(MLPField(3, (8,)), ts=(1.0, 0.0))
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(vmap(layer)(x), torch.stack([layer(b) for b in x]))
    vmap(layer)(x)
    assert layer.stats.nfe.shape == (4,) and int(layer.stats.nfe.min()) > 0  # no wrapper is left behind

    def end(x: Tensor, v: Tensor) -> Any:
        return odenet.solve(lambda t, s: {"x": s["v"], "v": -s["x"]}, {"x": x, "v": v}, [0.0, 1.0], rtol=1e-8).y1["x"]

    x, v = torch.randn(5, dtype=D), torch.randn(5, dtype=D)
    one = torch.ones((), dtype=D)
    same(vmap(end)(x, v), x * one.cos() + v * one.sin(), 1e-6)
    same(vmap(grad(end, argnums=(0, 1)))(x, v)[1], one.sin().expand(5), 1e-6)


def test_a_rejected_sample_keeps_gradients_finite() -> None:
    """The first attempts of one sample overflow; its gradient and the other sample's are finite and right."""

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return -k * y * torch.exp(y.clamp(max=600.0)) / 10

    y0, k = torch.tensor([[7.0], [0.1]], dtype=D), torch.ones(2, dtype=D)

    def end(y: Tensor, k: Tensor) -> Tensor:
        control = odenet.PID(first_step=1.0)
        return odenet.solve(field, y, [0.0, 1.0], args=(k,), controller=control).y1.sum()

    mine = vmap(grad(end, argnums=(0, 1)))(y0, k)
    for i in range(2):
        y, c = y0[i].clone().requires_grad_(), k[i].clone().requires_grad_()
        same(
            torch.stack([mine[0][i, 0], mine[1][i]]),
            torch.cat([x.view(1) for x in torch.autograd.grad(end(y, c), (y, c))]),
        )


def test_failures() -> None:
    def run(y: Tensor, **options: Any) -> odenet.Solution:
        return odenet.solve(lambda t, y: y**2, y, [0.0, 0.5, 1.0], **options)

    y0 = torch.tensor([[0.1], [1.5], [0.2]], dtype=D)
    with pytest.raises(odenet.BlowUpError, match="number 1 of the vmapped solves"):
        vmap(lambda y: run(y).y1)(y0)
    with pytest.raises(odenet.MaxStepsError, match="max_steps=2"):
        vmap(lambda y: run(y, max_steps=2).y1)(y0)
    ys, status = vmap(lambda y: (lambda s: (s.ys, s.status))(run(y, on_failure="return")))(y0)
    assert status.tolist() == [0, odenet.Status.BLOW_UP, 0]
    assert torch.isnan(ys[1, 2]).all() and torch.isfinite(ys[1, :2]).all()
    same(ys[2, 2], torch.tensor([0.25], dtype=D), 1e-4)
    with pytest.raises(ValueError, match="ts must increase"):
        vmap(lambda t: odenet.solve(lambda t, y: -y, y0, t).y1)(torch.tensor([[0.0, 1.0, 0.5]]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": odenet.methods.METHODS["explicit_adams"], "step": 0.1}, "looks at values|decides on values"),
        ({"event": odenet.Event(lambda t, y: y[0])}, "event is not available"),
        ({"progress": lambda *_: None}, "progress is not available"),
    ],
    ids=["adams", "event", "progress"],
)
def test_what_vmap_refuses(options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        vmap(lambda y: odenet.solve(lambda t, y: -y, y, [0.0, 1.0], **options).y1)(torch.ones(2, 1, dtype=D))
