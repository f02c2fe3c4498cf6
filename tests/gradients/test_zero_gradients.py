"""A solve that accepts no step: zero gradients for all that f uses, with every gradient; y0's gradient passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import odenet
from odenet.gradients import GRADIENTS


@pytest.mark.parametrize("gradient", sorted(GRADIENTS))
@pytest.mark.parametrize(("ts", "factor"), [([1.0, 1.0], 1.0), ([0.0, 1.0], torch.nan)], ids=["no length", "failed"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_zeros(gradient: str, ts: list[float], factor: float, per_sample: bool) -> None:
    layer = torch.nn.Linear(2, 2).double()
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"gradient": gradient, "per_sample": per_sample, "on_failure": "return"}
    sol = odenet.solve(lambda t, y, rate: factor * rate * layer(y), y0, ts, args=(rate,), **options)
    assert torch.equal(sol.y1, y0)
    found = torch.autograd.grad(
        sol.y1.sum() + (sol.ys.sum() if factor == 1.0 else 0.0), [rate, *layer.parameters(), y0]
    )
    for bar in found[:-1]:
        assert torch.equal(bar, torch.zeros_like(bar))
    if factor == 1.0:
        assert torch.equal(found[-1], torch.full_like(y0, 3.0))
