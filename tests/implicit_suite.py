"""The requirements on every implicit method, in addition to those of `MethodSuite`."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from method_suite import PER_SAMPLE_DTYPES, MethodSuite
from odenet.methods import METHODS, ImplicitRK, linear_solvers
from slow_cases import slow_unless

D = torch.float64


def stiff(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Prothero & Robinson's problem with rates of 1 and k; its solution is cos(t) from y0 = 1."""
    time = t[..., None] if t.ndim else t
    rates = torch.stack([torch.ones_like(k), k])
    return -rates * (y - torch.cos(time)) - torch.sin(time)


def coupled(t: Tensor, y: Tensor, W: Tensor) -> Tensor:
    time = t.reshape(t.shape + (1,) * (y.ndim - t.ndim)) if t.ndim else t
    return torch.tanh(y @ W) * torch.cos(time) - y**3


@cache
def stiff_gradients(method: str, gradient: object, tol: float, per_sample: bool) -> tuple[Tensor, ...]:
    """Of two outputs of a nonlinear stiff system, to its start and its rates."""
    k = torch.tensor([[3.0, 400.0], [2.0, 90.0]], dtype=D)[: 1 + per_sample].squeeze(0).requires_grad_()
    y0 = torch.tensor([[1.0, 0.5], [0.7, 1.2]], dtype=D)[: 1 + per_sample].squeeze(0).requires_grad_()

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return torch.stack([-k[..., 0] * a * b, k[..., 1] * (a * a - b)], -1)

    sol = odenet.solve(
        f, y0, [0.0, 0.4, 1.0], args=(k,), method=method, gradient=gradient, rtol=tol, atol=tol,
        per_sample=per_sample, max_steps=200_000,
    )  # fmt: skip
    return torch.autograd.grad(sol.ys.square().sum(), (y0, k))


class ImplicitSuite(MethodSuite):
    counts = ("accepted", "rejected")  # nfe is not: f is evaluated for all samples while one iterates

    def options(self, tol: float = 1e-6) -> dict[str, Any]:
        return {"step": 0.05}

    @pytest.mark.parametrize("dtype", slow_unless(PER_SAMPLE_DTYPES, torch.float64, torch.complex64))
    def test_per_sample_is_as_alone(self, dtype: torch.dtype) -> None:
        super().test_per_sample_is_as_alone(dtype)

    def test_stiff(self) -> None:
        """A rate of 1e6 at steps of 0.1: bounded, and near the slow solution."""
        k = torch.tensor(1e6, dtype=D)
        sol = odenet.solve(stiff, torch.ones(2, dtype=D), [0.0, 2.0], args=(k,), method=self.name, step=0.1)
        exact = torch.cos(torch.tensor(2.0, dtype=D))
        assert float((sol.y1 - exact).abs().max()) < (0.05 if self.order == 1 else 5e-3)

    @pytest.mark.parametrize(
        ("per_sample", "dense"), slow_unless(itertools.product((False, True), repeat=2), (False, False), (True, True))
    )
    def test_gradients(self, per_sample: bool, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the implicit function theorem, with a factorised matrix and matrix-free: equal to central differences."""
        if not dense:
            monkeypatch.setattr(linear_solvers, "MAX_DENSE", 0)
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

    def test_the_matrix_free_solution_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        y0 = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1))
        W = torch.randn(3, 3, dtype=D, generator=torch.Generator().manual_seed(2))
        given = {"args": (W,), "method": self.name, "step": 0.1}
        whole = odenet.solve(coupled, y0, [0.0, 1.0], **given).y1
        monkeypatch.setattr(linear_solvers, "MAX_DENSE", 0)
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


class AdaptiveImplicitSuite(ImplicitSuite):
    """The requirements on the same methods with error control."""

    counts = ("nfe", "accepted", "rejected", "njev", "nlu")

    def options(self, tol: float = 1e-6) -> dict[str, Any]:
        return {"rtol": tol, "atol": tol}

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_stiff_with_tolerances(self, per_sample: bool) -> None:
        """Few steps with a rate of 1e6; with per_sample, rates of 1e6, 1e-3 and 1e9 in one batch."""
        k = torch.tensor([1e6, 1e-3, 1e9] if per_sample else 1e6, dtype=D)
        y0, exact = torch.ones(3, 2, dtype=D) if per_sample else torch.ones(2, dtype=D), math.cos(10.0)

        def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            time, rates = t[..., None], torch.stack([torch.ones_like(k), k], -1)
            return -rates * (y - torch.cos(time)) - torch.sin(time)

        sol = odenet.solve(f, y0, [0.0, 10.0], args=(k,), method=self.name, rtol=1e-6, atol=1e-6, per_sample=per_sample)
        assert float((sol.y1 - exact).abs().max()) < 1e-3 if self.order == 2 else 1e-4
        assert int(torch.as_tensor(sol.stats.accepted).max()) < 2000
        assert int(torch.as_tensor(sol.stats.njev).max()) < int(torch.as_tensor(sol.stats.accepted).max())  # used again

    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize(
        "gradient",
        slow_unless(["discrete", "backprop", odenet.Discrete(checkpoints=3), "forward", "gauss"], "discrete", "gauss"),
        ids=str,
    )
    def test_gradients_with_tolerances(self, gradient: object, per_sample: bool) -> None:
        """Close to those at tight tolerances, for a nonlinear stiff system and its parameters."""
        close = 3e-3 if self.order == 2 else 2e-4
        exact = stiff_gradients("dopri8", "backprop", 1e-9, per_sample)
        for a, b in zip(stiff_gradients(self.name, gradient, 1e-6, per_sample), exact, strict=True):
            assert float((a - b).norm() / b.norm()) < close

    def test_a_sample_that_cannot_be_solved_ends_alone(self) -> None:
        """With an error that says why; the other samples are bit for bit as without it."""

        def f(t: Tensor, y: Tensor, bad: Tensor) -> Tensor:
            # the slope of a bad sample jumps near its start: no step of ordinary length satisfies its equations
            return torch.where(bad, -1e9 * torch.where(y > 0.5, 1.0, -1.0), -y * y)

        y0 = torch.tensor([[1.0], [0.5], [1.2]], dtype=D)
        given: dict[str, Any] = {"method": self.name, "rtol": 1e-6, "atol": 1e-8, "per_sample": True}
        given["controller"] = odenet.Predictive(first_step=0.01)
        bad = torch.tensor([[False], [True], [False]])
        sol = odenet.solve(f, y0, [0.0, 1.0], args=(bad,), on_failure="return", **given)
        assert sol.status.tolist() == [0, int(odenet.Status.NONLINEAR_FAILED), 0]
        alone = odenet.solve(f, y0[[0, 2]], [0.0, 1.0], args=(bad[[0, 2]],), **given)
        assert torch.equal(sol.y1[[0, 2]], alone.y1)
        assert torch.equal(sol.stats.nfe[[0, 2]], alone.stats.nfe)
        with pytest.raises(
            odenet.NonlinearSolveError, match=r"sample 1.*Newton's iteration failed in the last \d+ attempts"
        ):
            odenet.solve(f, y0, [0.0, 1.0], args=(bad,), **given)

    def test_large_states_are_solved_matrix_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The heat equation on a grid, with a factorised matrix and matrix-free."""
        n = 40
        y0 = torch.sin(torch.linspace(0, math.pi, n, dtype=D))

        def f(t: Tensor, y: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(y, (1, 1))
            return (padded[2:] - 2 * y + padded[:-2]) * n * n / math.pi**2

        given: dict[str, Any] = {"method": self.name, "rtol": 1e-6, "atol": 1e-9}
        whole = odenet.solve(f, y0, [0.0, 0.5], **given)
        monkeypatch.setattr(linear_solvers, "MAX_DENSE", 0)
        free = odenet.solve(f, y0, [0.0, 0.5], **given)
        torch.testing.assert_close(free.y1, whole.y1, rtol=1e-4, atol=1e-6)
        assert free.stats.nlu == 0 < whole.stats.nlu
