"""Views of a parameter inside torch.compile and torch.export: every view, constant and adaptive steps, gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from slow_cases import slow_unless
from torch_versions import needs_tracing

pytestmark = needs_tracing

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    ".T": lambda w: w.T,
    ".mT": lambda w: w.mT,
    "a column of t()": lambda w: w.t()[:, :1] * w.t()[0],
    "t()": lambda w: w.t(),
    "transpose": lambda w: w.transpose(0, 1),
    "view": lambda w: w.view(9).view(3, 3),
    "slice": lambda w: w[:3, 0:3],
    "chunk": lambda w: torch.cat([w.chunk(3, 1)[i] for i in (2, 1, 0)], 1),
    "rows": lambda w: torch.stack([w[i] for i in range(3)]),
    "diagonal": lambda w: torch.diag_embed(w.diagonal()),
    "expand": lambda w: w[0].expand(3, 3),
    "squeeze": lambda w: w.unsqueeze(0).squeeze(0),
}
OFTEN = (".T", "t()", "view", "chunk", "a column of t()", "expand")  # in every run of the tests
STEPS: dict[str, dict[str, Any]] = {
    "constant": {"method": "rk4", "step": 0.25},
    "adaptive": {"rtol": 1e-4, "atol": 1e-6},
}


class Field(nn.Module):
    """y' = tanh(y @ view(w)), with w the one parameter."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.1, 0.5, -0.3], [0.2, -0.4, 0.7], [-0.6, 0.3, 0.2]]))
        self.view = view

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.view(self.w))


class Layer(nn.Module):
    """The field solved for; closure: by a function of the layer's, not by the module."""

    def __init__(self, view: Callable[[Tensor], Tensor], closure: bool = False, **options: Any) -> None:
        super().__init__()
        self.field, self.closure, self.options = Field(view), closure, options

    @property
    def w(self) -> Tensor:
        return self.field.w

    def forward(self, y0: Tensor) -> Tensor:
        def f(t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(y @ self.field.view(self.field.w))

        return odenet.solve(f if self.closure else self.field, y0, [0.0, 1.0], **self.options).y1


def gradients(model: Any, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y0 = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()
    y1 = model(y0)
    return (y1.detach(), *torch.autograd.grad(y1.square().sum(), (y0, w)))


@pytest.mark.parametrize("steps", slow_unless(STEPS, "constant"))
@pytest.mark.parametrize("view", slow_unless(VIEWS, *OFTEN))
def test_compiled(view: str, steps: str) -> None:
    check_compiled(Layer(VIEWS[view], **STEPS[steps]))


@pytest.mark.slow
@pytest.mark.parametrize("view", [v for v in VIEWS if not v.startswith(".") and "column" not in v])
def test_compiled_by_a_function(view: str) -> None:
    """But for attributes such as w.T, and cotangents with strides of their own: docs/field.md says so."""
    check_compiled(Layer(VIEWS[view], closure=True, **STEPS["constant"]))


def check_compiled(model: Layer) -> None:
    torch.compiler.reset()
    mine = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), model.w)
    for a, b in zip(mine, gradients(model, model.w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("view", slow_unless([".T", "chunk", "expand"], ".T"))
def test_exported(view: str, steps: str) -> None:
    model, y0 = Layer(VIEWS[view], **STEPS[steps]), torch.linspace(-1, 1, 6).view(2, 3)
    with torch.no_grad():
        exported = torch.export.export(model, (y0,))
        torch.testing.assert_close(exported.module()(y0), model(y0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("view", [".T", "chunk"])
def test_with_inductor(view: str, steps: str) -> None:
    model = Layer(VIEWS[view], **STEPS[steps])
    torch.compiler.reset()
    mine = gradients(torch.compile(model, fullgraph=True), model.w)
    for a, b in zip(mine, gradients(model, model.w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_adaptive_steps_and_a_chunk() -> None:
    """One of the slow ones, for every run of the tests."""
    check_compiled(Layer(VIEWS["chunk"], **STEPS["adaptive"]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_a_bare_product_with_inductor() -> None:
    """Inductor 2.13 loses the factor of an addition before a matrix product: the solve must not hand it one."""
    w = torch.tensor([[0.1, 0.5], [-0.4, 0.2]])

    def run(y0: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: y @ w, y0, [0.0, 1.0], method="rk4", step=0.25).y1

    y0 = torch.ones(2, 2)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(y0), run(y0))
    torch.testing.assert_close(run(y0), y0 @ torch.linalg.matrix_exp(w), rtol=1e-4, atol=1e-5)
