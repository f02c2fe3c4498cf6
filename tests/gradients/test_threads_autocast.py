"""A backward pass in another thread than the forward pass, as on a GPU, or outside its `torch.autocast`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import GRADIENTS
from slow_cases import slow_unless

D = torch.float64


def field(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    t = t[:, None] if t.ndim else t
    return torch.tanh(y @ w) * torch.cos(3 * t) - 0.3 * y


def in_a_thread(work: Callable[[], Any]) -> Any:
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except Exception as error:  # re-raised where the test sees it
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(out[0], Exception):
        raise out[0]
    return out[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"per_sample": True}, {"dense": True}, {"method": "rk4", "step": 0.05}, {"method": "dopri8"}, {"event": True}],
    ids=str,
)
@pytest.mark.parametrize("moving", slow_unless([False, True], True))
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_in_another_thread(gradient: str, moving: bool, options: dict[str, Any]) -> None:
    """Autograd numbers its nodes by thread."""

    def gradients(where: Callable[[Callable[[], Any]], Any]) -> tuple[Tensor, ...]:
        made = torch.Generator().manual_seed(1)
        y0, w = (torch.randn(n, 4, generator=made, dtype=D, requires_grad=True) for n in (5, 4))
        ts = torch.linspace(0.0, 2.0, 7, dtype=D, requires_grad=moving)
        more = options | ({"event": odenet.Event(lambda t, y, w: y[0, 0] + 0.5)} if "event" in options else {})
        sol = odenet.solve(field, y0, ts, args=(w,), gradient=GRADIENTS[gradient], **more)
        loss = sol.ys.nan_to_num().square().sum() + sol.y1.sum()
        if "dense" in options:
            loss = loss + sol(torch.tensor([0.3, 0.7], dtype=D)).square().sum()
        return where(lambda: torch.autograd.grad(loss, [y0, w, *([ts] if moving else [])]))

    for here, there in zip(gradients(lambda work: work()), gradients(in_a_thread), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-11, atol=1e-11)  # sums of cotangents are in another order


class Mixed(nn.Module):
    """Counts the precisions in which it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).float()
        self.seen: set[torch.dtype] = set()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.net(y)
        self.seen.add(out.dtype)
        return out


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_under_autocast(gradient: str, per_sample: bool, used_before: bool) -> None:
    """f runs at the precision of the forward pass; captured weights that autocast cast before are found."""

    def gradients(how: Any, inside: bool) -> Tensor:
        net = Mixed()
        y0 = torch.linspace(-1, 1, 32, dtype=torch.float32).reshape(8, 4).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            start = y0 + 0 * net(torch.tensor(0.0), y0) if used_before else y0
            sol = odenet.solve(net, start, [0.0, 0.5, 1.0], rtol=1e-2, atol=1e-2, gradient=how, per_sample=per_sample)
            loss = sol.ys.float().square().sum()
            if inside:
                loss.backward()
        assert torch.is_autocast_cache_enabled()
        if not inside:
            loss.backward()
        assert net.seen == {torch.bfloat16}
        return torch.cat([x.grad.flatten() for x in (y0, *net.parameters()) if x.grad is not None])

    exact = gradients("backprop", False)
    for inside in (False, True):
        found = gradients(GRADIENTS[gradient], inside)
        same = gradient in (
            "discrete",
            "checkpoints",
            "backprop",
        )  # the same operations, in float32 off by 1e-3 and more
        assert float((found - exact).norm() / exact.norm()) < (1e-6 if same else 0.03)


def test_a_backward_pass_within_autocast_of_a_forward_pass_without() -> None:
    net = Mixed()
    y0 = torch.ones(8, 4, dtype=torch.float32, requires_grad=True)
    sol = odenet.solve(net, y0, [0.0, 1.0], gradient=odenet.Discrete(checkpoints=1))
    with torch.autocast("cpu", torch.bfloat16):
        sol.y1.sum().backward()
    assert net.seen == {torch.float32}
