"""The requirements on every built-in method; a new one subclasses `MethodSuite` with its name and order."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odenet
from odenet.methods import METHODS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
PER_SAMPLE_DTYPES = (torch.float64, torch.float32, torch.complex64, torch.bfloat16)


def forced(t: Tensor, y: Tensor) -> Tensor:
    """Nonlinear, and depends on t."""
    return torch.sin(y) * torch.cos(2 * t) - 0.5 * y + t * t


def reference(y0: Tensor, t1: float, t0: float = 0.0) -> np.ndarray:
    """SciPy's DOP853 near machine precision."""

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return np.sin(y) * np.cos(2 * t) - 0.5 * y + t * t

    return solve_ivp(f, (t0, t1), y0.numpy(), method="DOP853", rtol=3e-14, atol=1e-14).y[:, -1]


def decay(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Elementwise; `rate` has a row for each sample."""
    time = t.reshape(t.shape + (1,) * (y.ndim - t.ndim)) if t.ndim else t
    return (-rate * y * y.abs() + time.to(rate.dtype) * rate).to(y.dtype)


class MethodSuite:
    name: ClassVar[str]
    order: ClassVar[int]
    steps: ClassVar[tuple[float, ...]] = (0.1, 0.05, 0.025, 0.0125)
    overrun: ClassVar[float] = 30.0  # limit of the error of a solve, in tolerances
    beyond: ClassVar[float] = 0.0  # how far past its end a step evaluates f, in its length
    counts: ClassVar[tuple[str, ...]] = ("nfe", "accepted", "rejected")  # independent of the batch

    @property
    def adaptive(self) -> bool:
        return METHODS[self.name].error_order is not None

    def options(self, tol: float = 1e-6) -> dict[str, Any]:
        return {"rtol": tol, "atol": tol} if self.adaptive else {"step": 0.02}

    def errors(self, dtype: torch.dtype, steps: tuple[float, ...]) -> list[float]:
        y0 = torch.tensor([0.3, 1.2, -0.7], dtype=torch.float64)
        exact = torch.as_tensor(reference(y0, 1.0)).to(dtype)
        out = []
        for step in steps:
            sol = odenet.solve(forced, y0.to(dtype), [0.0, 1.0], method=self.name, step=step)
            out.append(float((sol.y1 - exact).abs().max()))
        return out

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    def test_order(self, dtype: torch.dtype) -> None:
        """The slope of log error against log step is the nominal order."""
        errors = self.errors(dtype, self.steps)
        slope = np.polyfit(np.log(self.steps), np.log(errors), 1)[0]
        assert slope == pytest.approx(self.order, abs=0.3), errors

    def test_order_float32(self) -> None:
        """Above float32 round-off the error falls at least as the order says."""
        coarse, fine = self.errors(torch.float32, (0.25, 0.125))
        assert fine < 4e-6 or math.log2(coarse / fine) > self.order - 0.5

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, dtype: torch.dtype) -> None:
        """Results come back in y0's dtype; time keeps that of ts."""
        seen = []

        def f(t: Tensor, y: Tensor) -> Tensor:
            assert y.dtype == dtype
            seen.append(t.dtype)
            return -y

        y0 = torch.ones(3).to(dtype)
        sol = odenet.solve(f, y0, [0.0, 1.0], method=self.name, **self.options(1e-3))
        assert sol.ys.dtype == sol.y1.dtype == dtype
        assert set(seen) == {torch.float64}
        assert abs(complex(sol.y1[0]) - math.exp(-1)) < 0.02
        seen.clear()
        odenet.solve(f, y0, torch.tensor([0.0, 1.0], dtype=torch.float32), method=self.name, **self.options(1e-3))
        wide = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
        assert set(seen) == {wide}

    def test_decreasing_time(self) -> None:
        y0 = torch.tensor([0.3, 1.2, -0.7], dtype=torch.float64)
        tight = {"rtol": 1e-9, "atol": 1e-9}
        options = tight if self.order > 2 and self.adaptive else {"step": 1e-2 if self.order > 2 else 1e-3}
        sol = odenet.solve(forced, y0, [1.0, 0.0], method=self.name, **options)
        exact = torch.as_tensor(reference(y0, 0.0, 1.0))
        assert float((sol.y1 - exact).abs().max()) < (5e-3 if self.order == 1 else 1e-6)

    def test_constant_steps_end_at_every_output_and_stay_inside(self) -> None:
        ts = [0.1, 0.35, 0.35, 0.8, 1.3]
        times: list[float] = []

        def f(t: Tensor, y: Tensor) -> Tensor:
            times.append(float(t))
            return -y

        one = torch.ones(1, dtype=torch.float64)
        sol = odenet.solve(f, one, ts, method=self.name, step=0.1)
        assert min(times) >= 0.1 and max(times) <= 1.3 + 0.1 * self.beyond
        assert sol.stats.accepted == 3 + 5 + 5 and sol.stats.rejected == 0
        for a, b, y0, y1 in zip(ts[:-1], ts[1:], sol.ys[:-1], sol.ys[1:], strict=True):
            alone = odenet.solve(f, y0, [a, b], method=self.name, step=0.1).y1
            assert torch.equal(alone, y1)

    @pytest.mark.parametrize("dense", [False, True])
    def test_never_outside_and_counts_are_true(self, dense: bool) -> None:
        for ts in ([0.0, 0.3, 0.7], [0.7, 0.1, 0.0]):
            times: list[float] = []

            def f(t: Tensor, y: Tensor, times: list[float] = times) -> Tensor:
                assert t.ndim == 0
                times.append(float(t))
                return forced(t, y)

            y0 = torch.tensor([0.3, 1.2], dtype=torch.float64)
            sol = odenet.solve(f, y0, ts, method=self.name, dense=dense, **self.options())
            assert min(times) >= -0.7 * self.beyond and max(times) <= 0.7 * (1 + self.beyond)
            assert sol.stats.nfe == sol.stats["nfe"] == len(times)

    def test_pytree(self) -> None:
        """A dict of tensors is solved like one tensor, and comes back as a dict."""
        y0 = torch.tensor([[0.3, 1.2], [-0.7, 0.1]], dtype=torch.float64)

        def f(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
            return {"a": forced(t, y["a"]), "b": (forced(t, y["b"][0]),)}

        options = self.options()
        whole = odenet.solve(forced, y0, [0.0, 0.5, 1.0], method=self.name, **options)
        split = odenet.solve(f, {"a": y0[0], "b": (y0[1],)}, [0.0, 0.5, 1.0], method=self.name, **options)
        torch.testing.assert_close(split.ys["a"], whole.ys[:, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(split.ys["b"][0], whole.ys[:, 1], rtol=1e-12, atol=1e-12)

    def test_dense_output(self) -> None:
        """sol(t) is the solution between the steps, to an order of at least min(order, 3)."""
        y0 = torch.tensor([0.3, 1.2, -0.7], dtype=torch.float64)
        worst = []
        for step in (0.1, 0.05):
            sol = odenet.solve(forced, y0, [0.0, 1.0], method=self.name, step=step, dense=True)
            t = torch.tensor([0.033, 0.512, 0.777], dtype=torch.float64)
            exact = torch.stack([torch.as_tensor(reference(y0, float(x))) for x in t])
            worst.append(float((sol(t) - exact).abs().max()))
            torch.testing.assert_close(sol(1.0), sol.y1, rtol=1e-13, atol=1e-13)
        assert math.log2(worst[0] / worst[1]) > min(self.order, 3) - 0.5

    @pytest.mark.parametrize("dtype", PER_SAMPLE_DTYPES)
    def test_per_sample_is_as_alone(self, dtype: torch.dtype) -> None:
        """Bit for bit, with own times and args: as in a joint solve of the sample, and in a batch of one.

        Rows fill vector registers: PyTorch's products of complex64 round otherwise in the rest of a row (AVX2).
        """
        generator = torch.Generator().manual_seed(0)
        real = torch.zeros((), dtype=dtype).abs().dtype
        y0 = torch.randn(5, 8, generator=generator).to(dtype)
        rate = (torch.rand(5, 1, generator=generator) * 8 + 0.1).to(real)
        ts = torch.rand(5, 3, generator=generator, dtype=torch.float64).sort(1).values
        options = self.options(1e-4)
        both = odenet.solve(decay, y0, ts, args=(rate,), method=self.name, per_sample=True, **options)
        for i in range(5):
            one = slice(i, i + 1)
            alone = odenet.solve(decay, y0[i], ts[i], args=(rate[i],), method=self.name, **options)
            batch = odenet.solve(
                decay, y0[one], ts[one], args=(rate[one],), method=self.name, per_sample=True, **options
            )
            assert torch.equal(alone.ys, both.ys[i]) and torch.equal(batch.ys[0], both.ys[i])
            for key in self.counts:
                assert alone.stats[key] == int(both.stats[key][i]) == int(batch.stats[key][0])

    def test_error_falls_with_tolerance(self) -> None:
        if not self.adaptive:
            with pytest.raises(ValueError, match="step"):
                odenet.solve(forced, torch.ones(1), [0.0, 1.0], method=self.name)
            return
        y0 = torch.tensor([0.3, 1.2, -0.7], dtype=torch.float64)
        ts = [0.25 * n for n in range(9)]  # most of them inside steps
        exact = torch.stack([torch.as_tensor(reference(y0, t)) for t in ts[1:]])
        errors = []
        for tol in (1e-3, 1e-6) if self.order < 5 else (1e-3, 1e-9):
            sol = odenet.solve(forced, y0, ts, method=self.name, rtol=tol, atol=tol)
            errors.append(float((sol.ys[1:] - exact).abs().max()))
            assert errors[-1] < self.overrun * tol
        assert errors[1] < errors[0]
