"""Adaptive implicit methods on the classic stiff problems, beside SciPy and diffrax; their gradients and batches."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odenet
from slow_cases import slow_unless
from stiff_problems import PROBLEMS, RATES, StiffProblem, rober

D = torch.float64
TOLERANCES = slow_unless((1e-4, 1e-7), 1e-4)
FEW_STEPS = [p for p in PROBLEMS if p.name not in ("OREGO", "VDPOL")]

# Accepted and rejected steps of diffrax 0.7.2, Kvaerno5 with PIDController(pcoeff=0.3, icoeff=0.4), as its docs have it
# for stiff problems; of VDPOL with dt0=1e-6, as it finds no first step by itself. benchmarks/results/stiff.md.
DIFFRAX = {
    ("ROBER", 1e-4): (242, 69),
    ("ROBER", 1e-7): (1373, 437),
    ("HIRES", 1e-4): (423, 174),
    ("HIRES", 1e-7): (2423, 939),
    ("OREGO", 1e-4): (1849, 971),
    ("OREGO", 1e-7): (10181, 5335),
    ("VDPOL", 1e-4): (1475, 752),
    ("VDPOL", 1e-7): (9627, 4776),
    ("POLLU", 1e-4): (81, 21),
    ("POLLU", 1e-7): (389, 113),
}


def solved(problem: StiffProblem, method: str, rtol: float, **options: Any) -> odenet.Solution:
    atol = rtol * problem.atol_over_rtol
    with torch.no_grad():
        return odenet.solve(
            problem.f, problem.y0, [0.0, problem.t1], method=method, rtol=rtol, atol=atol, max_steps=100_000, **options
        )


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_radau_beside_scipy(problem: StiffProblem, rtol: float) -> None:
    """In its steps and evaluations, but for a tenth, and to as many digits (or to one more than were asked for)."""
    sol = solved(problem, "radauIIA5", rtol)
    theirs = solve_ivp(
        problem.numpy_f, (0.0, problem.t1), problem.y0.numpy(), method="Radau", rtol=rtol,
        atol=rtol * problem.atol_over_rtol,
    )  # fmt: skip
    assert sol.stats.accepted <= 1.1 * (theirs.t.size - 1)
    # both without those of Jacobians, as `python -m benchmarks stiff` counts them: SciPy's nfev has none
    assert sol.stats.nfe - sol.stats.njev <= 1.1 * theirs.nfev
    digits = problem.scd(torch.from_numpy(theirs.y[:, -1]))
    assert problem.scd(sol.y1) >= min(digits, 1 - math.log10(rtol))


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("method", slow_unless(["kvaerno5", "esdirk54"], "esdirk54"))
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_esdirk_beside_diffrax(problem: StiffProblem, method: str, rtol: float) -> None:
    """In fewer steps than diffrax's Kvaerno5 takes, to ten times the tolerance."""
    sol = solved(problem, method, rtol)
    accepted, rejected = DIFFRAX[problem.name, rtol]
    assert sol.stats.accepted <= accepted
    assert sol.stats.accepted + sol.stats.rejected <= accepted + rejected
    assert problem.scd(sol.y1) >= -1 - math.log10(rtol)


@pytest.mark.parametrize("problem", slow_unless(PROBLEMS, *FEW_STEPS), ids=lambda p: p.name)
def test_kvaerno3_reaches_ten_times_the_tolerance(problem: StiffProblem) -> None:
    assert problem.scd(solved(problem, "kvaerno3", 1e-4).y1) >= 3


RATES_TENSOR = torch.tensor(RATES, dtype=D)


def end(log_rates: Tensor, **options: Any) -> Tensor:
    """Robertson's problem at t = 1e3, each component in its own size."""
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D)
    given: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-14, "max_steps": 100_000} | options
    sol = odenet.solve(rober, y0, [0.0, 1e3], args=(RATES_TENSOR * log_rates.exp(),), **given)
    return sol.y1 / torch.tensor([0.3, 2e-6, 0.7], dtype=D)


WEIGHTS = torch.tensor([1.0, -2.0, 0.5], dtype=D)


@functools.cache
def differences() -> Tensor:
    """The gradient at the published rates, by central differences of solves at tight tolerances."""
    h = 1e-4
    with torch.no_grad():
        rows = h * torch.eye(3, dtype=D)
        there = [[float(end(s * row, method="radauIIA5") @ WEIGHTS) for s in (1, -1)] for row in rows]
    return torch.tensor([(a - b) / (2 * h) for a, b in there], dtype=D)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        ("radauIIA5", "discrete"),
        *(
            pytest.param(method, gradient, marks=pytest.mark.slow)
            for method in ("radauIIA5", "esdirk54", "kvaerno5")
            for gradient in ("discrete", "backprop", "forward", odenet.Discrete(checkpoints=5))
        ),
    ],
    ids=str,
)
def test_gradient_of_robertsons_rates(method: str, gradient: Any) -> None:
    """To 1e-5."""
    x = torch.zeros(3, dtype=D, requires_grad=True)
    (found,) = torch.autograd.grad(end(x, method=method, gradient=gradient) @ WEIGHTS, x)
    assert float((found - differences()).norm() / differences().norm()) < 1e-5


@pytest.mark.parametrize("method", slow_unless(["radauIIA5", "esdirk54"], "radauIIA5"))
def test_a_batch_is_as_its_samples_alone(method: str) -> None:
    """To the bit, with counts; and as SciPy has it."""
    generator = torch.Generator().manual_seed(0)
    rates = RATES_TENSOR * torch.exp(0.5 * torch.randn(12, 3, dtype=D, generator=generator))
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D).expand(12, 3)
    given: dict[str, Any] = {"method": method, "rtol": 1e-6, "atol": 1e-11}
    both = odenet.solve(rober, y0, [0.0, 1e5], args=(rates,), per_sample=True, **given)
    for i in (0, 5, 11):
        alone = odenet.solve(rober, y0[i], [0.0, 1e5], args=(rates[i],), **given)
        assert torch.equal(alone.y1, both.y1[i])
        assert all(alone.stats[k] == int(both.stats[k][i]) for k in ("nfe", "accepted", "rejected", "njev", "nlu"))
        exact = solve_ivp(
            lambda t, y, k=rates[i]: rober(torch.tensor(t), torch.from_numpy(y), k).numpy(), (0.0, 1e5),
            [1.0, 0.0, 0.0], method="Radau", rtol=1e-9, atol=1e-15,
        ).y[:, -1]  # fmt: skip
        torch.testing.assert_close(alone.y1, torch.from_numpy(exact), rtol=2e-5, atol=0.0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_callers_jacobian(per_sample: bool) -> None:
    """It is called where a Jacobian is made, with the rows of args; the steps are those of autograd's."""
    calls = []

    def jacobian(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        calls.append(t.shape)
        a, b, c = (k[..., i] for i in range(3))
        zero, (_, y2, y3) = torch.zeros_like(y[..., 0]), y.unbind(-1)
        rows = [[-a, c * y3, c * y2], [a, -c * y3 - 2 * b * y2, -c * y2], [zero, 2 * b * y2, zero]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    lead = (2,) if per_sample else ()
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D).expand(*lead, 3)
    given: dict[str, Any] = {"args": (RATES_TENSOR.expand(*lead, 3),), "per_sample": per_sample}
    given |= {"method": "esdirk54", "rtol": 1e-6, "atol": 1e-12}
    mine = odenet.solve(rober, y0, [0.0, 1e4], jacobian=jacobian, **given)
    own = odenet.solve(rober, y0, [0.0, 1e4], **given)
    assert set(calls) == {lead}
    assert int(torch.as_tensor(mine.stats.njev).max()) == len(calls)
    assert torch.equal(torch.as_tensor(mine.stats.accepted), torch.as_tensor(own.stats.accepted))
    torch.testing.assert_close(mine.y1, own.y1, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    "method", ["implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "radauIIA3", "gl4", "gl6", "esdirk54"]
)
def test_the_callers_jacobian_serves_constant_steps(method: str) -> None:
    """Also where autograd could not find one: f is NumPy. One that is off by a fifth costs evaluations alone."""
    a, y0 = torch.tensor([[-100.0, 99.0], [0.0, -1.0]], dtype=D), torch.tensor([1.0, 2.0], dtype=D)

    def numpys(t: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(a.numpy() @ y.numpy() - y.numpy() ** 3)

    def of_it(t: Tensor, y: Tensor) -> Tensor:
        return a - torch.diag(3 * y**2)

    given: dict[str, Any] = {"method": method, "step": 0.05}
    want = odenet.solve(lambda t, y: a @ y - y**3, y0, [0.0, 1.0], **given)
    own = odenet.solve(numpys, y0, [0.0, 1.0], jacobian=of_it, **given)
    off = odenet.solve(numpys, y0, [0.0, 1.0], jacobian=lambda t, y: 0.8 * of_it(t, y), **given)
    for found in (own, off):
        torch.testing.assert_close(found.y1, want.y1, rtol=1e-12, atol=1e-14)
    assert own.stats.nfe == pytest.approx(want.stats.nfe, rel=0.05)
    assert own.stats.nfe < off.stats.nfe


@functools.cache
def outputs_by_scipy(problem: StiffProblem) -> tuple[Tensor, Tensor]:
    """At times of all orders of magnitude, most of which fall inside steps."""
    first = -6 if problem.t1 > 50 else -3
    ts = [0.0, *np.logspace(math.log10(problem.t1) + first, math.log10(problem.t1), 41)[:-1], problem.t1]
    given = {"method": "Radau", "rtol": 1e-10, "atol": 1e-10 * problem.atol_over_rtol}
    found = solve_ivp(problem.numpy_f, (0.0, problem.t1), problem.y0.numpy(), t_eval=ts, **given)
    return torch.tensor(ts, dtype=D), torch.from_numpy(found.y.T)


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("method", slow_unless(["radauIIA5", "esdirk54", "kvaerno5"], "radauIIA5"))
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_outputs_inside_steps(problem: StiffProblem, method: str, rtol: float) -> None:
    """As good as the ends of steps: within ten tolerances."""
    ts, exact = outputs_by_scipy(problem)
    atol = rtol * problem.atol_over_rtol
    with torch.no_grad():
        sol = odenet.solve(problem.f, problem.y0, ts, method=method, rtol=rtol, atol=atol, max_steps=100_000)
    assert float(((sol.ys - exact).abs() / (atol + rtol * exact.abs())).max()) < 10.0


@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
@pytest.mark.parametrize("method", ["radauIIA5", "kvaerno3", "esdirk54", "kvaerno5"])
def test_outputs_of_a_fast_component(method: str, rtol: float) -> None:
    """Prothero & Robinson's problem, whose solution is cos t, beside its integral. Hairer & Wanner II, IV.15."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-1e5 * (y[0] - torch.cos(t)) - torch.sin(t), y[0]])

    ts = torch.linspace(0, 20, 201, dtype=D)
    y0, options = torch.tensor([1.0, 0.0], dtype=D), {"rtol": rtol, "atol": rtol, "max_steps": 100_000}
    sol = odenet.solve(f, y0, ts, method=method, **options)
    exact = torch.stack([torch.cos(ts), torch.sin(ts)], -1)
    assert float((sol.ys - exact).abs().max()) < 10 * rtol


LOSES_STIFFNESS = {
    # f, y0, end of the solve, tolerance, the solution there
    "smoothly": (
        lambda t, y: -1e4 * torch.sigmoid(-20 * (t - 1)) * (y - torch.cos(t)) - y, 1.0, 3.0, 1e-3, 0.04276,
    ),
    "by relu": (lambda t, y: -1000 * torch.relu(y - torch.cos(t)), 2.0, 4.0, 1e-4, -1.0),
    "at once": (lambda t, y: torch.where(t < 1, -1000 * (y - 1), -y), 1.5, 3.0, 1e-5, math.exp(-2)),
}  # fmt: skip


@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5", "kvaerno5", "kvaerno3", "trbdf2"])
@pytest.mark.parametrize("name", LOSES_STIFFNESS)
def test_a_jacobian_that_has_become_too_stiff_is_noticed(name: str, method: str) -> None:
    """Updates by it are small, however far the stages are from their equations: their rate of convergence tells."""
    f, start, t1, tol, exact = LOSES_STIFFNESS[name]
    sol = odenet.solve(f, torch.tensor([start], dtype=D), [0.0, t1], method=method, rtol=tol, atol=tol)
    assert float(sol.y1) == pytest.approx(exact, abs=20 * tol)


@pytest.mark.parametrize("tol", slow_unless([1e-3, 1e-5], 1e-3))
@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5", "kvaerno5", "kvaerno3", "trbdf2"])
def test_stiffness_that_ends_at_once(method: str, tol: float) -> None:
    """Of one mode among two, which no component shows alone, at times and rates that are drawn: by the closed form.

    The step with the jump costs up to sixty tolerances; stages taken for solved that are not, a thousand.
    """
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        a, b, c, d, e = torch.rand(5, dtype=D, generator=generator).tolist()
        rate, end, speed, angle, other = 10 ** (2 + 4 * a), 0.5 + b, 1 + 3 * c, 6.3 * d, 10 ** (1 + 3 * e)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=D)

        def slow(t: float, k: float) -> float:
            """The solution of u' = -k (u - cos(t)) that all others come to."""
            return (k * k * math.cos(t) + k * math.sin(t)) / (k * k + 1)

        def f(t: Tensor, y: Tensor, turn: Tensor, rate: float, end: float, speed: float, other: float) -> Tensor:
            u, v = turn.mT @ y
            ends = torch.where(t < end, -rate * (u - torch.cos(t)), torch.cos(speed * t))
            return turn @ torch.stack([ends, -other * (v - torch.cos(t))])

        y0 = turn @ torch.tensor([slow(0.0, rate), slow(0.0, other)], dtype=D)
        sol = odenet.solve(
            f, y0, [0.0, 3.0], args=(turn, rate, end, speed, other), method=method, rtol=tol, atol=tol
        )  # fmt: skip
        after = slow(end, rate) + (math.sin(3 * speed) - math.sin(end * speed)) / speed
        exact = turn @ torch.tensor([after, slow(3.0, other)], dtype=D)
        assert float((sol.y1 - exact).abs().max()) < 80 * tol


@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5", "trbdf2"])
def test_samples_that_never_run(method: str) -> None:
    """One that fails at ts[0], and one whose times have no length, among many: the others are as without them."""
    y0 = torch.full((15, 2), 0.5, dtype=D)
    given: dict[str, Any] = {"method": method, "per_sample": True, "on_failure": "return"}
    alone = odenet.solve(lambda t, y: -1000 * (y - 1), y0[1:], [0.0, 1.0], **given)
    y0[0, 0] = torch.nan
    both = odenet.solve(lambda t, y: -1000 * (y - 1), y0, [0.0, 1.0], **given)
    assert int(both.status[0]) == odenet.Status.NON_FINITE and torch.equal(both.y1[1:], alone.y1)
    assert all(torch.equal(both.stats[k][1:], alone.stats[k]) for k in ("nfe", "accepted", "njev", "nlu"))
    ts = torch.tensor([[0.5, 0.5]] + [[0.0, 1.0]] * 14, dtype=D)
    still = odenet.solve(lambda t, y: -1000 * (y - 1), torch.full((15, 2), 0.5, dtype=D), ts, **given)
    assert torch.equal(still.y1[1:], alone.y1)


def test_inference_mode() -> None:
    """The Jacobian is found there too."""
    y0, counts = torch.tensor([1.0, 0.0, 0.0], dtype=D), []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            sol = odenet.solve(rober, y0, [0.0, 100.0], args=(RATES_TENSOR,), method="esdirk54")
            counts.append(dict(sol.stats))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("jacobian", "f", "match"),
    [
        (lambda t, y: -1e3 * torch.eye(2, dtype=D), None, "jacobian= is not the derivative of f.*jacrev"),
        (lambda t, y: torch.full((2, 2), math.nan, dtype=D), None, "jacobian= holds NaN.*leave it out"),
        (None, lambda t, y: -1e6 * (y.detach() - torch.cos(t)), "by autograd.*not the derivative.*detach"),
    ],
    ids=["wrong", "NaN", "detached"],
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_wrong_jacobian_is_named_where_a_solve_fails(per_sample: bool, jacobian: Any, f: Any, match: str) -> None:
    def stiff(t: Tensor, y: Tensor) -> Tensor:
        return 1e5 * (torch.cos(t)[..., None] - y**3)

    if per_sample and jacobian is not None:
        one = jacobian
        jacobian = lambda t, y: one(t, y).expand(len(y), 2, 2)  # noqa: E731
    f = f or stiff
    shaped = (lambda t, y: f(t[..., None], y)) if per_sample and f is not stiff else f
    y0 = torch.full((3, 2) if per_sample else (2,), 2.0, dtype=D)
    given: dict[str, Any] = {"per_sample": per_sample, "jacobian": jacobian, "max_steps": 300}
    with pytest.raises(odenet.SolveError, match=match):
        odenet.solve(shaped, y0, [0.0, 10.0], method="esdirk54", rtol=1e-6, atol=1e-6, **given)


@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5"])
def test_transforms_say_what_to_do_instead(method: str) -> None:
    y = torch.ones(2, dtype=D)

    def end(y: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: -100 * y, y, [0.0, 1.0], method=method).y1

    for transformed in (
        lambda: torch.func.grad(lambda y: end(y).sum())(y),
        lambda: torch.func.jvp(end, (y,), (y,)),
        lambda: torch.func.jacrev(end)(y),
    ):
        with pytest.raises(ValueError, match=f"{method}.*torch.func.*torch.autograd.functional.jacobian"):
            transformed()
    for batched in (lambda: torch.func.vmap(end)(y[:, None]), lambda: torch.func.jacfwd(end)(y)):
        with pytest.raises(ValueError, match="per_sample=True"):
            batched()
    torch.autograd.functional.jacobian(end, y)


def test_a_sparse_jacobian() -> None:
    def sparse(t: Tensor, y: Tensor) -> Tensor:
        return (-100 * torch.eye(3, dtype=D)).to_sparse()

    y0 = torch.ones(3, dtype=D)
    for options in ({"method": "esdirk54"}, {"method": "implicit_euler", "step": 0.1}):
        sparsely = odenet.solve(lambda t, y: -100 * y, y0, [0.0, 1.0], jacobian=sparse, **options)
        torch.testing.assert_close(sparsely.y1, odenet.solve(lambda t, y: -100 * y, y0, [0.0, 1.0], **options).y1)


def test_what_failures_of_implicit_methods_say() -> None:
    """A singular system is told as one; the cure is nothing that is there already."""
    y0 = torch.ones(1, dtype=D)
    with pytest.raises(odenet.NonlinearSolveError, match=r"is singular\. Hint: take smaller steps"):
        odenet.solve(lambda t, y: 10 * y, y0, [0.0, 1.0], method="implicit_euler", step=0.1)
    with pytest.raises(
        odenet.MaxStepsError,
        match=r"Predictive\(jump_ts=\.\.\.\), a fast oscillation, or the rounding of a stiff f: use float64\.$",
    ):
        odenet.solve(lambda t, y: torch.sin(1000 * t) * y, y0, [0.0, 100.0], method="esdirk54", max_steps=50)
    k = torch.tensor(1e4, dtype=D, requires_grad=True)
    sol = odenet.solve(
        lambda t, y: -k * (y - torch.cos(t)), y0, [0.0, 1.0], method="esdirk54", gradient=odenet.Adjoint(max_steps=50)
    )
    with pytest.raises(odenet.SolveError, match="use gradient='discrete', which takes"):
        sol.y1.sum().backward()


def test_a_warning_is_at_the_callers_line() -> None:
    with pytest.warns(odenet.ConvergenceWarning) as told:
        odenet.solve(
            lambda t, y: -torch.sign(y - 0.3) * 5, torch.ones(1), [0.0, 1.0], method="implicit_euler", step=0.1
        )
    assert {w.filename for w in told} == {__file__}


@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5", "kvaerno5", "kvaerno3", "trbdf2"])
def test_float32_where_rounding_is_beyond_the_iterations_tolerance(method: str) -> None:
    """A fast mode that no component shows alone: f rounds by as much as 1e5 units in the last place of y."""
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=D, generator=torch.Generator().manual_seed(0)))
    a = (
        q
        @ torch.block_diag(torch.diag(torch.tensor([-1e5, -300.0])), torch.tensor([[0.0, 5.0], [-5.0, 0.0]])).to(D)
        @ q.T
    )
    y0, options = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=D), {"rtol": 1e-3, "atol": 1e-4, "max_steps": 300}
    found = [
        odenet.solve(lambda t, y, b: b @ y, y0.to(dtype), [0.0, 2.0], args=(a.to(dtype),), method=method, **options)
        for dtype in (D, torch.float32)
    ]
    exact = torch.matrix_exp(2 * a) @ y0
    errors = [float(((sol.y1 - exact).abs() / (1e-4 + 1e-3 * exact.abs())).max()) for sol in found]
    steps = [int(sol.stats.accepted + sol.stats.rejected) for sol in found]
    assert steps[1] < 1.2 * steps[0] and errors[1] < max(10.0, 2 * errors[0])


@pytest.mark.parametrize(
    "gradient", slow_unless(["discrete", "forward", "backprop", odenet.Discrete(checkpoints=3)], "discrete"), ids=str
)
@pytest.mark.parametrize("method", ["esdirk54", "radauIIA5", "kvaerno5", "kvaerno3", "trbdf2"])
def test_a_jacobian_that_is_renewed_inside_a_step_is_no_input(method: str, gradient: Any) -> None:
    """Its first entry decays alone; the second is its square times 200 / 198.6."""
    y0 = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
    sol = odenet.solve(
        lambda t, y: torch.stack([-0.7 * y[0], -200 * (y[1] - y[0] ** 2)]), y0, [0.0, 2.0], method=method,
        rtol=1e-5, atol=1e-7, gradient=gradient,
    )  # fmt: skip
    (found,) = torch.autograd.grad(sol.y1.sum(), y0)
    decay = math.exp(-1.4)
    exact = decay + 2 * 1.3 * decay**2 * 200 / 198.6
    assert sol.stats.njev > 1 and float(found[0]) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("method", ["implicit_midpoint", "sdirk2", "esdirk54", "gl4", "radauIIA5", "kvaerno3"])
@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_constant_implicit_steps_from_no_cotangent(method: str, gradient: str, per_sample: bool) -> None:
    """Of an inner output alone, and of one sample: a cotangent of zero is no singular matrix."""
    y0, k = torch.tensor([[0.7], [0.2], [1.5]], dtype=D), torch.tensor(3.0, dtype=D, requires_grad=True)

    def grad(gradient: str, last: bool) -> Tensor:
        sol = odenet.solve(
            lambda t, y: -k * torch.sin(y), y0, [0.0, 0.5, 1.0], method=method, step=0.1, gradient=gradient,
            per_sample=per_sample,
        )  # fmt: skip
        inner = sol.ys[:, 1] if per_sample else sol.ys[1]
        return torch.autograd.grad((sol.y1 if last else inner)[1].sum(), k)[0]

    for last in (False, True):
        torch.testing.assert_close(grad(gradient, last), grad("discrete", last), rtol=2e-2, atol=1e-4)


def test_constant_implicit_steps_with_events_that_some_samples_have() -> None:
    y0 = torch.tensor([[0.7], [0.2], [1.5]], dtype=D, requires_grad=True)
    given: dict[str, Any] = {"method": "esdirk54", "step": 0.1, "per_sample": True}
    event = odenet.Event(lambda t, y: y[:, 0] - 0.3, terminal=False)
    found = [
        odenet.solve(lambda t, y: -3 * torch.sin(y), y0, [0.0, 1.0], gradient=g, event=event, **given).y1
        for g in ("backprop", "discrete")
    ]
    assert torch.equal(*found)
