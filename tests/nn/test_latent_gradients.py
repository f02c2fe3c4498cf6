"""Gradients of the bound, with fixed noise, against finite differences, in all modes of the solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latent_models import ragged
from odenet.nn import LatentODE
from odenet.series import Series

FIXED: dict[str, Any] = {"method": "rk4", "step": 0.1}


def model(**options: Any) -> LatentODE:
    torch.manual_seed(0)
    return LatentODE(2, 2, 4, encoder="ode-rnn", poisson=True, **options).double().fit_normalizer(ragged())


def slope_and_difference(net: LatentODE, series: Series) -> tuple[float, float]:
    """The derivative of the loss along a random direction of all parameters: by autograd, and by differences."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]

    def loss() -> torch.Tensor:
        return net.loss(series, samples=2, kl_weight=0.7, generator=3)

    grads = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    values = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * 1e-5)
            values.append(loss().item())
    return slope, (values[0] - values[1]) / 2e-5


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ["discrete", "backprop", "reversible"])
def test_exact_gradients(gradient: Any, per_sample: bool) -> None:
    slope, difference = slope_and_difference(model(**FIXED, gradient=gradient, per_sample=per_sample), ragged())
    assert slope == pytest.approx(difference, rel=1e-6)


def test_the_gradient_of_the_continuous_adjoint() -> None:
    slope, difference = slope_and_difference(model(rtol=1e-8, atol=1e-10, gradient="adjoint"), ragged())
    assert slope == pytest.approx(difference, rel=1e-3)


def test_the_default_tolerances_are_enough_for_training() -> None:
    """The gradient by the default solve is that of a tight one to a percent."""

    def gradient(**options: Any) -> torch.Tensor:
        net = model(**options)
        loss = net.loss(ragged(), samples=2, generator=3)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    tight = gradient(rtol=1e-10, atol=1e-12)
    assert float((gradient() - tight).norm() / tight.norm()) < 1e-2


@pytest.mark.slow
def test_a_compiled_solve() -> None:
    series = ragged()
    plain, compiled = model(per_sample=False), model(per_sample=False, compile=True)
    for net in (plain, compiled):
        net.loss(series, samples=2, generator=3).backward()
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-4, msg=name)
