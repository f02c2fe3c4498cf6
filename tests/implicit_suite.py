"""What every implicit method must show beside `MethodSuite`."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from method_suite import MethodSuite
from odenet.methods import METHODS, ImplicitRK, stages

D = torch.float64


def stiff(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Prothero & Robinson's problem with rates of 1 and k; its solution is cos(t) from y0 = 1."""
    time = t[..., None] if t.ndim else t
    rates = torch.stack([torch.ones_like(k), k])
    return -rates * (y - torch.cos(time)) - torch.sin(time)


def coupled(t: Tensor, y: Tensor, W: Tensor) -> Tensor:
    time = t.reshape(t.shape + (1,) * (y.ndim - t.ndim)) if t.ndim else t
    return torch.tanh(y @ W) * torch.cos(time) - y**3


class ImplicitSuite(MethodSuite):
    counts = ("accepted", "rejected")  # a sample is evaluated while another one iterates

    def options(self, tol: float = 1e-6) -> dict[str, Any]:
        return {"step": 0.05}

    def test_stiff(self) -> None:
        """A rate of 1e6 at steps of 0.1: bounded, and near the slow solution."""
        k = torch.tensor(1e6, dtype=D)
        sol = odenet.solve(stiff, torch.ones(2, dtype=D), [0.0, 2.0], args=(k,), method=self.name, step=0.1)
        exact = torch.cos(torch.tensor(2.0, dtype=D))
        assert float((sol.y1 - exact).abs().max()) < (0.05 if self.order == 1 else 5e-3)

    @pytest.mark.parametrize("dense", [True, False])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_gradients(self, per_sample: bool, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the implicit function theorem, with a matrix and without one: as central differences."""
        if not dense:
            monkeypatch.setattr(stages, "DENSE", 0)
        generator = torch.Generator().manual_seed(0)
        y0, W = torch.randn(2, 3, dtype=D, generator=generator), torch.randn(3, 3, dtype=D, generator=generator)
        ts = torch.tensor([0.0, 0.15, 0.3], dtype=D)

        def loss(y0: Tensor, W: Tensor, ts: Tensor, gradient: object = "discrete") -> Tensor:
            given = {"method": self.name, "step": 0.1, "per_sample": per_sample, "gradient": gradient}
            return odenet.solve(coupled, y0, ts, args=(W,), **given).ys.square().sum()

        inputs = [x.clone().requires_grad_() for x in (y0, W, ts)]
        for gradient in ("discrete", "backprop", odenet.Discrete(checkpoints=2), "forward") if dense else ("discrete",):
            mine = torch.autograd.grad(loss(*inputs, gradient=gradient), inputs)
            h = 1e-5
            for i, grad in enumerate(mine):
                bump = torch.randn(grad.shape, dtype=D, generator=generator)
                moved = [
                    loss(*(x.detach() + (s * h * bump if j == i else 0) for j, x in enumerate(inputs))) for s in (1, -1)
                ]
                assert float((grad * bump).sum()) == pytest.approx(float(moved[0] - moved[1]) / (2 * h), rel=1e-6)

    def test_second_derivatives(self) -> None:
        y0 = torch.tensor([0.3, -0.8], dtype=D)
        W = torch.tensor([[0.4, -1.0], [0.7, 0.2]], dtype=D, requires_grad=True)
        for gradient in ("backprop", "discrete"):
            assert torch.autograd.gradgradcheck(
                lambda W, how=gradient: odenet.solve(
                    coupled, y0, [0.0, 0.2], args=(W,), method=self.name, step=0.1, gradient=how
                ).y1.sum(),
                (W,),
            )

    def test_without_a_matrix_the_solution_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        y0 = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1))
        W = torch.randn(3, 3, dtype=D, generator=torch.Generator().manual_seed(2))
        given = {"args": (W,), "method": self.name, "step": 0.1}
        whole = odenet.solve(coupled, y0, [0.0, 1.0], **given).y1
        monkeypatch.setattr(stages, "DENSE", 0)
        torch.testing.assert_close(odenet.solve(coupled, y0, [0.0, 1.0], **given).y1, whole, rtol=1e-12, atol=1e-13)

    def test_too_few_iterations_warn(self) -> None:
        method = METHODS[self.name]
        assert isinstance(method, ImplicitRK)
        few = ImplicitRK(method.tableau, max_iters=1)
        with pytest.warns(odenet.ConvergenceWarning, match=r"did not converge in 1 iterations.*max_iters"):
            odenet.solve(
                coupled, torch.ones(3, dtype=D), [0.0, 0.5], args=(torch.eye(3, dtype=D),), method=few, step=0.5
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            odenet.solve(
                coupled, torch.ones(3, dtype=D), [0.0, 0.5], args=(torch.eye(3, dtype=D),), method=method, step=0.5
            )
