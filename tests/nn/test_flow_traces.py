"""Traces of Jacobians: closed forms and estimates against the Jacobian itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet.nn import ConcatSquashField, MLPField
from odenet.nn.fields import ACTIVATIONS
from odenet.nn.flows.traces import ExactTrace, Hutchinson, HutchPlusPlus


def jacobian(field: Any, t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
    """(B, D, D), one sample at a time."""
    rows = []
    for i in range(len(y)):
        given = [a[i : i + 1] for a in args]
        time = t[i : i + 1] if t.ndim else t
        rows.append(
            torch.autograd.functional.jacobian(lambda v, time=time, given=given: field(time, v[None], *given)[0], y[i])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (5, 6), (5, 6, 7), (4, 5, 6, 7)], ids=len)
@pytest.mark.parametrize("kind", [MLPField, ConcatSquashField])
def test_closed_form(kind: Any, hidden: tuple[int, ...], activation: Any) -> None:
    torch.manual_seed(0)
    field = kind(3, hidden, activation, context=2).double()
    y, context = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    for t in (torch.tensor(0.3), torch.rand(4)):
        exact = jacobian(field, t, y, context)
        dy, trace = field.with_trace(t, y, context)
        torch.testing.assert_close(dy, field(t, y, context))
        torch.testing.assert_close(trace, exact.diagonal(dim1=1, dim2=2).sum(1))
        directions = torch.randn(4, 2, 3, dtype=torch.float64)
        torch.testing.assert_close(
            field.with_vjp(t, y, directions, context)[1], torch.einsum("bij,bki->bkj", exact, directions)
        )


class Mixing(nn.Module):
    """A field of (B, C, N) that the library knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(y.flatten(1)))).view_as(y) * (1.0 + t)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_any_field(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    field, t = Mixing().double(), torch.tensor(0.5, dtype=torch.float64)
    y = torch.randn(4, *shape, dtype=torch.float64)
    exact = jacobian(field, t, y).view(4, 6, 6)
    at = ExactTrace()(field, t, y, (), (), frobenius=True)
    torch.testing.assert_close(at.trace, exact.diagonal(dim1=1, dim2=2).sum(1))
    assert at.frobenius is not None
    torch.testing.assert_close(at.frobenius, exact.square().sum((1, 2)))
    full = HutchPlusPlus(6)
    at = full(field, t, y, full.directions(field, t, y, (), None), ())
    torch.testing.assert_close(at.trace, exact.diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", [Hutchinson, HutchPlusPlus])
def test_estimates_are_unbiased_with_the_variance_of_the_theory(kind: Any, samples: int, noise: Any) -> None:
    """Of one Jacobian, by 20,000 draws; that of Hutch++ given its basis (Meyer et al. 2021, proof of theorem 1)."""
    torch.manual_seed(0)
    draws = 20_000
    field, t = Mixing().double(), torch.tensor(0.5, dtype=torch.float64)
    y = torch.randn(1, 6, dtype=torch.float64)
    exact = jacobian(field, t, y)[0]
    repeated, estimate = y.expand(draws, 6), kind(samples, noise)
    directions = estimate.directions(field, t, repeated, (), None)
    at = estimate(field, t, repeated, directions, (), frobenius=True)
    assert at.frobenius is not None
    remaining = exact.expand(draws, 6, 6)
    if kind is HutchPlusPlus:
        basis = directions[0]
        projector = torch.eye(6, dtype=torch.float64) - basis.mT @ basis
        remaining = projector @ exact @ projector
    symmetric = 0.5 * (remaining + remaining.mT)
    variance = 2.0 * symmetric.square().sum((1, 2))
    if noise == "rademacher":
        variance = variance - 2.0 * symmetric.diagonal(dim1=1, dim2=2).square().sum(1)
    expected = variance.mean().item() / samples
    error = at.trace - exact.trace()
    assert abs(error.mean().item()) < 4.0 * (expected / draws) ** 0.5
    assert error.square().mean().item() == pytest.approx(expected, rel=0.1)
    spread = at.frobenius.std().item() / draws**0.5
    assert at.frobenius.mean().item() == pytest.approx(exact.square().sum().item(), abs=4.0 * spread)


def test_hutch_plus_plus_has_less_variance_where_few_directions_matter() -> None:
    torch.manual_seed(0)
    low_rank = torch.randn(40, 3, dtype=torch.float64) @ torch.randn(3, 40, dtype=torch.float64)
    matrix = low_rank + 0.01 * torch.randn(40, 40, dtype=torch.float64)
    y, t = torch.zeros(500, 40, dtype=torch.float64), torch.zeros(())

    def field(t: Tensor, y: Tensor) -> Tensor:
        return y @ matrix.t()

    spread = {}
    # as many products with J: six of a sketch, six with its basis, six of the estimate
    for estimate in (Hutchinson(18), HutchPlusPlus(6)):
        at = estimate(field, t, y, estimate.directions(field, t, y, (), None), ())
        spread[type(estimate)] = (at.trace - matrix.trace()).std().item()
    assert spread[HutchPlusPlus] < 0.02 * spread[Hutchinson]
