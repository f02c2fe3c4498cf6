"""DPM-Solver++ and UniPC: order on all of [0, 1], the published algorithms, exact cases, gradients, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

import odenet
from contract_suite import MethodContract
from odenet.core.affine_paths import AffinePath, affine_path
from odenet.methods import DPMSolverPP, Method, UniPC
from odenet.methods.interpolation_weights import Interpolation, LogRatio, NoiseShare, exponential_moments
from slow_cases import slow_unless

D = torch.float64
START = torch.tensor([0.3, -1.2, 0.9], dtype=D)
MANY = torch.linspace(-2.0, 2.0, 9, dtype=D)
MAKERS = (DPMSolverPP, UniPC)
ALL = [maker(order) for maker in MAKERS for order in (1, 2, 3)]
METHODS = pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
Velocity = Callable[[Tensor, Tensor], Tensor]


def mixture(path: str | AffinePath, means: Any = (-1.0, 1.5), std: Any = 0.3) -> Velocity:
    """The velocity of the marginal path from N(0, 1) to equal parts of N(mean, std^2): that of each part, averaged.

    One mean: x - alpha mean is multiplied by the same factor as the standard deviation.
    """
    chosen = affine_path(path)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        m, v = torch.as_tensor(means, dtype=x.dtype), torch.as_tensor(std, dtype=x.dtype) ** 2
        t = t.reshape(t.shape + (1,) * (x.ndim + 1 - t.ndim))
        parts = chosen.alpha(t), chosen.sigma(t), chosen.alpha_dot(t), chosen.sigma_dot(t)
        a, s, a_dot, s_dot = (x.to(m.dtype) for x in parts)
        variance, x = a * a * v + s * s, x.unsqueeze(-1)
        part = torch.softmax(-((x - a * m) ** 2) / (2 * variance), -1)
        return (part * (a_dot * m + (a * a_dot * v + s * s_dot) / variance * (x - a * m))).sum(-1)

    return velocity


def gaussian_end(path: str, x: Tensor, a: float, b: float, mean: float, std: float) -> Tensor:
    """The flow of `mixture` with one mean, in closed form."""
    alpha, sigma = (g(torch.tensor([a, b], dtype=D)) for g in (affine_path(path).alpha, affine_path(path).sigma))
    spread = torch.sqrt((alpha * std) ** 2 + sigma**2)
    return alpha[1] * mean + spread[1] / spread[0] * (x - alpha[0] * mean)


def grid(a: float, b: float, n: int, even: bool) -> Tensor:
    """n steps from a to b. Not even: of three lengths in turn, on a grid that grows denser to one side."""
    lengths = torch.ones(n, dtype=D)
    if not even:
        lengths = torch.tensor([1.0, 1.7, 0.6], dtype=D).repeat(n)[:n] * torch.linspace(0.6, 1.4, n, dtype=D)
    steps = torch.cat((torch.zeros(1, dtype=D), lengths.cumsum(0) / lengths.sum()))
    ts = a + (b - a) * steps
    ts[-1] = b
    return ts


def solve(f: Any, x: Tensor, ts: Tensor, method: Method, **options: Any) -> Tensor:
    return odenet.solve(f, x, [float(ts[0]), float(ts[-1])], method=method, controller=odenet.Grid(ts), **options).y1


INTERVALS = [(0.2, 0.8), (0.0, 0.8), (0.2, 1.0), (0.0, 1.0), (1.0, 0.0)]


EVEN = [("cond_ot", *x, True) for x in INTERVALS] + [
    ("cosine", 0.0, 1.0, True), ("cosine", 1.0, 0.0, True), ("polynomial", 0.2, 1.0, True),
    ("linear_vp", 0.0, 0.9, True), ("vp", 0.1, 0.9, True),
]  # fmt: skip
UNEVEN = [(*EVEN[i][:3], False) for i in (0, 3, 4, 9)]


@cache
def four_flows(path: str, a: float, b: float) -> tuple[Velocity, Tensor, Tensor]:
    """Velocity, start and end of two Gaussians (closed form) and of two mixtures as the data."""
    means = torch.tensor([[[0.7, 0.7]], [[-0.5, -0.5]], [[-1.0, 1.5]], [[-0.4, 0.8]]], dtype=D)
    f, x = mixture(path, means, torch.tensor([0.4, 0.8, 0.4, 0.5], dtype=D).view(4, 1, 1)), MANY.repeat(4, 1)
    exact = odenet.solve(f, x, [a, b], method="dopri8", rtol=1e-12, atol=1e-12, max_steps=10**5).y1
    for row, (mean, std) in enumerate(((0.7, 0.4), (-0.5, 0.8))):
        torch.testing.assert_close(exact[row], gaussian_end(path, MANY, a, b, mean, std), rtol=1e-9, atol=1e-9)
    return f, x, exact


@pytest.mark.parametrize(("path", "a", "b", "even"), slow_unless(EVEN + UNEVEN, *EVEN[::4], UNEVEN[0]))
@pytest.mark.parametrize("method", [m for m in ALL if m.name != "ddim"], ids=lambda m: m.name)
def test_order(method: Any, path: str, a: float, b: float, even: bool) -> None:
    """UniPC may be faster than its predictor alone."""
    method, (f, x, exact) = type(method)(method.order, path), four_flows(path, a, b)
    # multiples of 3: the same steps at the end of the grid; UniPC(3) has an error of O(h^4) that is larger at first
    ns = (96, 192, 384) if method.name == "unipc_3" else (48, 96, 192)
    errors = [float((solve(f, x, grid(a, b, n, even), method) - exact).norm()) for n in ns]
    rate = -np.polyfit(np.log(ns), np.log(errors), 1)[0]
    assert rate > method.order - 0.3, errors
    assert rate < method.order + 0.4 or isinstance(method, UniPC), errors


def test_first_outputs() -> None:
    """The trapezoidal correction of the first step comes with the second, so every later output is of order 3."""
    f, ts = mixture("cond_ot"), [0.0, 0.1, 0.2, 0.3]
    exact = odenet.solve(f, START, [0.0, 1.0], method="dopri8", rtol=1e-12, atol=1e-12, dense=True)
    errors = []
    for scale in (1.0, 0.5):
        sol = odenet.solve(f, START, [scale * t for t in ts], method=DPMSolverPP(3), controller=odenet.Grid())
        errors.append([float((sol.ys[i] - exact(scale * ts[i])).abs().max()) for i in (1, 2, 3)])
    rates = np.log2(np.array(errors[0]) / np.array(errors[1]))
    assert rates[0] == pytest.approx(2.0, abs=0.3)
    assert min(rates[1:]) > 2.7


@pytest.mark.parametrize("maker", MAKERS)
def test_order_as_published(maker: Any) -> None:
    """Order 2 away from infinite lambda. On all of [0, 1] the default is far more accurate."""
    f = mixture("cond_ot")
    for (a, b), order in (((0.2, 0.8), 2.0), ((0.0, 1.0), None)):
        end = odenet.solve(f, START, [a, b], method="dopri8", rtol=1e-12, atol=1e-12).y1

        def error(n: int, start: str, p: int, a: float = a, b: float = b, end: Tensor = end) -> float:
            return float((solve(f, START, grid(a, b, n, True), maker(p, start=start)) - end).abs().max())

        if order:
            assert math.log2(error(64, "short", 2) / error(128, "short", 2)) > order - 0.2
        else:
            assert error(128, "short", 3) > 50 * error(128, "full", 3)


@pytest.mark.parametrize("start", ["full", "short"])
@pytest.mark.parametrize("path", ["cond_ot", "cosine", "linear_vp", "vp"])
@METHODS
def test_data_of_one_point_are_met_exactly(method: Any, path: str, start: str) -> None:
    """Both predictions are constant then: any steps, in either direction."""
    method, chosen, data = (
        type(method)(method.order, path, start),
        affine_path(path),
        torch.tensor([2.0, -1.0], dtype=D),
    )
    end, noise = chosen.end, torch.tensor([0.4, 1.3], dtype=D)

    def state(t: float) -> Tensor:
        at = torch.tensor(t, dtype=D)
        return chosen.alpha(at) * data + chosen.sigma(at) * noise

    def f(t: Tensor, x: Tensor) -> Tensor:
        a, s, a_dot, s_dot = chosen.alpha(t), chosen.sigma(t), chosen.alpha_dot(t), chosen.sigma_dot(t)
        return a_dot * data + s_dot * (x - a * data) / torch.where(s > 0, s, 1.0)

    ts = torch.tensor([0.0, 0.1, 0.5, 0.8, end], dtype=D)
    torch.testing.assert_close(solve(f, state(0.0), ts, method), state(end), rtol=1e-9, atol=1e-9)
    back = torch.tensor([0.9, 0.6, 0.1, 0.0], dtype=D)
    torch.testing.assert_close(solve(f, state(0.9), back, method), state(0.0), rtol=1e-9, atol=1e-9)


def test_order_one_is_ddim_and_euler() -> None:
    f, ts = mixture("cond_ot"), grid(0.0, 1.0, 7, False)
    euler = odenet.solve(f, START, [0.0, 1.0], method="euler", controller=odenet.Grid(ts)).y1
    for start in ("full", "short"):
        torch.testing.assert_close(solve(f, START, ts, DPMSolverPP(1, start=start)), euler, rtol=1e-13, atol=1e-13)
    path, f, ts = affine_path("vp"), mixture("vp"), grid(0.0, 0.99, 7, False)
    alpha, sigma = path.alpha(ts), path.sigma(ts)
    x = START
    for i in range(7):
        noise, data = predictions(path, f, ts[i], x)
        x = alpha[i + 1] * data + sigma[i + 1] * noise
    torch.testing.assert_close(solve(f, START, ts, DPMSolverPP(1, "vp")), x, rtol=1e-12, atol=1e-12)


def predictions(path: AffinePath, f: Velocity, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The noise and the data of x = alpha data + sigma noise with the velocity u, by a linear solve."""
    rows = [[path.sigma(t), path.alpha(t)], [path.sigma_dot(t), path.alpha_dot(t)]]
    both = np.linalg.solve(np.array([[float(a) for a in row] for row in rows]), torch.stack((x, f(t, x))).numpy())
    return torch.as_tensor(both[0]), torch.as_tensor(both[1])


def published_2m(path: AffinePath, f: Velocity, x: Tensor, ts: Tensor) -> Tensor:
    """Lu et al. 2022, Algorithm 2."""
    alpha, sigma, lam = path.alpha(ts), path.sigma(ts), path.log_ratio(ts)
    q = [predictions(path, f, ts[0], x)[1]]
    h = lam[1] - lam[0]
    x = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h) * q[0]
    for i in range(2, len(ts)):
        q.append(predictions(path, f, ts[i - 1], x)[1])
        h, last = lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
        r = last / h
        mixed = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h) * mixed
    return x


def published_unipc(path: AffinePath, f: Velocity, x: Tensor, ts: Tensor, order: int) -> Tensor:
    """Zhao et al. 2023, Algorithms 5 and 6, data prediction with B(h) = e^-h - 1, and a_1 = 1/2 where it is alone."""
    alpha, sigma, lam = path.alpha(ts), path.sigma(ts), path.log_ratio(ts)
    q = [predictions(path, f, ts[0], x)[1]]
    for i in range(1, len(ts)):
        p, h = min(order, i), lam[i] - lam[i - 1]
        r = [float((lam[i - 1 - k] - lam[i - 1]) / h) for k in range(1, p)] + [1.0]
        b, phi, factorial = [], float(torch.expm1(-h) / -h) - 1.0, 1.0
        scale = float(torch.expm1(-h))
        for k in range(1, p + 1):
            factorial *= k
            b.append(phi * factorial / scale)
            phi = phi / float(-h) - 1.0 / (factorial * (k + 1))
        matrix = np.array([[x**k for x in r] for k in range(p)])
        predictor = [0.5] if p == 2 else list(np.linalg.solve(matrix[: p - 1, : p - 1], b[: p - 1]))
        corrector = [0.5] if p == 1 else list(np.linalg.solve(matrix, b))
        base = sigma[i] / sigma[i - 1] * x - alpha[i] * scale * q[-1]
        differences = [(q[-1 - k] - q[-1]) / r[k - 1] for k in range(1, p)]
        predicted = base - alpha[i] * scale * sum(a * d for a, d in zip(predictor, differences, strict=False))
        if i == len(ts) - 1:
            return predicted
        new = predictions(path, f, ts[i], predicted)[1]
        differences.append(new - q[-1])
        x = base - alpha[i] * scale * sum(a * d for a, d in zip(corrector, differences, strict=True))
        q.append(new)
    return x


@pytest.mark.parametrize("by", ["time", "lambda"])
@pytest.mark.parametrize("path", ["vp", "linear_vp"])
def test_published_algorithms(path: str, by: str) -> None:
    chosen, f, ts = affine_path(path), mixture(path), grid(0.05, 0.995, 9, False)
    if by == "lambda":
        lam = chosen.log_ratio(ts[[0, -1]])
        ts = chosen.time(torch.linspace(float(lam[0]), float(lam[1]), 10, dtype=D))
    close = {"rtol": 1e-10, "atol": 1e-10}
    mine = solve(f, START, ts, DPMSolverPP(2, path, start="short"))
    torch.testing.assert_close(mine, published_2m(chosen, f, START, ts), **close)
    for order in (1, 2, 3):
        mine = solve(f, START, ts, UniPC(order, path, start="short"))
        torch.testing.assert_close(mine, published_unipc(chosen, f, START, ts, order), **close)


def test_the_last_step_as_published() -> None:
    """To sigma = 0, by the last prediction alone."""
    f, ts = mixture("cond_ot"), grid(0.1, 1.0, 6, True)
    for maker in MAKERS:
        before = odenet.solve(f, START, ts, method=maker(3, start="short"), controller=odenet.Grid()).ys
        data = predictions(affine_path("cond_ot"), f, ts[-2], before[-2])[1]
        if maker is DPMSolverPP:  # before[-2] of UniPC is not yet corrected
            torch.testing.assert_close(before[-1], data, rtol=1e-13, atol=1e-13)
        assert torch.isfinite(solve(f, START, grid(0.0, 1.0, 6, True), maker(3, start="short"))).all()


@METHODS
def test_the_path_does_not_matter(method: Any) -> None:
    """x / sigma is a function of alpha / sigma alone, for the same data."""
    one, other = affine_path("cond_ot"), affine_path("vp")
    ts = grid(0.1, 0.95, 8, False)
    matching = other.time(one.log_ratio(ts))
    x = solve(mixture("cond_ot"), START, ts, method) / one.sigma(ts[-1])
    z = START * other.sigma(matching[0]) / one.sigma(ts[0])
    y = solve(mixture("vp"), z, matching, type(method)(method.order, "vp")) / other.sigma(matching[-1])
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_moments() -> None:
    for h in (1e-6, 1e-3, 0.3, 0.999, 1.0, 2.5, 30.0):
        for k, found in enumerate(exponential_moments(torch.tensor(h, dtype=D), 3), 1):
            exact = quad(lambda x, h=h, k=k: h * math.exp(-h * (1 - x)) * x**k, 0, 1, epsabs=0, epsrel=1e-13)[0]
            assert float(found) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("with_end", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("kind", [LogRatio, NoiseShare])
def test_weights_are_integrals(kind: type[Interpolation], count: int, with_end: bool) -> None:
    """Of every function in the space, by quadrature in s."""
    s = torch.tensor([1.7, 0.9, 0.55, 0.2], dtype=D)  # with sigma = 1 / (1 + s), alpha = s / (1 + s)
    w = kind((s / (1 + s)).unbind(), (1 / (1 + s)).unbind())
    n = count + with_end
    weights = w.weights(1, w.known(1, torch.tensor(float(count), dtype=D), 2), 2, with_end)
    nodes = ([0] if with_end else []) + [2, 3]
    for k in range(1, n + 1):
        if kind is LogRatio and n == 1:
            continue  # 1/2, as published

        def value(x: float, k: int = k) -> float:
            return math.log(x) ** k if kind is LogRatio else (1 / (1 + x)) ** (k + 1)

        at_start = value(float(s[1]))
        integral = quad(lambda x, v=value, z=at_start: v(x) - z, float(s[1]), float(s[0]), epsabs=1e-14)[0]
        found = sum(float(c) * (value(float(s[j])) - at_start) for c, j in zip(weights, nodes, strict=True))
        assert found == pytest.approx(integral / (1 + float(s[0])), rel=1e-10)
    if n == 0:
        assert all(float(c) == 0.0 for c in weights)


@pytest.mark.parametrize("start", ["full", "short"])
@METHODS
def test_one_evaluation_a_step(method: Any, start: str) -> None:
    method, times = type(method)(method.order, start=start), []

    def f(t: Tensor, x: Tensor) -> Tensor:
        times.append(float(t))
        return -x

    sol = odenet.solve(f, START, [0.0, 1.0], method=method, step=0.125)
    assert times == [0.125 * i for i in range(8)] and sol.stats.nfe == 8


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, dtype=D, generator=generator))

    def forward(self, t: Tensor, x: Tensor, k: Tensor) -> Tensor:
        time = t[:, None] if t.ndim else t
        return torch.tanh(x @ self.weight) * torch.cos(time) - k * x


@pytest.mark.parametrize("dense", slow_unless([False, True], True))
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", [*ALL[1:], DPMSolverPP(3, start="short"), UniPC(3, start="short")], ids=str)
def test_gradients_agree(method: Any, per_sample: bool, dense: bool) -> None:
    """On all of [0, 1], with a gradient to its ends too; one sample ends early, one runs backward."""

    def run(gradient: Any) -> list[Tensor]:
        f, k = Network(), torch.tensor(0.4, dtype=D, requires_grad=True)
        x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        ts = torch.tensor([0.0, 0.37, 0.37, 1.0], dtype=D)
        if per_sample:
            ts = torch.stack((ts, 0.5 * ts, 1.0 - ts, 0.1 * ts))
        ts.requires_grad_()
        sol = odenet.solve(
            f, x, ts, args=(k,), gradient=gradient, per_sample=per_sample, method=method, step=0.08, dense=dense
        )
        value = (sol.ys**2).sum() + sol.y1.sin().sum()
        if dense:
            value = value + (sol(torch.tensor([0.05, 0.09], dtype=D)) ** 2).sum()
        return [value.detach(), *torch.autograd.grad(value, (x, ts, k, f.weight))]

    value, *exact = run("backprop")
    assert all(bool(torch.isfinite(g).all()) for g in exact)
    for gradient in ("discrete", odenet.Discrete(checkpoints=3), "forward"):
        if gradient == "forward" and (per_sample or dense):
            continue  # takes long
        mine, *found = run(gradient)
        torch.testing.assert_close(mine, value, rtol=1e-13, atol=0)
        for a, b in zip(found, exact, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-11
    if per_sample or dense or method.order < 3 or method.start == "short":
        return
    for gradient in ("adjoint", "gauss"):  # backward in time by the same method
        for a, b in zip(run(gradient)[1:], exact, strict=True):
            assert float((a - b).norm() / b.norm()) < 3e-2


@pytest.mark.parametrize("start", ["full", "short"])
@pytest.mark.parametrize("maker", MAKERS)
def test_gradients_are_central_differences(maker: Any, start: str) -> None:
    """Of the state, the times of a grid that reaches both ends, and a parameter."""
    f, generator = Network(), torch.Generator().manual_seed(2)
    inner = torch.tensor([0.1, 0.23, 0.41, 0.6, 0.85], dtype=D)
    values = [torch.randn(2, 3, dtype=D, generator=generator), inner, torch.tensor(0.7, dtype=D)]
    ways = [torch.randn(v.shape, dtype=D, generator=generator) for v in values]

    def loss(x: Tensor, times: Tensor, k: Tensor) -> Tensor:
        sol = odenet.solve(f, x, [0.0, 1.0], args=(k,), method=maker(3, start=start), controller=odenet.Grid(times))
        return sol.y1.square().sum()

    inputs = [v.clone().requires_grad_() for v in values]
    grads = torch.autograd.grad(loss(*inputs), inputs)
    for i, (g, way) in enumerate(zip(grads, ways, strict=True)):
        with torch.no_grad():
            up, down = (loss(*(v + h * way if j == i else v for j, v in enumerate(values))) for h in (1e-5, -1e-5))
        assert float((g * way).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


class ExponentialContract(MethodContract):
    def test_samples_are_as_alone(self) -> None:
        """As in the suite, with times inside [0, 1]."""
        ts = torch.tensor([[0.0, 0.3, 0.31], [1.0, 0.2, 0.05], [0.0, 0.7, 1.0]], dtype=D)
        k = torch.tensor([[1.1], [0.7], [1.9]], dtype=D)
        both = self.solve(self.start, ts, k, per_sample=True)
        for i in range(3):
            one = slice(i, i + 1)
            alone = self.solve(self.start[one], ts[one], k[one], per_sample=True)
            assert torch.equal(alone.ys[0], both.ys[i])
            joint = self.solve(self.start[i], ts[i], k[i])
            torch.testing.assert_close(joint.ys, both.ys[i], rtol=1e-13, atol=1e-13)


class TestDPMSolverPP(ExponentialContract):
    method = DPMSolverPP(3)


class TestUniPC(ExponentialContract):
    method = UniPC(3)
    exact: ClassVar = ("discrete", odenet.Discrete(checkpoints=2))


class TestShort(ExponentialContract):
    method = UniPC(2, start="short")
    exact: ClassVar = ("discrete",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
@METHODS
def test_dtypes(method: Method, dtype: torch.dtype) -> None:
    """On a vector field of any kind, at both ends of [0, 1]."""
    x = START.to(dtype)
    sol = odenet.solve(lambda t, y: -y * torch.cos(t).to(y.dtype), x, [0.0, 1.0], method=method, step=1 / 64)
    assert sol.ys.dtype == dtype
    low = {torch.float16: 1e-2, torch.bfloat16: 3e-2}.get(dtype, 5e-4)
    exact = START * math.exp(-math.sin(1.0))
    assert float((sol.y1.to(torch.complex128) - exact).abs().max()) < (3e-2 if method.order == 1 else low)


@METHODS
def test_pytrees(method: Method) -> None:
    f = mixture("cond_ot")
    x = {"a": START[:1], "b": (START[1:].reshape(2, 1).repeat(1, 2), torch.zeros(2, 1, dtype=D))}
    sol = odenet.solve(
        lambda t, y: {"a": f(t, y["a"]), "b": (f(t, y["b"][0]), y["b"][1])}, x, [0.0, 1.0], method=method, step=0.1
    )
    whole = odenet.solve(f, START, [0.0, 1.0], method=method, step=0.1).y1
    torch.testing.assert_close(torch.cat((sol.y1["a"], sol.y1["b"][0][:, 1])), whole, rtol=1e-13, atol=1e-13)


def test_dense_output() -> None:
    f, t = mixture("cond_ot"), torch.tensor([0.033, 0.512, 0.99], dtype=D)
    exact = odenet.solve(f, START, [0.0, 1.0], method="dopri8", rtol=1e-12, atol=1e-12, dense=True)
    for maker in MAKERS:
        errors = []
        for step in (1 / 64, 1 / 128):
            sol = odenet.solve(f, START, [0.0, 1.0], method=maker(3), step=step, dense=True)
            errors.append((sol(t) - exact(t)).abs().amax(1)[1:])
            torch.testing.assert_close(sol(1.0), sol.y1, rtol=1e-13, atol=1e-13)
        assert float(torch.log2(errors[0] / errors[1]).min()) > 2.4


@METHODS
def test_history_begins_anew_after_a_jump(method: Method) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.5, 1.0, -3.0) * y

    one = torch.ones(1, dtype=D)
    y1 = odenet.solve(f, one, [0.0, 1.0], method=method, controller=odenet.ConstantStep(1 / 256, jump_ts=[0.5])).y1
    assert float(y1) == pytest.approx(math.exp(-1.0), rel=(0.0, 2e-2, 2e-4, 2e-5)[method.order])


@pytest.mark.parametrize("method", [ALL[2], ALL[5]], ids=lambda m: m.name)
def test_transforms(method: Method) -> None:
    """A step reads no value: `vmap`, forward and reverse derivatives, and a solve in a compiled graph of the caller."""
    f, x = mixture("cond_ot"), torch.stack((START, 0.5 * START))

    def end(x: Tensor) -> Tensor:
        return odenet.solve(f, x, [0.0, 1.0], method=method, step=0.25).y1

    torch.testing.assert_close(torch.func.vmap(end)(x), end(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.func.jacrev(end)(START), torch.func.jacfwd(end)(START), rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match=r"\[0, 1.0\].*reaches 1.5"):
        torch.func.vmap(lambda x: odenet.solve(f, x, [0.0, 1.5], method=method, step=0.5).y1)(x)


@pytest.mark.slow
@pytest.mark.parametrize("method", [ALL[2], ALL[5]], ids=lambda m: m.name)
def test_in_a_graph_of_the_caller(method: Method) -> None:
    def end(x: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: torch.tanh(y) * t - y, x, [0.0, 1.0], method=method, step=0.25).y1

    compiled = torch.compile(end, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(START), end(START), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("path", "ts", "message"),
    [
        ("cond_ot", [0.0, 1.2], r"ts must lie in \[0, 1.0\].*'unipc_2'.*CondOT\(\).*reaches 1.2"),
        ("cond_ot", [-0.3, 1.0], "reaches -0.3"),
        ("cond_ot", [0.5, -0.1], "reaches -0.1"),
        ("vp", [0.0, 1.0], r"\[0, 0.99999\].*VP\(\).*reaches 1.0"),
        ("polynomial", [0.0, 1.0], "begin after 0.*velocity is zero"),
    ],
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_times_outside_the_path(path: str, ts: list[float], message: str, per_sample: bool) -> None:
    f = mixture("cond_ot")
    with pytest.raises(ValueError, match=message):
        odenet.solve(f, START[:, None], ts, method=UniPC(path=path), step=2.0, per_sample=per_sample)


def test_the_end_of_a_path_in_float32() -> None:
    ts = torch.tensor([0.0, affine_path("vp").end], dtype=torch.float32)
    sol = odenet.solve(mixture("vp"), START.float(), ts, method=DPMSolverPP(path="vp"), step=0.02)
    assert bool(torch.isfinite(sol.y1).all())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"order": 0}, ValueError, "order must be at least 1; got 0"),
        ({"order": 4}, ValueError, "order must be at most 3; got int 4"),
        ({"order": 2.0}, TypeError, "order must be an int"),
        ({"path": "cond"}, ValueError, "path='cond' is unknown"),
        ({"start": "long"}, ValueError, "start='long' is unknown.*full.*short"),
    ],
)
@pytest.mark.parametrize("maker", MAKERS)
def test_errors(maker: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        maker(**arguments)


def test_names_and_what_they_need() -> None:
    assert [m.name for m in ALL] == ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc_1", "unipc_2", "unipc_3"]
    assert repr(UniPC(3, start="short")) == "UniPC(order=3, path=CondOT(), start='short')"
    with pytest.raises(ValueError, match="step is required"):
        odenet.solve(lambda t, y: -y, START, [0.0, 1.0], method=UniPC())
    with pytest.raises(ValueError, match="jacobian is for implicit methods"):
        odenet.solve(lambda t, y: -y, START, [0.0, 1.0], method=UniPC(), step=0.1, jacobian=lambda t, y: y)
