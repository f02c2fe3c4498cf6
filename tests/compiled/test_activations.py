"""The compiled activations against float64, and those that the forward pass keeps for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import odenet
from odenet.compiled.passes.softplus import softplus
from odenet.compiled.passes.tanh import tanh

SPECIAL = [0.0, -0.0, 1e-38, -1e-30, 0.625, -0.625, 20.0, -90.0, 3e38, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize(
    ("own", "exact", "bound"),
    [(softplus, torch.nn.functional.softplus, 2.4e-7), (tanh, torch.tanh, 1.8e-7)],
    ids=["softplus", "tanh"],
)
def test_relative_error(own: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], bound: float) -> None:
    size = torch.cat([torch.linspace(0.0, 15.0, 400_001), 10.0 ** torch.linspace(-30.0, 1.0, 100_001)])
    x = torch.cat([size, -size])
    found, wanted = own(x).double(), exact(x.double())
    assert ((found - wanted).abs() <= bound * wanted.abs()).all()


def test_special_values_of_tanh() -> None:
    x = torch.tensor(SPECIAL)
    found, wanted = tanh(x), torch.tanh(x)
    torch.testing.assert_close(found, wanted, rtol=2e-7, atol=0.0, equal_nan=True)
    assert torch.equal(found.signbit()[:2], wanted.signbit()[:2])
    assert tanh(torch.linspace(-30.0, 30.0, 100_001)).abs().max() == 1.0


TERMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "tanh": lambda y, w, v: torch.tanh(y @ w) @ v,
    "sigmoid": lambda y, w, v: torch.sigmoid(y @ w) @ v,
    "read twice": lambda y, w, v: (torch.tanh(y @ w) + 0.1 * (y @ w)) @ v,
    "tanh of tanh": lambda y, w, v: torch.tanh(torch.tanh(y @ w) @ v),
    "with its slope": lambda y, w, v: (1.0 - torch.tanh(y @ w).square()) @ v,
    "three axes": lambda y, w, v: torch.tanh(y.view(8, 4, -1) @ w).view(32, -1) @ v,
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
def test_gradients(dtype: torch.dtype) -> None:
    """Of products that are saved, with the activation in their place where nothing else reads them.

    Each term has its own weights. Few stages compile in a third of the time.
    """
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(48, 48, generator=draw, dtype=dtype) / 48**0.5 for _ in range(2 * len(TERMS))]
    y0 = torch.randn(32, 48, generator=draw, dtype=dtype) / 48**0.5
    tolerance, close = (1e-4, 1e-5) if dtype is torch.float32 else (1e-6, 1e-12)

    def gradients(compiled: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (y0, *weights)]
        pairs = list(zip(leaves[1::2], leaves[2::2], strict=True))

        def f(t: Tensor, y: Tensor) -> Tensor:
            return torch.stack([term(y, *pair) for term, pair in zip(TERMS.values(), pairs, strict=True)]).mean(0)

        sol = odenet.solve(f, leaves[0], [0.0, 1.0], method="bosh3", rtol=tolerance, atol=tolerance, compile=compiled)
        return [sol.y1, *torch.autograd.grad(sol.y1.square().sum(), leaves)]

    names = ["y1", "y0", *(f"{weight} of {name}" for name in TERMS for weight in "wv")]
    for name, found, wanted in zip(names, gradients(True), gradients(False), strict=True):
        assert (found - wanted).norm() <= close * wanted.norm(), name
