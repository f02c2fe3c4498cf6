"""An f that differentiates with respect to what it captures: dy/dt = d(w^2 y / 2)/dw = w y, so y(1) = y0 exp(w)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from captured.ways import TIGHT
from odenet import Discrete
from odenet.compat.torchdiffeq import odeint, odeint_adjoint
from odenet.errors import CaptureError

D = torch.float64
Y0 = torch.ones(1, 1, dtype=D)


def slope(w: Tensor, y: Tensor) -> Tensor:
    return torch.autograd.grad((w.square() * y / 2).sum(), w, create_graph=True)[0].view(1, 1)


class Captured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.4], dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            return slope(self.w, y)


class Viewed(Captured):
    """As the error advises."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            return slope(self.w.view_as(self.w), y)


class ByTorchFunc(Captured):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.func.grad(lambda w: (w.square() * y / 2).sum())(self.w).view(1, 1)


def solved(f: Callable[..., Tensor], gradient: Any = "discrete", **options: Any) -> Tensor:
    return odenet.solve(f, Y0, [0.0, 1.0], gradient=gradient, **TIGHT, **options).y1


def check(y1: Tensor, w: Tensor, close: float) -> None:
    """y(1) and its derivative are both exp(w)."""
    (bar,) = torch.autograd.grad(y1.sum(), w)
    assert abs(float(y1.detach()) - math.exp(0.4)) < 1e-7
    assert abs(float(bar) - math.exp(0.4)) < close


ATTACHED = ["discrete", "backprop", "forward", "reversible", Discrete(checkpoints=2)]
ALL = [*ATTACHED, "adjoint", "gauss"]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ALL, ids=str)
@pytest.mark.parametrize("make", [Viewed, ByTorchFunc])
def test_what_the_error_advises_is_right(make: type[Captured], gradient: Any, per_sample: bool) -> None:
    f = make()
    check(solved(f, gradient, per_sample=per_sample), f.w, 1e-4 if gradient == "reversible" else 1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ATTACHED, ids=str)
def test_a_derivative_through_earlier_evaluations_is_refused(gradient: Any, per_sample: bool) -> None:
    with pytest.raises(CaptureError, match=r"a tensor w of shape \(1,\) that it did not make.*w\.view_as\(w\)"):
        solved(Captured(), gradient, per_sample=per_sample).sum().backward()


@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
def test_without_earlier_evaluations_it_is_right(gradient: str) -> None:
    f = Captured()
    check(solved(f, gradient), f.w, 1e-6)
    with torch.no_grad():
        assert abs(float(solved(f)) - math.exp(0.4)) < 1e-7


def test_args_and_computed_tensors() -> None:
    k = torch.tensor([0.2], dtype=D, requires_grad=True)
    w = 2 * k
    with pytest.raises(CaptureError, match=r"with respect to a tensor w of shape \(1,\)"):
        solved(lambda t, y: slope(w, y))
    with pytest.raises(CaptureError, match=r"with respect to a tensor w of shape \(1,\)"):
        solved(lambda t, y, w: slope(w, y), args=(k,))


def test_drop_in() -> None:
    """torchdiffeq's odeint gives a wrong value there."""
    f, t = Captured(), torch.tensor([0.0, 1.0], dtype=D)
    check(odeint_adjoint(f, Y0, t, **TIGHT)[-1], f.w, 1e-6)
    with pytest.raises(CaptureError, match=r"w\.view_as"):
        odeint(f, Y0, t, **TIGHT)


@pytest.mark.parametrize("gradient", ALL, ids=str)
def test_what_f_makes_is_no_capture(gradient: Any) -> None:
    """Leaves, results, y itself, and captured tensors through a y that is detached."""
    w = nn.Parameter(torch.tensor([0.4], dtype=D))

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y.requires_grad_(True)
            zero, twice, still = torch.zeros_like(y).requires_grad_(True), 2 * y, y.detach()
            (a,) = torch.autograd.grad((w * y.square() / 2).sum(), y, create_graph=True)  # w y
            (b,) = torch.autograd.grad((y * (w + zero).exp()).sum(), zero, create_graph=True)  # y exp(w)
            (c,) = torch.autograd.grad((w * twice.square() / 4).sum(), twice, create_graph=True)  # w y
            (d,) = torch.autograd.grad((w.square() * still / 2).sum(), w)
        return a + (b - y * w.exp()) + (c - w * y) + 0 * d

    check(solved(f, gradient), w, 1e-4 if gradient == "reversible" else 1e-6)
