"""Third-party methods that use the step contract alone: Euler-Maruyama and symplectic Euler.

Each has the order that theory gives it, and exact gradients in every mode that has them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from contract_suite import MethodContract, Scripted
from odenet.control.controller import Attempt, ControllerState
from odenet.control.error_control import ErrorControl
from odenet.core.leaves import Leaves, add_scaled, expand_over
from odenet.methods import METHODS, Method, Step
from odenet.methods.jacobian import jacobian
from odenet.methods.matrix_layout import MatrixLayout
from odenet.methods.method import Cache, StepInput

D = torch.float64


class SymplecticEuler(Method):
    """p1 = p + h force(t0, q), q1 = q + h velocity(t1, p1). Hairer, Lubich & Wanner, (VI.3.1)."""

    name, order, error_order, parts = "symplectic_euler", 1, None, ("drift", "kick")

    def step(self, at: StepInput) -> Step:
        h = expand_over(at.t1 - at.t0, at.y)
        kicked = add_scaled(at.y, h, at.f.part("kick")(at.t0, at.y))
        return Step(add_scaled(kicked, h, at.f.part("drift")(at.t1, kicked)))


class Noisy(odenet.Terms):
    """dy = drift dt + diffusion dW for a given Wiener process; a call gives the drift alone."""

    parts = ("drift", "diffusion")

    def __init__(self, drift: Any, diffusion: Any) -> None:
        self.drift, self.diffusion = drift, diffusion

    def __call__(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        return self.drift(t, y, *args)


class EulerMaruyama(Method):
    """y1 = y + h drift(t0, y) + diffusion(t0, y) (W(t1) - W(t0)). Kloeden & Platen, (10.2.4).

    path: t -> W(t), a function of t alone, so that a step that is taken again meets the same noise.
    """

    name, order, error_order, parts = "euler_maruyama", 1, None, ("drift", "diffusion")

    def __init__(self, path: Any) -> None:
        self.path = path

    def step(self, at: StepInput) -> Step:
        h = expand_over(at.t1 - at.t0, at.y)
        moved = add_scaled(at.y, h, at.f.part("drift")(at.t0, at.y))
        noise: Leaves = (self.path(at.t1) - self.path(at.t0),)
        return Step(add_scaled(moved, noise, at.f.part("diffusion")(at.t0, at.y)))


class ROS2(Method):
    """(I - g h J) k1 = f(t0, y), (I - g h J) k2 = f(t1, y + h k1) - 2 k1, y1 = y + h (3 k1 + k2) / 2.

    L-stable, of order 2 with any J. J. G. Verwer et al., SIAM J. Sci. Comput. 20 (1999), 1456-1480.
    """

    name, order, error_order = "ros2", 2, None

    def step(self, at: StepInput) -> Step:
        rows = MatrixLayout(at.y, at.t0.ndim == 1)
        y, h = rows.to_matrix(at.y), (at.t1 - at.t0).reshape(-1, 1)
        system = torch.eye(rows.width, dtype=rows.dtype) - (1 + 0.5**0.5) * h[..., None] * jacobian(
            at.f, rows, at.t0, y
        )
        k1 = torch.linalg.solve(system, rows.to_matrix(at.f(at.t0, at.y)))
        k2 = torch.linalg.solve(system, rows.to_matrix(at.f(at.t1, rows.to_leaves(y + h * k1))) - 2 * k1)
        return Step(rows.to_leaves(y + h * (3 * k1 + k2) / 2))


class Remembering(Method):
    """Euler's method with a cache of several dtypes: how many attempts there were, and whether there was any."""

    name, order, error_order = "remembering", 1, None

    def init_cache(self, t: Tensor, y: Leaves) -> Cache:
        return torch.zeros(t.shape, dtype=torch.int32), torch.zeros((*t.shape, 2), dtype=torch.bool)

    def step(self, at: StepInput) -> Step:
        count, seen = at.cache or self.init_cache(at.t0, at.y)
        y1 = add_scaled(at.y, expand_over(at.t1 - at.t0, at.y), at.f(at.t0, at.y))
        return Step(y1, cache=(count + 1, seen | True))


def wave(t: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return -k * torch.sin(q)


PENDULUM = odenet.Partitioned(lambda t, p, k: p, wave)


class TestSymplecticEuler(MethodContract):
    method = SymplecticEuler()
    field = PENDULUM
    start = (torch.tensor([[1.0], [2.0], [0.3]], dtype=D), torch.tensor([[0.0], [0.1], [1.0]], dtype=D))
    exact: ClassVar = (*MethodContract.exact, odenet.Discrete(memory="1MiB"))

    def test_order_and_energy(self) -> None:
        """First order; the energy stays bounded over 8,000 steps, where that of Euler's method grows."""
        k, steps, errors = torch.tensor(2.0, dtype=D), (0.04, 0.02, 0.01), []
        exact = odenet.solve(PENDULUM, self.start, [0.0, 3.0], args=(k,), method="dopri8", rtol=1e-12, atol=1e-12).y1
        for h in steps:
            errors.append(float((self.solve(self.start, [0.0, 3.0], k, step=h).y1[0] - exact[0]).abs().max()))
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.15)
        q, p = self.solve(self.start, torch.linspace(0, 160, 41, dtype=D), k, step=0.02).ys
        energy = p**2 / 2 - 2.0 * torch.cos(q)
        assert float((energy - energy[0]).abs().max()) < 0.06

    def test_other_methods_take_the_whole(self) -> None:
        k = torch.tensor(2.0, dtype=D)
        whole = odenet.solve(PENDULUM, self.start, [0.0, 1.0], args=(k,))
        plain = odenet.solve(lambda t, y, k: (y[1], wave(t, y[0], k)), self.start, [0.0, 1.0], args=(k,))
        assert all(torch.equal(a, b) for a, b in zip(whole.y1, plain.y1, strict=True))

    def test_an_f_without_parts_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"symplectic_euler.*needs f in parts \(drift, kick\).*Partitioned"):
            odenet.solve(lambda t, y: y, torch.ones(2), [0.0, 1.0], method=SymplecticEuler(), step=0.1)


N = 1024


def wiener(paths: int, seed: int) -> Any:
    """A path on a grid of N steps over [0, 1], evaluated at the times of the grid only."""
    moves = torch.randn(N, paths, dtype=D, generator=torch.Generator().manual_seed(seed)) / N**0.5
    whole = torch.cat([torch.zeros(1, paths, dtype=D), moves.cumsum(0)])
    return lambda t: whole[(t.detach() * N).round().long()]


class TestEulerMaruyama:
    """Geometric Brownian motion, with the solution y0 exp((m - s^2 / 2) t + s W(t))."""

    FIELD = Noisy(lambda t, y, m, s: m * y, lambda t, y, m, s: s * y)

    def solve(self, path: Any, step: float, m: Tensor, s: Tensor, paths: int, **options: Any) -> odenet.Solution:
        y0 = torch.ones(paths, dtype=D)
        return odenet.solve(self.FIELD, y0, [0.0, 1.0], args=(m, s), method=EulerMaruyama(path), step=step, **options)

    def test_strong_order_one_half(self) -> None:
        path, paths = wiener(2000, 0), 2000
        m, s = torch.tensor(0.5, dtype=D), torch.tensor(1.0, dtype=D)
        exact = torch.exp(m - s * s / 2 + s * path(torch.tensor(1.0)))
        steps = (1 / 16, 1 / 32, 1 / 64, 1 / 128)
        errors = [float((self.solve(path, h, m, s, paths).y1 - exact).abs().mean()) for h in steps]
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(0.5, abs=0.1)

    def test_weak_order_one(self) -> None:
        """Of the mean, less the error of the exact mean over the same paths."""
        path, paths = wiener(40_000, 1), 40_000
        m, s = torch.tensor(1.0, dtype=D), torch.tensor(0.3, dtype=D)
        exact = torch.exp(m - s * s / 2 + s * path(torch.tensor(1.0))).mean()
        steps = (1 / 8, 1 / 16, 1 / 32)
        errors = [abs(float(self.solve(path, h, m, s, paths).y1.mean() - exact)) for h in steps]
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.15)

    @pytest.mark.parametrize("gradient", ["discrete", "backprop", "forward", odenet.Discrete(checkpoints=3)], ids=str)
    def test_gradients_are_exact(self, gradient: Any) -> None:
        """Against central differences of the same numerical solution, on the same path."""
        path, h = wiener(5, 2), 1e-5

        def loss(m: Tensor, s: Tensor, gradient: Any = "discrete") -> Tensor:
            return self.solve(path, 1 / 32, m, s, 5, gradient=gradient).y1.square().sum()

        m, s = (torch.tensor(x, dtype=D, requires_grad=True) for x in (0.5, 0.8))
        found = torch.autograd.grad(loss(m, s, gradient), (m, s))
        with torch.no_grad():
            exact = (loss(m + h, s) - loss(m - h, s)) / (2 * h), (loss(m, s + h) - loss(m, s - h)) / (2 * h)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


class TestROS2(MethodContract):
    method = ROS2()

    def test_order_and_stability(self) -> None:
        k, steps, errors = torch.tensor(1.3, dtype=D), (0.04, 0.02, 0.01), []
        exact = odenet.solve(self.field, self.start, [0.0, 2.0], args=(k,), method="dopri8", rtol=1e-12, atol=1e-12).y1
        for h in steps:
            errors.append(float((self.solve(self.start, [0.0, 2.0], k, step=h).y1 - exact).abs().max()))
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2.0, abs=0.15)
        y0, f = torch.tensor([2.0], dtype=D), lambda t, y: -1e6 * (y - torch.cos(t)) - torch.sin(t)
        assert float(odenet.solve(f, y0, [0.0, 2.0], method=self.method, step=0.05).y1) == pytest.approx(
            math.cos(2.0), abs=0.05
        )


class TestRemembering(MethodContract):
    method = Remembering()

    def test_the_cache_survives_rejections(self) -> None:
        asked = []

        class Watched(Remembering):
            def step(self, at: StepInput) -> Step:
                step = super().step(at)
                asked.append(int(step.cache[0]))
                return step

        odenet.solve(
            lambda t, y: -y, torch.ones(2), [0.0, 0.5], method=Watched(), controller=Scripted(0.1, (1, 2)),
            gradient="backprop",
        )  # fmt: skip
        assert asked == list(range(1, 8))


class TestTsit5(MethodContract):
    method = METHODS["tsit5"]
    options: ClassVar = {"rtol": 1e-6, "atol": 1e-8}

    @pytest.mark.slow  # tests/compiled has it at length
    def test_compile_gives_the_same(self) -> None:
        super().test_compile_gives_the_same()


class TestESDIRK(MethodContract):
    method = METHODS["esdirk54"]
    options: ClassVar = {"rtol": 1e-6, "atol": 1e-8}
    exact: ClassVar = ("discrete",)  # whose kept graphs are those of autograd; the others: tests/implicit_suite.py


def test_a_controller_of_ones_own() -> None:
    """Half the step after an error above the tolerance, the same after one below a tenth, else as PID."""

    class Halving(ErrorControl):
        def init_state(self, h: Any) -> ControllerState:
            return ()

        def factor(self, r: Any, attempt: Attempt, state: ControllerState) -> Any:
            return torch.where(r > 1.0, 0.5, 2.0) if isinstance(r, Tensor) else (0.5 if r > 1.0 else 2.0)

        def next_state(self, r: Any, attempt: Attempt, state: ControllerState) -> ControllerState:
            return ()

    y0 = torch.ones(3, 1, dtype=D)
    for per_sample in (False, True):
        sol = odenet.solve(
            lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, controller=Halving(), per_sample=per_sample
        )
        assert float((sol.y1 - math.exp(-1)).abs().max()) < 1e-7
