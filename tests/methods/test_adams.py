"""The Adams methods: order, history, order selection at long steps, iteration of the implicit ones, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from method_suite import decay, forced, reference
from odenet.methods.adams import Adams
from odenet.methods.method import StepInput
from slow_cases import slow_unless

D = torch.float64
KINDS = pytest.mark.parametrize("implicit", [False, True])
START = torch.tensor([0.3, 1.2, -0.7], dtype=D)


def tight(order: int, implicit: bool) -> Adams:
    return Adams(order, implicit, max_iters=12, rtol=1e-13, atol=1e-14)


def slope(steps: tuple[float, ...], errors: list[float]) -> float:
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("order", range(1, 9))
@KINDS
def test_order(implicit: bool, order: int) -> None:
    steps = (1 / 32, 1 / 48, 1 / 64) if order > 6 else (1 / 32, 1 / 64, 1 / 128)
    exact = torch.as_tensor(reference(START, 1.0))
    errors = []
    for step in steps:
        sol = odenet.solve(forced, START, [0.0, 1.0], method=tight(order, implicit), step=step)
        errors.append(float((sol.y1 - exact).abs().max()))
    assert slope(steps, errors) == pytest.approx(order, abs=0.6 if order > 6 else 0.35), errors


@pytest.mark.parametrize("order", range(2, 9))
@KINDS
def test_order_where_outputs_cut_steps(implicit: bool, order: int) -> None:
    """Steps of many lengths: the coefficients come from the times of the steps."""
    steps = (1 / 32, 1 / 48, 1 / 64) if order > 6 else (1 / 32, 1 / 64, 1 / 128)
    errors = []
    ts = [0.0, 0.213, 0.517, 0.5231, 0.71, 0.7101, 1.0]
    exact = torch.stack([START, *(torch.as_tensor(reference(START, t)) for t in ts[1:])])
    for step in steps:
        sol = odenet.solve(forced, START, ts, method=tight(order, implicit), step=step)
        errors.append(float((sol.ys - exact).abs().max()))
    assert slope(steps, errors) > order - 0.75, errors


@KINDS
def test_full_order_where_steps_are_short(implicit: bool) -> None:
    """Also where the slope, or one of its derivatives, crosses zero, and where the state is constant."""
    sol = odenet.solve(
        lambda t, y: torch.cos(t) + 0 * y, torch.zeros(1, dtype=D), [0.0, 10.0], method=Adams(8, implicit), step=0.05
    )
    assert float((sol.y1 - math.sin(10.0)).abs()) < 1e-10
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    still = odenet.solve(lambda t, y: 1.0 - y, y0, [0.0, 1.0], method=Adams(6, implicit), step=0.05)
    assert torch.equal(still.y1, y0)
    (g,) = torch.autograd.grad(still.y1.sum(), y0)
    assert float(g) == pytest.approx(math.exp(-1.0), abs=1e-6)


STIFF = torch.tensor([[-1.0, 1.0], [0.0, -20.0]], dtype=D)
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=D)


@pytest.mark.parametrize("max_order", [6, 12])
@pytest.mark.parametrize(
    ("matrix", "end", "step", "bound"),
    [
        (-torch.eye(2, dtype=D), 10.0, 0.05, 2e-5),
        (-torch.eye(2, dtype=D), 10.0, 0.2, 1e-2),
        (-torch.eye(2, dtype=D), 10.0, 0.5, 1.0),
        (STIFF, 3.0, 0.01, 1e-6),
        (STIFF, 3.0, 0.03, 1e-2),
        (STIFF, 3.0, 0.05, 3e-2),
        (TURN, 20.0, 0.2, 2e-2),
    ],
)
def test_long_steps(max_order: int, matrix: Tensor, end: float, step: float, bound: float) -> None:
    """The explicit method is as accurate as one of low order where a fixed high order is unstable.

    torchdiffeq's explicit_adams ends between 1e8 and 1e140 times the solution here.
    """
    y0 = torch.ones(2, dtype=D)
    exact = torch.linalg.matrix_exp(matrix * end) @ y0
    mine, low = (
        odenet.solve(lambda t, y: matrix @ y, y0, [0.0, end], method=Adams(order), step=step).y1
        for order in (max_order, 4)
    )
    error, low_error = (float((y1 - exact).abs().max() / exact.abs().max()) for y1 in (mine, low))
    assert error < bound
    if step > 0.1:
        assert error < 2 * low_error


def test_where_a_fixed_order_diverges() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    y0, ts = torch.ones(1, dtype=D), torch.linspace(0.0, 10.0, 101, dtype=D)
    theirs = torchdiffeq.odeint(lambda t, y: -y, y0, ts, method="explicit_adams")[-1]
    mine = odenet.solve(lambda t, y: -y, y0, ts, method=Adams(12), step=0.1).y1
    assert float(theirs.abs()) > 1e6
    assert abs(float(mine) - math.exp(-10.0)) < 1e-7


@KINDS
def test_evaluations(implicit: bool) -> None:
    """One per step after the start, and one more per iteration; never outside the interval."""
    times: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t))
        return -y

    sol = odenet.solve(f, torch.ones(1, dtype=D), [1.0, 0.0], method=Adams(4, implicit), step=0.01)
    assert sol.stats.nfe == len(times) and min(times) >= 0.0 and max(times) <= 1.0
    started = 2 if implicit else 3
    assert (sol.stats.nfe == 4 * started + 97) if not implicit else (sol.stats.nfe <= 4 * started + 98 * 3)


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.complex64, torch.complex128, torch.bfloat16])
@KINDS
def test_dtypes(implicit: bool, dtype: torch.dtype) -> None:
    method = Adams(6, implicit)
    y0 = START.to(dtype)
    sol = odenet.solve(forced, y0, [0.0, 1.0], method=method, step=0.02)
    assert sol.ys.dtype == dtype
    error = (sol.y1 - torch.as_tensor(reference(y0.abs().sign().double() * y0.real.double(), 1.0)).to(dtype)).abs()
    assert float(error.max()) < {D: 1e-8, torch.complex128: 1e-8, torch.bfloat16: 3e-2}.get(dtype, 2e-6)


@KINDS
def test_leaves_of_several_kinds(implicit: bool) -> None:
    """A scalar, a complex and a single-precision leaf in one state."""
    y0 = {
        "a": torch.tensor(1.0, dtype=D),
        "b": torch.ones(2, 1, dtype=torch.complex64),
        "c": torch.ones(1, 3, dtype=torch.float32),
    }
    rate = {"a": -1.0, "b": 1.0j, "c": -1.0}
    sol = odenet.solve(
        lambda t, y: {k: rate[k] * x for k, x in y.items()}, y0, [0.0, 1.0], method=Adams(5, implicit), step=0.02
    )
    assert float(sol.y1["a"]) == pytest.approx(math.exp(-1.0), abs=1e-8)
    assert float(sol.y1["c"][0, 0]) == pytest.approx(math.exp(-1.0), abs=1e-6)
    assert abs(complex(sol.y1["b"][0, 0]) - complex(math.cos(1.0), math.sin(1.0))) < 1e-6


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.complex64])
@pytest.mark.parametrize("max_order", slow_unless([1, 2, 4, 12], 2, 12))
@KINDS
@pytest.mark.filterwarnings("ignore:implicit_adams")
def test_per_sample_is_as_alone(implicit: bool, max_order: int, dtype: torch.dtype) -> None:
    """Bit for bit; a sample that has finished or converged does not change, and does not affect others."""
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(5, 3, generator=generator).to(dtype)
    rate = (torch.rand(5, 1, generator=generator) * 8 + 0.1).to(y0.abs().dtype)
    ts = torch.rand(5, 3, generator=generator, dtype=D).sort(1).values
    ts[3, 1:] = ts[3, 0] + torch.tensor([0.01, 0.04])  # has ended before its history is full
    options: dict[str, Any] = {"method": Adams(max_order, implicit), "step": 0.02}
    both = odenet.solve(decay, y0, ts, args=(rate,), per_sample=True, **options)
    for i in range(5):
        one = slice(i, i + 1)
        alone = odenet.solve(decay, y0[i], ts[i], args=(rate[i],), **options)
        batch = odenet.solve(decay, y0[one], ts[one], args=(rate[one],), per_sample=True, **options)
        assert torch.equal(alone.ys, both.ys[i]) and torch.equal(batch.ys[0], both.ys[i])
        assert alone.stats["accepted"] == int(both.stats["accepted"][i])
        if not implicit:  # the batch iterates as long as its slowest sample
            assert alone.stats["nfe"] == int(both.stats["nfe"][i])


def test_dense_output() -> None:
    """Of the order of the method, with f's slope at the ends of steps, also while the history is short."""
    t = torch.tensor([0.005, 0.033, 0.512, 0.777, 0.99], dtype=D)
    exact = torch.stack([torch.as_tensor(reference(START, float(x))) for x in t])
    for implicit in (False, True):
        for order, at_start in ((1, 1.5), (2, 2.5), (5, 3.5)):
            errors = []
            for step in (1 / 40, 1 / 80):
                sol = odenet.solve(forced, START, [0.0, 1.0], method=tight(order, implicit), step=step, dense=True)
                errors.append((sol(t) - exact).abs().amax(1))
                torch.testing.assert_close(sol(1.0), sol.y1, rtol=1e-13, atol=1e-13)
            rate = torch.log2(errors[0] / errors[1])
            assert float(rate[2:].min()) > order - 0.6, (order, rate)
            assert float(rate[:2].max()) > min(order, at_start) - 0.6
            close = 1e-7
            ends = sol(torch.tensor([0.5 - close, 0.5 + close], dtype=D))
            inside = forced(torch.tensor(0.5, dtype=D), sol(0.5))
            torch.testing.assert_close((ends[1] - ends[0]) / (2 * close), inside, rtol=1e-5, atol=1e-6)


class Rotation(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(3, 3, dtype=D)

    def forward(self, t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        time = t[:, None] if t.ndim else t
        return torch.tanh(self.inner(y)) * torch.cos(time) - k * y


def value_and_gradients(gradient: Any, per_sample: bool, method: Adams, dense: bool) -> tuple[Tensor, ...]:
    f, k = Rotation(), torch.tensor([0.4, 0.8, 0.2], dtype=D, requires_grad=True)
    y0 = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    # the third sample has ended early
    ends = torch.tensor([[1.0], [1.2], [0.12], [0.9]], dtype=D) if per_sample else torch.ones(1, dtype=D)
    ts = (ends * torch.tensor([0.0, 0.37, 0.37, 1.0], dtype=D)).requires_grad_()
    sol = odenet.solve(
        f, y0, ts, args=(k,), gradient=gradient, per_sample=per_sample, method=method, step=0.05, dense=dense
    )
    weights = torch.linspace(1, 2, sol.ys.numel(), dtype=D).view(sol.ys.shape)
    value = (sol.ys**2 * weights).sum() + sol.y1.sin().sum()
    if dense:
        value = value + (sol(torch.tensor([0.09, 0.06], dtype=D)) ** 2).sum()
    return value, *torch.autograd.grad(value, (y0, ts, k, *f.parameters()))


@pytest.mark.parametrize("dense", slow_unless([False, True], True))
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("order", slow_unless([1, 2, 4, 8], 2, 4))
@KINDS
def test_gradients_agree(implicit: bool, order: int, per_sample: bool, dense: bool) -> None:
    method = Adams(order, implicit, max_iters=8)
    value, *exact = value_and_gradients("backprop", per_sample, method, dense)
    assert all(bool(torch.isfinite(g).all()) for g in exact)
    for gradient in ("discrete", odenet.Discrete(checkpoints=3), "forward"):
        if gradient == "forward" and (per_sample or dense or order != 2):
            continue  # takes long
        mine, *found = value_and_gradients(gradient, per_sample, method, dense)
        assert torch.equal(mine.detach(), value.detach())
        for a, b in zip(found, exact, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-11


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("order", [1, 3, 6])
@KINDS
def test_gradients_against_central_differences(implicit: bool, order: int, per_sample: bool) -> None:
    """With respect to the state, the times (of which two coincide) and a parameter of f, along a random direction."""
    # with converged iterations: their number is a constant of the differentiation
    method = tight(order, implicit)
    generator = torch.Generator().manual_seed(3)
    shape = (3,) if per_sample else ()
    values = [
        torch.randn(3, 2, dtype=D, generator=generator),
        torch.tensor([0.0, 0.1, 0.33, 1.0], dtype=D).expand(*shape, 4).clone(),
        torch.tensor(0.7, dtype=D),
    ]
    directions = [torch.randn(v.shape, dtype=D, generator=generator) for v in values]

    def loss(y0: Tensor, ts: Tensor, k: Tensor) -> Tensor:
        def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            return torch.sin(y) * torch.cos(2 * (t[:, None] if t.ndim else t)) - k * y

        sol = odenet.solve(f, y0, ts, args=(k,), method=method, step=0.04, per_sample=per_sample)
        return (sol.ys**2).sum() + sol.y1.sin().sum()

    inputs = [v.clone().requires_grad_() for v in values]
    exact = torch.autograd.grad(loss(*inputs), inputs)

    for i, (g, d) in enumerate(zip(exact, directions, strict=True)):

        def moved(h: float, i: int = i, d: Tensor = d) -> Tensor:
            return loss(*(v + h * d if j == i else v for j, v in enumerate(values)))

        def central(h: float, moved: Callable[[float], Tensor] = moved) -> Tensor:
            return (moved(h) - moved(-h)) / (2 * h)

        # of order 4 in h; none of the steps is so near to a stop that the number of steps changes
        difference = (4 * central(1e-4) - central(2e-4)) / 3
        assert abs(float((g * d).sum() - difference)) < 1e-8 * float((g * d).norm())


@KINDS
def test_step_differentiates_with_respect_to_everything(implicit: bool) -> None:
    """First and second derivatives against differences, with a full history and with none."""
    method = tight(4, implicit)

    def f(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.sin(y[0]) * torch.cos(t),)

    state, carry, t = (START,), method.init(f, torch.tensor(0.0, dtype=D), (START,)), torch.tensor(0.0, dtype=D)
    for n in range(5):

        def step(y: Tensor, stack: Tensor, past: Tensor, t0: Tensor, t1: Tensor, carry: Any = carry) -> Any:
            at = StepInput(f, t0, t1, (y,), (stack, carry[1], past, carry[3]))
            out = method.step(at)
            return (*out.y, out.carry[0], out.carry[2], *method.polynomial(at, out)[1])

        t1 = t + 0.1 * (1 + 0.3 * (n % 2))
        inputs = tuple(x.clone().requires_grad_() for x in (*state, carry[0], carry[2], t, t1))
        if n in (0, 4):
            assert torch.autograd.gradcheck(step, inputs)
        if n == 4:
            assert torch.autograd.gradgradcheck(lambda *x: step(*x)[0].sum(), inputs)
        found = method.step(StepInput(f, t, t1, state, carry))
        state, carry, t = found.y, found.carry, t1
    assert float(carry[-1]) == method.history_size


@KINDS
def test_steps_of_no_length(implicit: bool) -> None:
    """A sample with steps of zero length, one at its start and one with a history: zero gradients, no NaN."""
    method = Adams(4, implicit)

    def f(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.sin(y[0]),)

    y, t = (torch.ones(3, 2, dtype=D),), torch.zeros(3, dtype=D)
    carry = method.init(f, t, y)
    for _ in range(4):
        found = method.step(StepInput(f, t, t + 0.1, y, carry))
        y, carry, t = found.y, found.carry, t + 0.1
    fresh = method.restart(f, t, y, carry)
    starting = torch.tensor([False, True, False])
    carry = tuple(torch.where(starting.view(3, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(fresh, carry, strict=True))
    t1 = t + torch.tensor([0.0, 0.1, 0.1], dtype=D)
    inputs = tuple(x.clone().requires_grad_() for x in (*y, *carry, t, t1))
    at = StepInput(f, inputs[-2], inputs[-1], inputs[:1], inputs[1:-2])
    found = method.step(at)
    parts = method.polynomial(at, found)
    assert torch.equal(found.y[0][0], y[0][0])
    assert all(torch.equal(part[0][0], torch.zeros(2, dtype=D)) for part in parts)
    values = [x for x in (*found.y, *found.carry, *(p[0] for p in parts)) if x.requires_grad]
    grads = torch.autograd.grad([v.sum() for v in values], inputs, allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)
    for lane in (1, 2):  # each as alone
        alone = method.step(StepInput(f, t[lane], t1[lane], (y[0][lane],), tuple(c[lane] for c in carry)))
        assert torch.equal(alone.y[0], found.y[0][lane].detach())


@KINDS
def test_history_begins_anew_after_a_jump(implicit: bool) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.5, 1.0, -3.0) * y

    control = odenet.ConstantStep(0.02, jump_ts=[0.5])
    y1 = odenet.solve(f, torch.ones(1, dtype=D), [0.0, 1.0], method=Adams(6, implicit), controller=control).y1
    assert float(y1) == pytest.approx(math.exp(-1.0), rel=1e-7)


def test_warns_where_the_corrector_does_not_converge() -> None:
    rate = torch.tensor([[0.1], [30.0]], dtype=D)
    y0, ts = torch.ones(2, 1, dtype=D), torch.tensor([0.0, 0.2], dtype=D)
    method = Adams(4, implicit=True, max_iters=2)
    with pytest.warns(UserWarning, match=r"t = 0\.\d+ did not converge in 2 iter.*smaller step.*max_iters") as seen:
        both = odenet.solve(lambda t, y, k: -k * y, y0, ts, args=(rate,), method=method, step=0.02, per_sample=True)
    assert "t = 0.06 " in str(seen[0].message)  # the first step with a full history
    calm = odenet.solve(lambda t, y: -0.1 * y, y0[0], ts, method=method, step=0.02)
    assert torch.equal(calm.y1, both.y1[0])


def test_needs_steps() -> None:
    with pytest.raises(ValueError, match="step"):
        odenet.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=Adams())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_order": 0}, ValueError, "max_order must be at least 1; got 0"),
        ({"max_order": 13}, ValueError, "max_order must be at most 12; got int 13"),
        ({"max_order": 2.0}, TypeError, "max_order must be an int; got float"),
        ({"max_iters": 0}, ValueError, "max_iters must be at least 1; got 0"),
        ({"rtol": -1.0}, ValueError, "rtol and atol must not be negative"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "nor both zero"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Adams(**options)


def test_names() -> None:
    assert (Adams().name, Adams(implicit=True).name) == ("explicit_adams", "implicit_adams")
    assert Adams().order == 12 and Adams(5).order == 5 and Adams().error_order is None
    assert repr(Adams(5, implicit=True)) == "Adams(max_order=5, implicit=True)"


def test_a_short_start_is_cheap() -> None:
    """Explicit: 4 in each of three steps, 2 in three more, then 1. Implicit: 6, 6, 4, then by iteration."""
    for steps, most in ((1, 4), (2, 8), (3, 12), (4, 14), (6, 18), (7, 19), (10, 22), (20, 32), (100, 112)):
        sol = odenet.solve(forced, START, [0.0, 0.02 * steps], method=Adams(start="short"), step=0.02)
        assert sol.stats.nfe == most
    for steps, most in ((1, 6), (2, 12), (3, 16), (4, 21), (10, 51)):
        sol = odenet.solve(forced, START, [0.0, 0.02 * steps], method=Adams(implicit=True, start="short"), step=0.02)
        assert sol.stats.nfe <= most
    with pytest.raises(ValueError, match=r"start.*full, short"):
        Adams(start="long")


@pytest.mark.parametrize("order", [4, 5, 8, 12])
@KINDS
def test_order_of_a_short_start(implicit: bool, order: int) -> None:
    """The errors of its first steps are of order 5, and later ones are smaller, also with outputs between steps."""
    method, ts = Adams(order, implicit, max_iters=12, rtol=1e-13, atol=1e-14, start="short"), [0.0, 0.213, 0.5231, 1.0]
    exact = torch.stack([START, *(torch.as_tensor(reference(START, t)) for t in ts[1:])])
    steps, errors = (1 / 32, 1 / 64, 1 / 128), []
    for step in steps:
        sol = odenet.solve(forced, START, ts, method=method, step=step)
        errors.append(float((sol.ys - exact).abs().max()))
    assert slope(steps, errors) > min(order, 5) - 0.75, errors
    assert errors[-1] < 1e-7


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "forward"])
@KINDS
def test_gradients_of_a_short_start(implicit: bool, gradient: str) -> None:
    """Those of the numerical solution, equal to finite differences; samples with different times are independent."""
    method = Adams(6, implicit, max_iters=30, rtol=1e-13, atol=1e-14, start="short")
    ts = torch.tensor([[0.0, 0.5], [0.0, 1.1]], dtype=D)

    def ends(y0: Tensor, ts: Tensor = ts) -> Tensor:
        sol = odenet.solve(
            lambda t, y: -y * y * torch.cos(t)[..., None], y0, ts, method=method, step=0.1, per_sample=True,
            gradient=gradient,
        )  # fmt: skip
        return sol.y1

    y0 = torch.tensor([[0.3, 0.9], [1.2, -0.4]], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(ends, (y0,), rtol=1e-5)
    whole = ends(y0.detach())
    for i in range(2):
        assert torch.equal(ends(y0.detach()[i : i + 1], ts[i : i + 1])[0], whole[i])
