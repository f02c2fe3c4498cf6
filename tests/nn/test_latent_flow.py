"""The latent state at times of each sample's own, against the exponential of a matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from latent_models import MATRIX, LinearField
from odenet.nn import ODERNN, GRUODEBayes, LatentODE, LogODE, NeuralCDE
from odenet.nn.latent.latent_flow import LatentFlow


def flow(start: float = 0.25, intensity: nn.Module | None = None, **options: Any) -> LatentFlow:
    tight: Any = {"rtol": 1e-10, "atol": 1e-12} | options
    return LatentFlow(LinearField(MATRIX), intensity, start, tight).double()


def exact(z0: Tensor, elapsed: Tensor) -> Tensor:
    return (torch.linalg.matrix_exp(elapsed[..., None, None] * MATRIX) @ z0[:, :, None, :, None])[..., 0]


def start_states() -> Tensor:
    return torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


TIMES = {
    "after": torch.tensor([[0.3, 0.9, 0.9], [0.25, 0.25, 0.25], [2.0, 0.4, 1.0]], dtype=torch.float64),
    "before": torch.tensor([[-1.0, 0.1, 0.1], [0.0, 0.2, 0.2], [0.2, -0.7, 0.0]], dtype=torch.float64),
    "both": torch.tensor([[0.3, -0.9, 0.9], [0.25, 0.25, 0.25], [-2.0, -0.4, -0.1]], dtype=torch.float64),
    "shared": torch.tensor([-0.9, 0.1, 0.3], dtype=torch.float64).expand(3, 3),
    "shared, out of order": torch.tensor([0.3, -0.9, 0.3], dtype=torch.float64).expand(3, 3),
    "one": torch.tensor([[0.3], [0.2], [0.25]], dtype=torch.float64),
}


@pytest.mark.parametrize("per_sample", [{}, {"per_sample": False}, {"per_sample": True}], ids=str)
@pytest.mark.parametrize("name", TIMES)
def test_times_in_any_order_on_both_sides_of_the_start(name: str, per_sample: dict[str, bool]) -> None:
    z0, ts = start_states(), TIMES[name]
    z = flow(**per_sample)(z0, ts)
    assert z.shape == (2, 3, ts.shape[1], 2)
    torch.testing.assert_close(z, exact(z0, ts - 0.25).detach(), atol=1e-8, rtol=0)


def test_times_that_no_sample_shares_are_solved_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from odenet.nn.latent import latent_flow

    chosen: list[bool] = []

    def recording(*args: Any, **options: Any) -> Any:
        chosen.append(options["per_sample"])
        return solve(*args, **options)

    solve = latent_flow.solve
    monkeypatch.setattr(latent_flow, "solve", recording)
    z0 = torch.randn(1, 20, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    own = 0.25 + torch.rand(20, 6, dtype=torch.float64, generator=generator)
    shared = own[:1].expand(20, 6)
    for ts in (own, shared):
        torch.testing.assert_close(flow()(z0, ts), exact(z0, ts - 0.25).detach(), atol=1e-8, rtol=0)
    assert chosen == [True, False]


@pytest.mark.parametrize("per_sample", [False, True])
def test_derivatives_with_respect_to_states_and_times(per_sample: bool) -> None:
    ts = TIMES["both"][1:, 1:].clone().requires_grad_()  # after and before the start
    z0 = start_states()[:1, 1:].clone().requires_grad_()
    solver = LatentFlow(LinearField(MATRIX), None, 0.25, {"method": "rk4", "step": 0.02, "per_sample": per_sample})
    assert gradcheck(solver.double(), (z0, ts), atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_integrals_of_rates(per_sample: bool) -> None:
    """The rate exp(w z) of a decaying z has the integral of a fine quadrature, negative before the start."""
    net = nn.Linear(2, 3).double()
    z0, ts = start_states(), TIMES["both"]
    solver = flow(intensity=net, per_sample=per_sample)
    z, log_rates, integrals = solver.with_integrals(z0, ts)
    torch.testing.assert_close(z, exact(z0, ts - 0.25).detach(), atol=1e-8, rtol=0)
    torch.testing.assert_close(log_rates, net(z))
    nodes = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64)
    for q in range(ts.shape[1]):
        elapsed = (ts[:, q, None] - 0.25) * nodes
        values = net(exact(z0, elapsed)).exp()  # (S, B, nodes, 3)
        quadrature = torch.trapezoid(values, nodes, dim=2) * (ts[:, q] - 0.25)[:, None]
        torch.testing.assert_close(integrals[:, :, q], quadrature, atol=1e-5, rtol=1e-5)


def test_no_times_and_no_samples() -> None:
    assert flow()(start_states(), torch.zeros(3, 0, dtype=torch.float64)).shape == (2, 3, 0, 2)
    none = torch.zeros(2, 0, 2, dtype=torch.float64)
    assert flow()(none, torch.zeros(0, 4, dtype=torch.float64)).shape == (2, 0, 4, 2)


@pytest.mark.parametrize(
    "option", [{"dense": True}, {"save": lambda t, z: z}, {"on_failure": "return"}], ids=lambda o: next(iter(o))
)
def test_options_that_need_a_solution_are_refused(option: dict[str, Any]) -> None:
    for model in (LatentODE, ODERNN, GRUODEBayes, NeuralCDE, LogODE):
        with pytest.raises(ValueError, match=f"is no option of {model.__name__}, which needs the states"):
            model(2, **option)


def test_a_misspelt_keyword_of_the_model_is_named() -> None:
    with pytest.raises(TypeError, match=r"'controls' is unknown\. Did you mean 'control'"):
        NeuralCDE(2, controls="linear")  # pyright: ignore[reportCallIssue]
