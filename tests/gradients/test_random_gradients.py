"""Random solves: the gradient of each method against the sensitivities of gradients/reference.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from scipy.integrate import solve_ivp
from torch import Tensor

import odenet
from gradient_settings import APPROXIMATE
from gradients.reference import Equation, Gradients, gradients
from odenet.core.leaves import real_dtype
from odenet.core.pytrees import flatten, unflatten
from odenet.gradients import GRADIENTS, backward_pass
from odenet.methods import METHODS, ExplicitRK

N = 4  # numbers a sample, split into leaves of these shapes
STRUCTURES: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "tensor": (0, [(4,)]),
    "dict": ({"a": 0, "b": 0}, [(1, 1), (3,)]),
    "nested": ((0, [{"x": 0}, (0,)]), [(), (2, 1), (1,)]),
}
OWN_SOLUTION = {"reversible"}  # not the one that the method gives elsewhere
ORDER_2 = [1e-3, 1e-4]
TOLERANCES = {"heun": ORDER_2, "ralston": ORDER_2, "bosh3": [1e-4, 1e-5, 1e-6]}
STEPS = {"euler": [0.02, 0.01], "midpoint": [0.05, 0.02], "heun": [0.05, 0.02], "ralston": [0.05, 0.02]}
# An error that each constant step may have, over step ** order: about that of the solution itself.
UNIT = {
    "euler": 1.0, "midpoint": 0.2, "heun": 0.2, "ralston": 0.2, "bosh3": 0.06, "heun3": 0.1, "rk4": 0.08,
    "rk4_38": 0.08, "dopri5": 0.004, "tsit5": 0.002, "dopri8": 0.004,
}  # fmt: skip


class Limits(NamedTuple):
    """Limits of relative errors in units (see `unit`). exact_times in units ** 0.8.

    Exact gradients are those of the numerical solution, and no error control sees them: they vary more. Their
    derivatives by time are those of the dense output, which is one order less exact.
    """

    value: float
    approximate: float
    exact: float
    exact_times: float


# The largest errors in about 5000 random cases were (2, 8, 13, 4), (4, 20, 34, 4) and (9, 55, 82, 10).
# Constant steps of 0.1 in a direction in which the solution grows have since been found with 30 and 45 for gradients:
# that is the error of the steps. How exact a gradient is for its own solution is asked apart, below, to 1e-10.
CONSTANT = Limits(5.0, 60.0, 100.0, 20.0)
CLOSE = Limits(10.0, 50.0, 80.0, 20.0)  # of order 4 or more, at tolerances of 1e-6 or less
LOOSE = Limits(20.0, 100.0, 200.0, 25.0)  # a few large steps
MOST = 10.0  # of nine in ten gradients at any tolerance; 6 were seen
# fehlberg2 errs by far more than its estimate says, see tests/control
EXPLICIT = sorted(n for n, method in METHODS.items() if isinstance(method, ExplicitRK) and n != "fehlberg2")
EXAMPLES = 60  # for all gradients together


@dataclass(frozen=True)
class Case:
    """tol: of an adaptive solve. step: constant step size. rows: ts, per sample or shared. inside: times of sol(t)."""

    gradient: str
    method: str
    tol: float | None
    step: float | None
    dtype: torch.dtype
    structure: str
    per_sample: bool
    rows: tuple[tuple[float, ...], ...]
    inside: tuple[float, ...]
    passing: str
    uses: frozenset[str]
    needs: frozenset[str]
    stagewise: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn, gradient: str) -> Case:
    method = draw(st.sampled_from(EXPLICIT))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.complex128]))
    adaptive = METHODS[method].error_order is not None and draw(st.integers(0, 3)) > 0
    tols = TOLERANCES.get(method, [1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
    tols = [x for x in tols if x >= 1e-5 or dtype != torch.float32]
    per_sample = draw(st.booleans())
    count = draw(st.integers(1, 3))
    T = draw(st.integers(2, 5))
    row = st.tuples(st.lists(st.integers(-20, 20), min_size=T, max_size=T), st.booleans())
    drawn = draw(st.lists(row, min_size=count, max_size=count)) if per_sample and draw(st.booleans()) else [draw(row)]
    uses = draw(st.frozensets(st.sampled_from(["ys", "y1", "dense"]), min_size=1))
    needs = draw(st.frozensets(st.sampled_from(["y0", "ts", "parameters", "t"]), min_size=1))
    return Case(
        gradient=gradient,
        method=method,
        tol=draw(st.sampled_from(tols)) if adaptive else None,
        step=None if adaptive else draw(st.sampled_from(STEPS.get(method, [0.1, 0.05]))),
        dtype=dtype,
        structure=draw(st.sampled_from(sorted(STRUCTURES))),
        per_sample=per_sample,
        rows=tuple(tuple(sorted((i / 16 for i in whole), reverse=back)) for whole, back in drawn),
        inside=tuple(draw(st.lists(st.sampled_from([0.0, 0.2, 0.55, 1.0]), min_size=1, max_size=3))),
        passing=draw(st.sampled_from(["args", "pytree", "closed over", "both"])),
        uses=uses,
        needs=needs,
        stagewise=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )


class Setting:
    """The equation, the state and the weights of the loss: random, and rounded to the case's dtype."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case.seed)
        real = real_dtype(case.dtype)

        def uniform(size: float, *shape: int) -> np.ndarray:
            x = rng.uniform(-size, size, shape)
            if case.dtype.is_complex:  # smaller, since sin grows along the imaginary axis
                x = (x + 0.5j * rng.uniform(-size, size, shape)) / 2
            return torch.as_tensor(x).to(case.dtype).numpy().astype(complex if case.dtype.is_complex else float)

        self.case, self.spec, self.shapes = (
            case,
            flatten(STRUCTURES[case.structure][0])[1],
            STRUCTURES[case.structure][1],
        )
        self.B = len(case.rows) if len(case.rows) > 1 else 1 + case.seed % 3
        self.equation = Equation(uniform(1.0, N, N), uniform(1.0, N), uniform(1.0, N), 1.25)
        self.y0 = uniform(1.5, self.B, N)
        ts = np.array(case.rows)
        self.ts = ts if len(ts) > 1 else ts[0]
        self.t = ts[:, :1] + (ts[:, -1:] - ts[:, :1]) * np.array(case.inside)
        self.t = torch.as_tensor(self.t).to(real).double().numpy()
        if len(ts) == 1:
            self.t = self.t[0]
        self.weights = {
            "ys": rng.uniform(0.5, 1.5, (self.B, ts.shape[1], N)),
            "y1": rng.uniform(0.5, 1.5, (self.B, 1, N)),
            "dense": rng.uniform(0.5, 1.5, (self.B, len(case.inside), N)),
        }

    def tree(self, flat: Tensor) -> Any:
        """(..., N) as leaves."""
        sizes = [int(np.prod(s)) for s in self.shapes]
        parts = flat.split(sizes, -1)
        return unflatten([x.reshape(*x.shape[:-1], *s) for x, s in zip(parts, self.shapes, strict=True)], self.spec)

    def flat(self, tree: Any) -> Tensor:
        leaves = zip(flatten(tree)[0], self.shapes, strict=True)
        return torch.cat([x.reshape(*x.shape[: x.ndim - len(s)], -1) for x, s in leaves], -1)

    def by_sample(self, tree: Any) -> Tensor:
        """Outputs as (B, m, N)."""
        flat = self.flat(tree)
        return flat if self.case.per_sample else flat.transpose(0, 1)


def mine(setting: Setting, gradient: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values (B, m, N) by name, and the gradients that the case requires."""
    case, e = setting.case, setting.equation
    real = real_dtype(case.dtype)
    inputs = {
        "y0": torch.as_tensor(setting.y0).to(case.dtype),
        "ts": torch.as_tensor(setting.ts).to(real),
        "t": torch.as_tensor(setting.t).to(real),
        "A": torch.as_tensor(e.A).to(case.dtype),
        "k": torch.as_tensor(e.k).to(case.dtype),
    }
    needed = [x for x in inputs if x in case.needs or (x in "Ak" and "parameters" in case.needs)]
    for x in needed:
        inputs[x].requires_grad_()
    c = torch.as_tensor(e.c).to(case.dtype)

    def slope(t: Tensor, tree: Any, A: Tensor, k: Tensor, w: float) -> Any:
        y = setting.flat(tree)
        wave = torch.cos(w * t.to(real))
        return setting.tree(torch.sin(y @ A.T) * (wave[:, None] if t.ndim else wave) - k * y + c)

    A, k = inputs["A"], inputs["k"]
    f, args = {
        "args": (slope, (A, k, e.w)),
        "pytree": (lambda t, y, p, w: slope(t, y, p["A"], p["k"][0], w), ({"A": A, "k": [k]}, e.w)),
        "closed over": (lambda t, y: slope(t, y, A, k, e.w), ()),
        "both": (lambda t, y, k: slope(t, y, A, k, e.w), (k,)),
    }[case.passing]
    options = {"step": case.step} if case.tol is None else {"rtol": case.tol, "atol": case.tol}
    sol = odenet.solve(
        f, setting.tree(inputs["y0"]), inputs["ts"], args=args, method=case.method, gradient=gradient,
        per_sample=case.per_sample, dense="dense" in case.uses, **options,
    )  # fmt: skip
    values = {"ys": setting.by_sample(sol.ys), "y1": setting.flat(sol.y1)[:, None]}
    if "dense" in case.uses:
        values["dense"] = setting.by_sample(sol(inputs["t"]))
    values = {name: values[name] for name in values if name in case.uses}
    assert all(v.dtype == case.dtype for v in values.values())
    loss = sum((torch.as_tensor(setting.weights[name]).to(real) * v.abs() ** 2).sum() for name, v in values.items())
    loss = loss + sum(0 * inputs[x].abs().sum() for x in needed)  # so that all of them are in the graph
    found = torch.autograd.grad(loss, [inputs[x] for x in needed])
    return {name: v.detach() for name, v in values.items()}, dict(zip(needed, found, strict=True))


def true(setting: Setting) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    case = setting.case
    own = len(case.rows) > 1
    ts, t = (np.atleast_2d(x) for x in (setting.ts, setting.t))
    T = ts.shape[1]
    values: dict[str, list[np.ndarray]] = {name: [] for name in case.uses}
    totals = {"y0": [], "ts": np.zeros_like(ts), "t": np.zeros_like(t), "A": 0, "k": 0}
    places = {"ys": slice(0, T), "y1": slice(T, T + 1), "dense": slice(T + 1, None)}
    for b in range(setting.B):
        row = b if own else 0
        times = np.concatenate([ts[row], ts[row, -1:], t[row]])
        out = setting.equation.solve(times[0], setting.y0[b], times)
        weights = np.zeros_like(out.y, dtype=float)
        for name in case.uses:
            values[name].append(out.y[places[name]])
            weights[places[name]] = setting.weights[name][b]
        g: Gradients = gradients(out, weights)
        totals["y0"].append(g.y0)
        totals["ts"][row] += g.t[places["ys"]]
        totals["ts"][row, -1] += g.t[T]
        totals["ts"][row, 0] += g.t0
        totals["t"][row] += g.t[places["dense"]]
        totals["A"] = totals["A"] + g.A
        totals["k"] = totals["k"] + g.k
    totals["y0"] = np.stack(totals["y0"])
    if not own:
        totals["ts"], totals["t"] = totals["ts"][0], totals["t"][0]
    return {name: np.stack(v) for name, v in values.items()}, totals


def error(got: Tensor, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.numpy() - want) / (np.linalg.norm(want) + 1))


def unit(case: Case) -> float:
    """The expected size of the error: the tolerance, or a power of the step size."""
    rounding = 5e-6 if case.dtype == torch.float32 else 1e-12  # dopri8's dense output cancels
    if case.tol is not None:
        return case.tol + rounding
    assert case.step is not None
    return UNIT[case.method] * case.step ** METHODS[case.method].order + rounding


def no_dense_slope(case: Case) -> bool:
    """The dense solution of a solve of zero length is the constant y0, also as a function of the times."""
    return "dense" in case.uses and any(row[0] == row[-1] for row in case.rows) and bool({"t", "ts"} & case.needs)


def limits(case: Case) -> Limits:
    if case.tol is None:
        return CONSTANT
    return CLOSE if case.tol <= 1e-6 and METHODS[case.method].order >= 4 else LOOSE


def check(case: Case) -> float:
    """The largest error of a gradient by y0 and by parameters, in units."""
    assume(not no_dense_slope(case))
    setting = Setting(case)
    with patch.object(backward_pass, "STAGEWISE_BYTES", 0 if case.stagewise else backward_pass.STAGEWISE_BYTES):
        values, found = mine(setting, case.gradient)
    true_values, exact = true(setting)
    size, limit = unit(case), limits(case)
    # 150 constant-step solves with bosh3 erred by 1.9 units at most; made reversible, by 5.4
    own = 2.0 if case.gradient in OWN_SOLUTION else 1.0
    for name, y in values.items():
        between = 2.0 if name == "dense" else 1.0  # interpolation adds an error of its own
        assert error(y, true_values[name]) < own * between * limit.value * size, name
    approximate = case.gradient in APPROXIMATE
    for name, g in found.items():
        bound = (limit.approximate if approximate else limit.exact) * size
        if name in ("ts", "t"):  # the slope of a dense solution is of an order less
            bound = max(bound if approximate else 0.0, limit.exact_times * size**0.8)
        assert error(g, exact[name]) < bound, name
    if case.gradient not in APPROXIMATE | OWN_SOLUTION | {"backprop"} and case.dtype != torch.float32:
        same_values, same = mine(setting, "backprop")
        for name, y in values.items():
            assert error(y, same_values[name].numpy()) < 1e-12, name
        for name, g in found.items():
            assert error(g, same[name].numpy()) < 1e-10, name
    return max((error(g, exact[name]) / size for name, g in found.items() if name not in ("ts", "t")), default=0.0)


@pytest.mark.parametrize("gradient", sorted(GRADIENTS))
@settings(max_examples=EXAMPLES // len(GRADIENTS))
@given(data=st.data())
def test_against_sensitivities(gradient: str, data: st.DataObject) -> None:
    check(data.draw(cases(gradient), label="case"))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", sorted(GRADIENTS))
def test_against_sensitivities_of_many(gradient: str) -> None:
    errors: list[float] = []

    @settings(max_examples=16 * EXAMPLES // len(GRADIENTS))
    @given(case=cases(gradient))
    def run(case: Case) -> None:
        errors.append(check(case))

    run()
    assert np.quantile(errors, 0.9) < MOST


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_dense_depends_on_its_time_at_the_ends(gradient: str) -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], dense=True, gradient=gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(sol(t).sum(), t)[0], -torch.exp(-t.detach()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_end_depends_on_the_last_of_equal_times(gradient: str) -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    ts = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    sol = odenet.solve(lambda t, y: -y, y0, ts, method="rk4", step=0.01, gradient=gradient)
    want = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64) * np.exp(-1)
    torch.testing.assert_close(torch.autograd.grad(sol.y1.sum(), ts)[0], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_end_of_a_solve_of_zero_length_depends_on_its_times(gradient: str) -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    ts = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    sol = odenet.solve(lambda t, y: -y, y0, ts, dense=True, gradient=gradient)
    for y, want in ((sol.ys[-1], [1.0, -1.0]), (sol.y1, [1.0, -1.0])):
        (g,) = torch.autograd.grad(y.sum(), ts, retain_graph=True)
        torch.testing.assert_close(g, torch.tensor(want, dtype=torch.float64))


def test_reference_against_closed_form() -> None:
    """y' = sin(a y) cos(w t) is separable: tan(a y / 2) grows by exp(a (sin(w t) - sin(w t0)) / w)."""
    a, w, t0, y0 = 1.7, 1.3, -1.0, np.array([0.6])
    times = np.linspace(1.1, t0, 8)

    def solution(a: float) -> np.ndarray:
        return 2 / a * np.arctan(np.tan(a * y0 / 2) * np.exp(a * (np.sin(w * times) - np.sin(w * t0)) / w))

    out = Equation(np.array([[a]]), np.zeros(1), np.zeros(1), w).solve(t0, y0, times)
    y, h = solution(a), 1e-4
    by_y0 = np.sin(a * y) / np.sin(a * y0)
    np.testing.assert_allclose(out.y[:, 0], y, rtol=1e-11)
    np.testing.assert_allclose(out.by_y0[:, 0, 0], by_y0, rtol=1e-11)
    np.testing.assert_allclose(out.by_t[:, 0], np.sin(a * y) * np.cos(w * times), rtol=1e-11)
    np.testing.assert_allclose(out.by_t0[:, 0], -by_y0 * np.sin(a * y0) * np.cos(w * t0), rtol=1e-11)
    by_a = (8 * (solution(a + h) - solution(a - h)) - solution(a + 2 * h) + solution(a - 2 * h)) / (12 * h)
    np.testing.assert_allclose(out.by_matrix[:, 0, 0, 0], by_a, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("unit", [1.0, 1.0j])
def test_reference_against_differences(unit: complex) -> None:
    """Of plain solves; complex numbers along the real and along the imaginary axis."""
    rng, n, t0 = np.random.default_rng(0), 3, 0.4
    y0, k, c = (rng.uniform(-1, 1, n) + (unit.imag and 0.3j * rng.uniform(-1, 1, n)) for _ in range(3))
    A = 0.5 * (rng.uniform(-1, 1, (n, n)) + (unit.imag and 0.3j * rng.uniform(-1, 1, (n, n))))
    times, weights = np.array([0.4, 0.1, -0.9]), rng.uniform(0.5, 1.5, (3, n))

    def loss(t0: Any, y0: Any, A: Any, k: Any, times: Any) -> float:
        e, total = Equation(A, k, c, 1.25), 0.0
        for t, w in zip(times, weights, strict=True):
            y = solve_ivp(e.slope, (t0, t), y0, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
            total += float((w * np.abs(y) ** 2).sum())
        return total

    inputs: dict[str, Any] = {"t0": np.array(t0), "y0": y0, "A": A, "k": k, "times": times}
    g = gradients(Equation(A, k, c, 1.25).solve(t0, y0, times), weights)
    for name, exact in {"t0": g.t0, "y0": g.y0, "A": g.A, "k": g.k, "times": g.t}.items():
        along = 1.0 if name in ("t0", "times") else unit
        for index in np.ndindex(inputs[name].shape):
            ends = []
            for h in (1e-4, -1e-4):
                moved = np.array(inputs[name])
                moved[index] += h * along
                ends.append(loss(**(inputs | {name: moved})))
            slope = (ends[0] - ends[1]) / 2e-4
            assert abs(slope - (np.conj(along) * np.asarray(exact)[index]).real) < 1e-6 * (1 + abs(slope))
