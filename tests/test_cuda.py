"""The library on a CUDA GPU: values, gradients and counts as on the CPU. Skipped where there is none.

ODENET_TEST_DEVICE=cpu runs the same tests on the CPU against itself, so that they do not rot.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import GRADIENTS
from odenet.methods import METHODS
from odenet.nn import CNF, FlowMatching, MLPField, NeuralODE

DEVICE = os.environ.get("ODENET_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

D = torch.float64
EventValues = tuple[odenet.Solution, list[Tensor]]


def field(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    t = t if t.ndim == 0 else t[:, None]
    return torch.tanh(y @ w) * torch.cos(3 * t).to(y.dtype) - 0.3 * y


def problem(device: str, dtype: torch.dtype = D) -> tuple[Tensor, Tensor, Tensor]:
    """y0, ts and w, drawn on the CPU."""
    made = torch.Generator().manual_seed(3)
    y0, w = torch.randn(5, 4, generator=made, dtype=D), torch.randn(4, 4, generator=made, dtype=D)
    ts = torch.linspace(0.0, 2.0, 7, dtype=D)
    return tuple(x.to(device, d).requires_grad_() for x, d in ((y0, dtype), (ts, D), (w, dtype)))  # type: ignore


def both(
    call: Callable[..., odenet.Solution], wrt: tuple[int, ...] = (0, 2), dtype: torch.dtype = D
) -> list[EventValues]:
    """The solve, and the gradients of a loss to these of y0, ts and w, on the CPU and on the GPU."""
    out: list[EventValues] = []
    for device in ("cpu", DEVICE):
        given = problem(device, dtype)
        given = tuple(x if i in wrt else x.detach() for i, x in enumerate(given))
        sol = call(*given)
        weights = torch.linspace(0.5, 1.5, sol.ys.shape[-1], dtype=sol.ys.dtype, device=device)
        grads = torch.autograd.grad((sol.ys * weights).square().sum(), [given[i] for i in wrt]) if wrt else ()
        out.append((sol, list(grads)))
    return out


def assert_same(found: list[EventValues], rtol: float = 1e-9, atol: float = 1e-10, counts: bool = True) -> None:
    """counts: of evaluations, too; those of iterations depend on rounding."""
    (cpu, g), (gpu, h) = found
    assert gpu.ys.device.type == DEVICE and gpu.ts.device.type == DEVICE
    for a, b in [(cpu.ys, gpu.ys), (cpu.y1, gpu.y1), *zip(g, h, strict=True)]:
        torch.testing.assert_close(b.cpu(), a, rtol=rtol, atol=atol, equal_nan=True)
    for name in ("accepted", "rejected", *(["nfe"] if counts else [])):
        assert torch.equal(torch.as_tensor(cpu.stats[name]).cpu(), torch.as_tensor(gpu.stats[name]).cpu()), name


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients(gradient: str, per_sample: bool) -> None:
    how = GRADIENTS[gradient]
    wrt = (0, 2) if gradient in ("adjoint", "gauss", "forward") else (0, 1, 2)
    found = both(lambda y, ts, w: odenet.solve(field, y, ts, args=(w,), gradient=how, per_sample=per_sample), wrt)
    assert_same(found, rtol=1e-7 if gradient == "reversible" else 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    options = {} if METHODS[method].error_order else {"step": 0.05}
    found = both(lambda y, ts, w: odenet.solve(field, y, ts, args=(w,), method=method, **options))
    assert_same(found, rtol=1e-7, counts=METHODS[method].traceable)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    (cpu, _), (gpu, _) = both(lambda y, ts, w: odenet.solve(field, y, ts, args=(w,), rtol=1e-3), dtype=dtype)
    assert gpu.ys.dtype == dtype
    near = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 3e-2)
    torch.testing.assert_close(gpu.ys.cpu().double(), cpu.ys.double(), rtol=near, atol=near)


@pytest.mark.parametrize("per_sample", [False, True])
def test_dense_and_events(per_sample: bool) -> None:
    event = odenet.Event(lambda t, y, w: y[..., 0] - 0.2, terminal=False)
    found = both(
        lambda y, ts, w: (
            odenet.solve(field, y, ts, args=(w,), dense=True, event=event, per_sample=True)
            if per_sample
            else odenet.solve(field, y[0], ts, args=(w,), dense=True, event=event)
        )
    )
    assert_same(found, rtol=1e-7)
    (cpu, _), (gpu, _) = found
    torch.testing.assert_close(gpu(0.77).cpu(), cpu(0.77), rtol=1e-9, atol=1e-10)
    assert cpu.hits is not None and gpu.hits is not None
    assert torch.equal(torch.as_tensor(gpu.hits.which).cpu(), torch.as_tensor(cpu.hits.which))
    torch.testing.assert_close(gpu.hits.t.cpu(), cpu.hits.t, rtol=1e-9, atol=1e-10, equal_nan=True)


def test_a_ball_that_bounces() -> None:
    def at(device: str) -> tuple[odenet.Solution, list[Tensor]]:
        g = torch.tensor(9.81, dtype=D, device=device, requires_grad=True)
        event = odenet.Event(
            lambda t, y, g: y[:, 0], direction=-1, reset=lambda t, y, g: y * torch.tensor([1.0, -0.8]).to(y)
        )
        y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0], [5.0, 0.0]], dtype=D, device=device)
        sol = odenet.solve(
            lambda t, y, g: torch.stack([y[:, 1], -g.expand(len(y))], 1), y0, [0.0, 1.0, 2.0], args=(g,), event=event,
            per_sample=True,
        )  # fmt: skip
        return sol, list(torch.autograd.grad(sol.y1.sum(), g))

    assert_same([at("cpu"), at(DEVICE)], rtol=1e-8)


def test_a_failing_sample_freezes_alone() -> None:
    k = torch.tensor([[1.0], [5.0], [0.2]], dtype=D, device=DEVICE, requires_grad=True)
    y0 = torch.ones(3, 2, dtype=D, device=DEVICE)

    def grow(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return k * y * y

    with pytest.raises(odenet.BlowUpError, match="sample 0"):
        odenet.solve(grow, y0, [0.0, 2.0], args=(k,), per_sample=True)
    sol = odenet.solve(grow, y0, [0.0, 2.0], args=(k,), per_sample=True, on_failure="return")
    alone = odenet.solve(grow, y0[2:], [0.0, 2.0], args=(k[2:],), per_sample=True)
    assert sol.status.tolist() == [3, 3, 0] and torch.equal(sol.ys[2:], alone.ys)
    (grad,) = torch.autograd.grad(sol.y1.sum(), k)
    (own,) = torch.autograd.grad(alone.y1.sum(), k)
    assert torch.equal(grad[2:], own[2:]) and grad[:2].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    "options", [{}, {"per_sample": True}, {"method": "rk4", "step": 0.05}, {"dense": True}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*eager code is faster:UserWarning")  # that is the choice of this machine
def test_compiled(options: dict[str, Any]) -> None:
    def call(y: Tensor, ts: Tensor, w: Tensor) -> odenet.Solution:
        return odenet.solve(field, y, ts, args=(w,), compile=y.device.type == DEVICE, **options)

    assert_same(both(call))
    assert_same(both(call))  # from what was kept


@pytest.mark.filterwarnings("ignore:.*eager code is faster:UserWarning")
def test_a_compiled_layer_trains() -> None:
    torch.manual_seed(0)
    layer = NeuralODE(MLPField(2, (16,)), compile=True).to(DEVICE)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    y0 = torch.randn(32, 2, device=DEVICE)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(y0), -y0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_vmap() -> None:
    y0, ts, w = (x.detach() for x in problem(DEVICE))
    many = torch.func.vmap(lambda y: odenet.solve(field, y, ts, args=(w,)).y1)(y0)
    each = torch.stack([odenet.solve(field, y, ts, args=(w,)).y1 for y in y0])
    torch.testing.assert_close(many, each, rtol=1e-12, atol=1e-13)


def test_drop_in_for_torchdiffeq() -> None:
    from odenet.compat.torchdiffeq import odeint_adjoint

    net = MLPField(3, (8,)).to(DEVICE)
    y0 = torch.randn(4, 3, device=DEVICE)
    odeint_adjoint(net, y0, torch.linspace(0, 1, 3, device=DEVICE))[-1].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("trace", ["exact", "hutchinson", "hutch++"])
@pytest.mark.parametrize("compile", [False, True])
def test_densities(trace: Any, compile: bool) -> None:
    """log_prob and its gradient. Estimates agree up to their noise, which each device draws itself: with none here."""
    samples = {} if trace == "exact" else {"samples": 3}
    torch.manual_seed(0)
    made = MLPField(3, (8,)).double()
    x = torch.randn(6, 3, dtype=D)
    results = []
    for device in ("cpu", DEVICE):
        field = copy.deepcopy(made).to(device)
        flow = CNF(field, trace=trace, compile=compile, rtol=1e-8, atol=1e-8, event_shape=3, **samples)
        at = x.to(device).requires_grad_()
        value = flow.log_prob(at)
        assert value.device.type == device and flow.sample((4,)).device.type == device
        results.append((value.detach().cpu(), torch.autograd.grad(value.sum(), at)[0].cpu()))
    if trace != "hutchinson":  # Hutch++ with as many samples as dimensions is exact
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coupling", ["independent", "ot", "sinkhorn", "bridge"])
def test_flow_matching(coupling: Any) -> None:
    torch.manual_seed(0)
    flow = FlowMatching(MLPField(2, (8,)), coupling=coupling, sigma=0.1 if coupling == "bridge" else 0.0).to(DEVICE)
    x1 = torch.randn(100, 2, device=DEVICE)
    loss = flow.loss(x1, generator=torch.Generator(DEVICE).manual_seed(0))
    loss.backward()
    assert loss.device.type == DEVICE and all(torch.isfinite(p.grad).all() for p in flow.parameters())
    for method in ("midpoint", "dpmpp_3m", "unipc_2"):
        assert flow.sample((5,), method=method, steps=6).device.type == DEVICE
    x0 = torch.randn(5, 2, device=DEVICE)
    cpu = copy.deepcopy(flow).cpu()
    torch.testing.assert_close(flow.sample(x0=x0).cpu(), cpu.sample(x0=x0.cpu()), rtol=1e-4, atol=1e-4)
