"""Gradients that the adjoint method of `cdeint` gives to the coefficients of a control."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet.compat import torchcde

D = torch.float64
COEFFICIENTS = {
    "hermite": (torchcde.hermite_cubic_coefficients_with_backward_differences, torchcde.CubicSpline),
    "natural": (torchcde.natural_cubic_coeffs, torchcde.CubicSpline),
    "linear": (torchcde.linear_interpolation_coeffs, torchcde.LinearInterpolation),
}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 6, dtype=D)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z).tanh().unflatten(-1, (3, 2))


def gradient(kind: str, field: nn.Module, **options: Any) -> Tensor:
    make, control = COEFFICIENTS[kind]
    torch.manual_seed(1)
    coeffs = make(torch.randn(2, 12, 2, dtype=D)).requires_grad_()
    X = control(coeffs)
    z = torchcde.cdeint(X, field, torch.ones(2, 3, dtype=D), X.interval, **options)
    return torch.autograd.grad(z[:, -1].square().sum(), coeffs)[0]


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("tol", [1e-4, 1e-7])
def test_they_have_the_accuracy_of_the_backward_solve(kind: str, tol: float) -> None:
    field, knots = Field(), {"options": {"jump_t": torch.arange(12, dtype=D)}}
    tight: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11} | (knots if kind == "linear" else {})
    exact = gradient(kind, field, adjoint=False, rtol=1e-10, atol=1e-12, **knots)
    mine = gradient(kind, field, adjoint_rtol=tol, adjoint_atol=tol / 100, **tight)
    assert (mine - exact).norm() < 30 * tol * exact.norm()


def test_options_of_the_backward_solve_that_are_given_stay() -> None:
    """Steps that do not end at the knots: less accurate, but asked for."""
    field, tolerances = Field(), {"rtol": 1e-6, "atol": 1e-8}
    asked = gradient("hermite", field, adjoint_options={}, **tolerances)
    assert (asked - gradient("hermite", field, **tolerances)).norm() > 1e-3 * asked.norm()


@pytest.mark.parametrize("options", [{"method": "rk4", "options": {"step_size": 0.25}}, {"adjoint_method": "bosh3"}])
def test_other_methods_of_the_backward_solve(options: dict[str, Any]) -> None:
    field = Field()
    exact = gradient("hermite", field, adjoint=False, rtol=1e-10, atol=1e-12)
    assert (gradient("hermite", field, **options) - exact).norm() < 0.1 * exact.norm()


def test_controls_of_different_knots() -> None:
    torch.manual_seed(1)
    first, second = (
        torchcde.hermite_cubic_coefficients_with_backward_differences(torch.randn(2, n, 2, dtype=D)).requires_grad_()
        for n in (5, 9)
    )
    a = torchcde.CubicSpline(first)
    b = torchcde.CubicSpline(second, torch.linspace(0.0, 4.0, 9, dtype=D))
    X, field = torchcde.TupleControl(a, b), Field()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = field

        def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self.field(t, z[0]), self.field(t, z[0] - z[1])

    def gradients(**options: Any) -> tuple[Tensor, ...]:
        z0 = torch.ones(2, 3, dtype=D)
        _, z = torchcde.cdeint(X, Both(), (z0, z0), X.interval, **options)
        return torch.autograd.grad(z[:, -1].square().sum(), (first, second))

    exact = gradients(adjoint=False, rtol=1e-9, atol=1e-11)
    for mine, other in zip(gradients(rtol=1e-6, atol=1e-8), exact, strict=True):
        assert (mine - other).norm() < 1e-4 * other.norm()
