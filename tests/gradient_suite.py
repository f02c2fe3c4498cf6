"""The contract of every gradient; a new one subclasses `GradientSuite` and states its accuracy."""

from __future__ import annotations

import functools
import gc
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import odenet
from odenet.api.peak_memory import PeakMemory
from odenet.gradients import state_store
from slow_cases import slow_unless

D = torch.float64


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 3, dtype=D)

    def forward(self, t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        time = t[:, None] if t.ndim else t
        return torch.tanh(self.inner(y)) * torch.cos(time) - k * y


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


class GradientSuite:
    name: ClassVar[str]
    exact: ClassVar[bool]
    states_a_step: ClassVar[float]  # by which the peak of training memory grows, at most
    evaluates_backwards: ClassVar[bool] = True
    gradient: ClassVar[Any] = None  # an instance, where the name alone does not say it

    @property
    def how(self) -> Any:
        return self.gradient or self.name

    def same_solution(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options with which `backprop` has the same numerical solution."""
        return options

    def close(self, mine: Any, exact: Any, tol: float = 1e-8) -> None:
        """Equal to rounding for an exact gradient, else within a hundred tolerances of the numerical solution's."""
        for a, b in zip(mine, exact, strict=True):
            assert relative(a, b) < (1e-12 if self.exact else 100 * tol), (a, b)

    def exactly(self, **options: Any) -> tuple[Tensor, ...]:
        """By `backprop`, of the same numerical solution."""
        method = self.same_solution({"method": options.get("method", "dopri8")})
        return self.gradients("backprop", **options | method)

    def gradients(self, gradient: Any, **options: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        f, k = Field(), torch.rand(3, dtype=D, requires_grad=True)
        y0 = torch.randn(4, 3, dtype=D, requires_grad=True)
        ts = options.pop("ts", torch.tensor([0.0, 0.3, 0.3, 1.1, 1.6], dtype=D))
        ts = ts.clone().requires_grad_()
        loss = options.pop("loss", "ys")
        options = {"rtol": 1e-8, "atol": 1e-8, "method": "dopri8"} | options
        sol = odenet.solve(f, y0, ts, args=(k,), gradient=gradient, **options)
        weights = torch.linspace(1, 2, sol.ys.numel(), dtype=D).view(sol.ys.shape)
        value = {
            "ys": lambda: (sol.ys**2 * weights).sum(),
            "y1": lambda: sol.y1.sin().sum(),
            "dense": lambda: (sol(torch.tensor([0.9, 0.2], dtype=D)) ** 3).sum() + sol.y1.sum(),
        }[loss]()
        return torch.autograd.grad(value, (y0, ts, k, *f.parameters()))

    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("loss", ["ys", "y1", "dense"])
    def test_against_backprop(self, per_sample: bool, loss: str) -> None:
        options = {"per_sample": per_sample, "loss": loss, "dense": loss == "dense"}
        self.close(self.gradients(self.how, **options), self.exactly(**options), 1e-7)

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_constant_steps_and_decreasing_time(self, per_sample: bool) -> None:
        ts = torch.tensor([1.0, 0.4, 0.0], dtype=D)
        options = {"ts": ts, "method": "rk4", "step": 0.01, "per_sample": per_sample}
        self.close(self.gradients(self.how, **options), self.exactly(**options))

    def test_own_times_per_sample(self) -> None:
        """Times repeated at the start, inside and at the end; one sample has zero length."""
        ts = torch.tensor(
            [[0.0, 0.5, 0.5, 1.0], [1.0, 0.7, 0.2, 0.2], [0.0, 0.0, 0.1, 2.0], [0.3, 0.3, 0.3, 0.3]], dtype=D
        )
        options = {"ts": ts, "per_sample": True}
        self.close(self.gradients(self.how, **options), self.exactly(**options), 1e-7)

    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("method", ["tsit5", "dopri8", "rk4"])
    def test_repeated_times(self, method: str, per_sample: bool) -> None:
        """An output depends on its own time alone: dy(t_j)/dt_j = f, also if times coincide or are ends of steps."""
        options: dict[str, Any] = {"step": 0.01} if method == "rk4" else {"controller": odenet.PID(step_ts=[0.5])}
        ts = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], dtype=D, requires_grad=True)
        rate = torch.tensor([-0.5, 0.3], dtype=D)
        y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=D, requires_grad=True)
        sol = odenet.solve(
            lambda t, y: rate * y, y0, ts, method=method, rtol=1e-9, atol=1e-9, gradient=self.how,
            per_sample=per_sample, **options,
        )  # fmt: skip
        ys = sol.ys.transpose(0, 1) if per_sample else sol.ys
        weights = torch.rand(ys.shape, dtype=D, generator=torch.Generator().manual_seed(0))
        mine = torch.autograd.grad((ys * weights).sum(), (ts, y0))
        length = (ts - ts[0])[:, None, None]
        exact = torch.autograd.grad((y0 * torch.exp(rate * length) * weights).sum(), (ts, y0))
        for a, b in zip(mine, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

    def test_central_differences(self) -> None:
        """Against differences of the same numerical solution (constant steps)."""
        y0 = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)
        k = torch.tensor(0.7, dtype=D, requires_grad=True)

        def end(y: Tensor, rate: Tensor) -> Tensor:
            sol = odenet.solve(
                lambda t, x, r: torch.sin(x) * r + t, y, [0.0, 1.0], args=(rate,), method="rk4", step=0.05,
                gradient=self.how,
            )  # fmt: skip
            return (sol.y1**2).sum()

        gy, gk = torch.autograd.grad(end(y0, k), (y0, k))
        h = 1e-5
        with torch.no_grad():
            dk = (end(y0, k + h) - end(y0, k - h)) / (2 * h)
            dy = torch.stack([(end(y0 + e, k) - end(y0 - e, k)) / (2 * h) for e in h * torch.eye(2, dtype=D)])
        tol = 1e-7 if self.exact else 1e-5
        assert relative(gy, dy) < tol and relative(gk, dk) < tol

    @pytest.mark.parametrize("jumps", [False, True])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_memory_per_step(self, per_sample: bool, jumps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes of tensors alive at the peak of a forward and a backward pass, per step and in units of the state.

        jumps: f may jump at the end of every step.
        """
        y0, w = torch.ones(4, 4096, dtype=D), torch.tensor(0.5, dtype=D, requires_grad=True)
        monkeypatch.setattr(state_store, "GRAPH_BYTES", 8 * y0.nbytes)  # two steps' graphs

        def peak(steps: int) -> int:
            with PeakMemory() as memory:
                ends = [n / steps for n in range(1, steps)] if jumps else None
                sol = odenet.solve(
                    lambda t, y: torch.tanh(w * y), y0, [0.0, 1.0], method="midpoint", gradient=self.how,
                    per_sample=per_sample, controller=odenet.ConstantStep(1 / steps, jump_ts=ends),
                )  # fmt: skip
                sol.y1.sum().backward()
            return memory.peak

        growth = (peak(60) - peak(20)) / 40 / (y0.numel() * y0.element_size())
        assert growth <= self.states_a_step, growth

    @pytest.mark.parametrize("backward", [False, True])
    @pytest.mark.parametrize("per_sample", slow_unless([False, True], True))
    @pytest.mark.parametrize("dense", [False, True])
    def test_nothing_outlives_the_solution(self, dense: bool, per_sample: bool, backward: bool) -> None:
        """No circle of references keeps a tensor: all are gone before any garbage collection."""
        w = torch.tensor(0.5, dtype=D, requires_grad=True)
        # tanh keeps its own output: held by a hook, that would hold itself
        solver = odenet.Solver(
            lambda t, y: torch.tanh(w * y), gradient=self.how, per_sample=per_sample, dense=dense
        )  # fmt: skip
        solver(torch.ones(4, 100, dtype=D), [0.0, 0.4, 1.0])
        # the method's constants stay for good, and the times with the solver
        kept = [x for known in solver.layouts for x in (known.ts, known.engine_ts, known.direction, known.stops.times)]
        gc.disable()
        try:
            with PeakMemory() as memory:
                memory.exclude([w, *kept])
                y0 = torch.ones(4, 100, dtype=D, requires_grad=True)
                sol = solver(y0, [0.0, 0.4, 1.0])
                if backward:
                    (sol.ys.sum() + (sol(0.5).sum() if dense else 0)).backward()
                del sol, y0
                w.grad = None
                assert memory.peak > 0 and memory.current == 0
        finally:
            gc.enable()

    def test_second_backward_pass(self) -> None:
        """Over the same solution, recomputing what the first pass freed."""
        y0 = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)
        k = torch.tensor(0.7, dtype=D, requires_grad=True)
        sol = odenet.solve(
            lambda t, x, r: torch.sin(x) * r + t, y0, [0.0, 0.4, 1.0], args=(k,), method="rk4", step=0.05,
            gradient=self.how,
        )  # fmt: skip
        for what in (sol.y1, sol.ys):
            first, second = (torch.autograd.grad(what.sum(), (y0, k), retain_graph=True) for _ in range(2))
            for a, b in zip(first, second, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-13, atol=0.0)

    def test_solution_changed_in_place(self) -> None:
        """The gradient is right or raises, as with PyTorch's own functions."""
        y0 = torch.tensor([0.3, -0.2], dtype=D, requires_grad=True)
        for what in ("y1", "ys"):
            sol = odenet.solve(lambda t, y: -2 * y, y0, [0.0, 0.5, 1.0], gradient=self.how, rtol=1e-9, atol=1e-9)
            changed = getattr(sol, what).mul_(3)
            try:
                (g,) = torch.autograd.grad(changed.sum(), y0)
            except RuntimeError as error:
                assert what == "ys" and "modified by an inplace operation" in str(error)
                continue
            ts = torch.tensor([1.0] if what == "y1" else [0.0, 0.5, 1.0], dtype=D)
            torch.testing.assert_close(g, (3 * torch.exp(-2 * ts).sum()).expand(2), rtol=1e-6, atol=0.0)

    # the step across the jump of the last f goes back over it without an error estimate
    @pytest.mark.filterwarnings("ignore:gradient='reversible'. the solution is not accurate")
    def test_captured(self) -> None:
        """Parameters that f only closes over, in every way of closing over them."""
        w = torch.tensor([0.5, 1.5], dtype=D, requires_grad=True)

        class Owner:
            def __init__(self) -> None:
                self.weight = w

            def f(self, t: Tensor, y: Tensor) -> Tensor:
                return -self.weight * y

        def with_weight(v: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return -v * y

        box = [{"w": w}]
        y0 = torch.ones(2, dtype=D)
        for f in (
            lambda t, y: -w * y,
            Owner().f,
            functools.partial(with_weight, w),
            lambda t, y: -box[0]["w"] * y,
            lambda t, y: -y * (w if t > 0.6 else 1.0),
        ):
            (mine,) = torch.autograd.grad(odenet.solve(f, y0, [0.0, 1.0], gradient=self.how).y1.sum(), w)
            same = self.same_solution({"method": "tsit5"})
            (exact,) = torch.autograd.grad(odenet.solve(f, y0, [0.0, 1.0], gradient="backprop", **same).y1.sum(), w)
            assert relative(mine, exact) < (1e-12 if self.exact else 2e-2)

    def test_captured_result_of_an_operation(self) -> None:
        """A captured tensor with a history gets its gradient, or an error that says to use args."""
        w = torch.tensor([0.5, 1.5], dtype=D, requires_grad=True)
        doubled = 2 * w
        y0 = torch.ones(2, dtype=D)
        sol = odenet.solve(lambda t, y: -doubled * y, y0, [0.0, 1.0], gradient=self.how, rtol=1e-9, atol=1e-9)
        (mine,) = torch.autograd.grad(sol.y1.sum(), w)
        assert relative(mine, -2 * torch.exp(-2 * w.detach())) < 1e-6

    def test_hidden_captured_tensor(self) -> None:
        """A computed tensor that no search of closures or attributes reaches; the operands of f reveal it."""
        w = torch.ones(2, dtype=D, requires_grad=True)
        hidden: Any = 2 * w
        for _ in range(9):
            hidden = [hidden]

        def f(t: Tensor, y: Tensor) -> Tensor:
            v = hidden
            while isinstance(v, list):
                v = v[0]
            return -v * y

        sol = odenet.solve(f, torch.ones(2, dtype=D), [0.0, 1.0], gradient=self.how, rtol=1e-9, atol=1e-9)
        (mine,) = torch.autograd.grad(sol.y1.sum(), w)
        assert relative(mine, -2 * torch.exp(-2 * w.detach())) < 1e-6

    def test_autograd_inside_f(self) -> None:
        def f(t: Tensor, y: Tensor) -> Tensor:
            return -torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]

        y0 = torch.ones(3, dtype=D, requires_grad=True)
        sol = odenet.solve(f, y0, [0.0, 1.0], gradient=self.how, rtol=1e-8, atol=1e-8)
        (g,) = torch.autograd.grad(sol.y1.sum(), y0)
        assert relative(g, torch.exp(-torch.ones(3, dtype=D))) < 1e-6

    def test_complex(self) -> None:
        rate = torch.tensor(-0.3 + 2.0j, dtype=torch.complex128, requires_grad=True)
        y0 = torch.tensor([1.0 + 1.0j, 0.5j], dtype=torch.complex128, requires_grad=True)
        sol = odenet.solve(lambda t, y, r: r * y, y0, [0.0, 1.0], args=(rate,), gradient=self.how, rtol=1e-9, atol=1e-9)
        mine = torch.autograd.grad((sol.y1.abs() ** 2 + sol.y1.real).sum(), (y0, rate))
        y1 = y0 * torch.exp(rate)
        for a, b in zip(mine, torch.autograd.grad((y1.abs() ** 2 + y1.real).sum(), (y0, rate)), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-6

    def test_backward_evaluations_are_counted(self) -> None:
        y0 = torch.ones(2, dtype=D, requires_grad=True)
        sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=self.how)
        assert sol.stats.backward_nfe == 0
        sol.y1.sum().backward()
        assert (sol.stats.backward_nfe > 0) == self.evaluates_backwards

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_derivatives_of_derivatives(self, per_sample: bool) -> None:
        """Second and third, with respect to y0, time and a captured tensor; y1 = y0 / (1 - w y0 t)."""
        y0 = torch.tensor([[0.3], [0.2]], dtype=D, requires_grad=True)
        w = torch.tensor(0.9, dtype=D, requires_grad=True)
        ts = torch.tensor([0.0, 0.4, 1.0], dtype=D, requires_grad=True)

        def derivatives(ys: Tensor) -> list[Tensor]:
            first = torch.autograd.grad(ys.sum(), (y0, w, ts), create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), (y0, w, ts), create_graph=True)
            third = torch.autograd.grad(sum(g.sum() for g in second), (y0, w, ts))
            return [*first, *second, *third]

        sol = odenet.solve(
            lambda t, y: w * y * y, y0, ts, gradient=self.how, rtol=1e-12, atol=1e-12, method="dopri8",
            per_sample=per_sample,
        )  # fmt: skip
        length = (ts - ts[0])[:, None, None]
        exact = derivatives(y0 / (1 - w * y0 * length))
        for mine, true in zip(derivatives(sol.ys), exact, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-7)

    def test_derivatives_of_derivatives_of_the_dense_solution(self) -> None:
        y0 = torch.tensor([0.3], dtype=D, requires_grad=True)
        sol = odenet.solve(
            lambda t, y: y * y, y0, [0.0, 1.0], gradient=self.how, rtol=1e-12, atol=1e-12, method="dopri8", dense=True
        )
        (first,) = torch.autograd.grad(sol(0.5).sum(), y0, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), y0)
        assert float(second) == pytest.approx(2 * 0.5 / (1 - 0.15) ** 3, rel=1e-6)

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_forward_mode(self, per_sample: bool) -> None:
        """Tangents of y0, ts, args and a captured tensor go through; over reverse mode they give Hessian products."""
        y0, k = torch.tensor([[0.4, -0.2], [0.1, 0.3]], dtype=D), torch.tensor(0.7, dtype=D)
        w, ts = torch.tensor([0.5, -1.0], dtype=D), torch.tensor([0.0, 0.6, 1.0], dtype=D)
        values = (y0, k, w, ts)
        generator = torch.Generator().manual_seed(0)
        tangents = tuple(torch.randn(x.shape, dtype=D, generator=generator) for x in values)

        def loss(y0: Tensor, k: Tensor, w: Tensor, ts: Tensor) -> Tensor:
            def f(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
                time = t[:, None] if t.ndim else t
                return torch.sin(x * w) * rate + time

            sol = odenet.solve(
                f, y0, ts, args=(k,), gradient=self.how, rtol=1e-9, atol=1e-9, dense=True, per_sample=per_sample
            )
            return (sol.ys**2).sum() + sol(0.3).sum()

        inputs = tuple(x.clone().requires_grad_() for x in values)
        first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
        product = sum((g * t).sum() for g, t in zip(first, tangents, strict=True))
        hessian = torch.autograd.grad(product, inputs)
        with forward_ad.dual_level():
            duals = tuple(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True))
            out = loss(*duals)
            over = torch.autograd.grad(out, inputs, create_graph=True)
            mine = forward_ad.unpack_dual(out).tangent
            assert mine is not None
            assert relative(mine, product) < (1e-9 if self.exact else 1e-6)
            for g, h in zip(over, hessian, strict=True):
                assert relative(forward_ad.unpack_dual(g).tangent, h) < 1e-6
        _, mine = torch.func.jvp(loss, values, tangents)
        assert relative(mine, product) < (1e-9 if self.exact else 1e-6)

    def test_parameter_changed_in_place_before_backward(self) -> None:
        w = torch.ones(2, dtype=D, requires_grad=True)
        sol = odenet.solve(lambda t, y: w * y, torch.ones(2, dtype=D), [0.0, 1.0], gradient=self.how)
        with torch.no_grad():
            w.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sol.y1.sum().backward()

    @pytest.mark.parametrize("own", ["before", "behind"])
    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize(
        "times", [(0.0, 0.5, 1.0), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5, 0.0), (0.5, 0.0), (1.0, 0.5)], ids=str
    )
    def test_outputs_at_a_jump(self, times: tuple[float, ...], per_sample: bool, own: str) -> None:
        """The solve starts, ends or has an output at a jump of f, which has the value before or behind it there."""
        w = torch.tensor([1.0, -3.0], dtype=D, requires_grad=True)
        y0 = torch.tensor([[0.3], [0.7]] if per_sample else [0.3], dtype=D, requires_grad=True)
        ts = torch.tensor(times, dtype=D, requires_grad=True)

        def f(t: Tensor, y: Tensor) -> Tensor:
            first = t < 0.5 if own == "behind" else t <= 0.5
            return torch.where(first, w[0], w[1]).reshape(-1, 1).expand(y.shape if per_sample else (1, 1)).view(y.shape)

        sol = odenet.solve(
            f, y0, ts, per_sample=per_sample, gradient=self.how, controller=odenet.PID(jump_ts=[0.5]), rtol=1e-6,
            atol=1e-6,
        )  # fmt: skip
        # an output moves by the slope before it, and the whole solution by the one behind the start, of the way it goes
        t, shift = torch.tensor(times, dtype=D), 1e-9 * (1 if times[0] < times[-1] else -1)
        near = torch.cat([t[:1] + shift, t[1:] - shift])
        slopes = torch.where(near < 0.5, w[0], w[1])
        moved = t + (ts - t) * slopes.detach()  # its value is t, its derivative the slope
        passed = w[0] * t.clamp(max=0.5) + w[1] * (t - 0.5).clamp(min=0.0)
        moves = moved - moved[:1] - (t - t[0])
        exact = y0[..., None, :] + (passed - passed[:1] + torch.cat([0 * moves[:1], moves[1:]]))[:, None]
        torch.testing.assert_close(sol.ys, exact, rtol=1e-12, atol=1e-12)
        weights = torch.arange(1.0, len(times) + 1.0, dtype=D)[:, None]
        mine, true = (torch.autograd.grad((weights * ys).sum(), (y0, w, ts)) for ys in (sol.ys, exact))
        for a, b in zip(mine, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_jump(self) -> None:
        """A jump of f at a time in the controller's jump_ts."""
        w = torch.tensor([1.0, 3.0], dtype=D, requires_grad=True)
        y0 = torch.zeros(1, dtype=D)
        control = odenet.PID(jump_ts=[0.5])
        sol = odenet.solve(
            lambda t, y: torch.where(t < 0.5, w[0], w[1]).expand(1), y0, [0.0, 1.0], controller=control,
            gradient=self.how,
        )  # fmt: skip
        assert float(sol.y1.detach()) == pytest.approx(2.0, abs=1e-12)
        (g,) = torch.autograd.grad(sol.y1.sum(), w)
        torch.testing.assert_close(g, torch.tensor([0.5, 0.5], dtype=D), rtol=1e-12, atol=1e-12)
