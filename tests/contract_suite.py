"""The requirements of the engine on every method and controller: suites to inherit for a new one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet.control.controller import Attempt, Controller, Decision
from odenet.methods import Method

D = torch.float64


def nonlinear(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    time = t[:, None] if t.ndim else t
    return torch.sin(k * y) * torch.cos(time) - 0.3 * y


class MethodContract:
    """Tests of a method against the step contract.

    method: an instance. field, start: an f, with parts where the method needs them, and initial states (B, ...).
    options: of each solve, such as a step. exact: gradients that are exact for the numerical solution.
    """

    method: Method
    field: Any = staticmethod(nonlinear)
    start: Any = torch.tensor([[0.7, -0.4], [1.2, 0.3], [-0.5, 2.0]], dtype=D)
    options: dict[str, Any] = {"step": 0.05}  # noqa: RUF012
    exact: tuple[Any, ...] = ("discrete", "forward", odenet.Discrete(checkpoints=2))

    def solve(self, y0: Any, ts: Any, k: Tensor, **options: Any) -> odenet.Solution:
        return odenet.solve(self.field, y0, ts, args=(k,), method=self.method, **(self.options | options))

    def rows(self, i: Any) -> Any:
        return self.start[i] if isinstance(self.start, Tensor) else tuple(y[i] for y in self.start)

    def flat(self, y: Any) -> Tensor:
        return y if isinstance(y, Tensor) else torch.cat([x.reshape(x.shape[0], -1) for x in y], -1)

    def test_samples_are_as_alone(self) -> None:
        """Bit for bit, over intervals of different lengths and directions: samples finish one after the other."""
        ts = torch.tensor([[0.0, 0.3, 0.31], [1.0, 0.2, -0.5], [0.0, 2.0, 2.9]], dtype=D)
        k = torch.tensor([[1.1], [0.7], [1.9]], dtype=D)
        both = self.solve(self.start, ts, k, per_sample=True)
        for i in range(3):
            one = slice(i, i + 1)
            alone = self.solve(self.rows(one), ts[one], k[one], per_sample=True)
            assert torch.equal(self.flat(alone.y1)[0], self.flat(both.y1)[i])
            for name in ("accepted", "rejected", "nfe"):
                assert int(alone.stats[name][0]) == int(both.stats[name][i])

    def test_there_and_back(self) -> None:
        """Forward in time, then backward from the end: the start again, up to the error."""
        k = torch.tensor(1.0, dtype=D)
        options = {"step": 0.001} if "step" in self.options else {}
        there = self.solve(self.start, [0.0, 0.5], k, **options)
        back = self.solve(there.y1, [0.5, 0.0], k, **options)
        torch.testing.assert_close(self.flat(back.y1), self.flat(self.start), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_exact_gradients_are_those_of_autograd(self, per_sample: bool) -> None:
        ts = torch.tensor([0.0, 0.4, 1.0], dtype=D)

        def grads(gradient: Any) -> tuple[Tensor, ...]:
            k = torch.tensor([[1.1], [0.7], [1.9]], dtype=D, requires_grad=True)
            given = [self.start] if isinstance(self.start, Tensor) else self.start
            leaves = [y.clone().requires_grad_() for y in given]
            y0 = leaves[0] if isinstance(self.start, Tensor) else tuple(leaves)
            sol = self.solve(y0, ts, k, gradient=gradient, per_sample=per_sample)
            return torch.autograd.grad(self.flat(sol.y1).square().sum(), (*leaves, k))

        expected = grads("backprop")
        assert all(float(g.abs().max()) > 1e-3 for g in expected)
        for gradient in self.exact:
            for a, b in zip(grads(gradient), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    def test_exact_gradients_are_central_differences(self) -> None:
        """Along one direction of all inputs: autograd alone would not notice an input wrongly treated as a constant."""
        ts, generator = torch.tensor([0.0, 0.3, 0.5], dtype=D), torch.Generator().manual_seed(0)
        k = torch.tensor([[1.1], [0.7], [1.9]], dtype=D)
        inputs = [k, *([self.start] if isinstance(self.start, Tensor) else self.start)]
        ways = [torch.randn(x.shape, dtype=D, generator=generator) for x in inputs]

        def loss(k: Tensor, *leaves: Tensor, gradient: Any = "discrete") -> Tensor:
            y0 = leaves[0] if isinstance(self.start, Tensor) else leaves
            return self.flat(self.solve(y0, ts, k, step=0.1, gradient=gradient).y1).square().sum()

        with torch.no_grad():
            up, down = (loss(*(x + h * w for x, w in zip(inputs, ways, strict=True))) for h in (1e-5, -1e-5))
        for gradient in self.exact:
            leaves = [x.clone().requires_grad_() for x in inputs]
            grads = torch.autograd.grad(loss(*leaves, gradient=gradient), leaves)
            found = sum(float((g * w).sum()) for g, w in zip(grads, ways, strict=True))
            assert found == pytest.approx(float(up - down) / 2e-5, rel=1e-7)

    def test_a_rejection_changes_only_the_cache(self) -> None:
        """An attempt that is rejected and repeated with the same size gives the same step."""
        k = torch.tensor(1.0, dtype=D)
        plain = self.solve(self.start, [0.0, 0.5], k, step=None, controller=Scripted(0.1, ()))
        twice = self.solve(self.start, [0.0, 0.5], k, step=None, controller=Scripted(0.1, (1, 3, 4)))
        assert twice.stats.rejected == 3 and twice.stats.accepted == plain.stats.accepted
        torch.testing.assert_close(self.flat(twice.y1), self.flat(plain.y1), rtol=1e-8, atol=1e-10)

    def test_compile_gives_the_same(self) -> None:
        """Compiled, or eager with one warning that gives the reason."""
        k = torch.tensor(1.0, dtype=D)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compile=True")
            compiled = self.solve(self.start, [0.0, 0.5], k, compile=True)
        plain = self.solve(self.start, [0.0, 0.5], k)
        torch.testing.assert_close(self.flat(compiled.y1), self.flat(plain.y1), rtol=1e-10, atol=1e-12)


class Scripted(Controller):
    """Steps of size h; rejects the attempts whose indices are in `reject`."""

    adaptive, every_output, stretch = False, False, 1.0

    def __init__(self, h: float, reject: tuple[int, ...]) -> None:
        self.h, self.reject, self.count = h, reject, 0

    def init_state(self, h: Any) -> Any:
        return ()

    def initial_step(self, h: Any) -> Any:
        return h * 0.0 + self.h

    def decide(self, attempt: Attempt, state: Any) -> Any:
        accept = self.count not in self.reject
        self.count += 1
        return Decision(accept, self.h, (), False)


class ControllerContract:
    """Tests of a controller that uses error estimates. controller: an instance."""

    controller: Controller
    ratios = (0.0, 1e-12, 1e-3, 0.5, 1.0, 1.1, 30.0, 1e30, math.inf)

    @pytest.mark.parametrize("rejected", [False, True])
    def test_tensors_are_as_floats(self, rejected: bool) -> None:
        c = self.controller
        for ratio in self.ratios:
            one = c.decide(Attempt(0.1, ratio, 4, None, rejected), c.init_state(0.1))
            h = torch.full((2,), 0.1, dtype=D)
            flags = torch.full((2,), rejected)
            many = c.decide(Attempt(h, torch.full((2,), ratio, dtype=D), 4, None, flags), c.init_state(h))
            assert many.accept.tolist() == [one.accept] * 2
            assert many.h.tolist() == pytest.approx([one.h] * 2, rel=1e-6)
            assert many.failed.tolist() == [one.failed] * 2

    def test_what_is_accepted(self) -> None:
        """Steps within the tolerance; a rejected step shrinks, and a step that is not finite is rejected."""
        c = self.controller
        for ratio in self.ratios:
            decision = c.decide(Attempt(0.1, ratio, 4), c.init_state(0.1))
            assert decision.accept == (ratio <= 1.0)
            assert decision.accept or decision.h < 0.1

    def test_no_step_grows_after_a_rejection(self) -> None:
        """Hairer, Norsett & Wanner I, II.4; one step later it may grow."""
        c = self.controller
        after = c.decide(Attempt(0.1, 1e-8, 4, None, True), c.init_state(0.1))
        assert after.accept and after.h <= 0.1
        assert c.decide(Attempt(0.1, 1e-8, 4, None, False), after.state).h > 0.1
