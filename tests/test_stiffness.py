"""Stiff problems are told early, with what to do; others never are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odenet
from odenet import Grid, StiffnessWarning
from odenet.methods import METHODS
from slow_cases import slow_unless

D = torch.float64


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


def robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([back - slow, slow - back - fast, fast], -1)


def van_der_pol(t: Tensor, y: Tensor, mu: float = 1000.0) -> Tensor:
    return torch.stack([y[..., 1], mu * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def forced(t: Tensor, y: Tensor) -> Tensor:
    return -1e4 * (y - torch.cos(t).unsqueeze(-1))


def hires(t: Tensor, y: Tensor) -> Tensor:
    a, b, c, d, e, f, g, h = y.unbind(-1)
    bind = 280.0 * f * h
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -bind + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            bind - 1.81 * g,
            -bind + 1.81 * g,
        ],
        -1,
    )


Case = tuple[Callable[..., Tensor], Tensor, float]
STIFF: dict[str, Case] = {
    "Robertson": (robertson, tensor(1, 0, 0), 1e4),
    "van der Pol": (van_der_pol, tensor(2, 0), 2000.0),
    "forced": (forced, tensor(0), 2.0),
    "HIRES": (hires, tensor(1, 0, 0, 0, 0, 0, 0, 0.0057), 321.8),
    "decay": (lambda t, y: -1e5 * y, tensor(1, 2, 3), 10.0),
}


def told(f: Any, y0: Tensor, end: float, **options: Any) -> tuple[list[str], odenet.Solution]:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        sol = odenet.solve(f, y0, [0.0, end], on_failure="return", **options)
    assert all(w.category is StiffnessWarning for w in caught)
    return [str(w.message) for w in caught], sol


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", slow_unless(["tsit5", "dopri5", "bosh3", "dopri8"], "tsit5", "bosh3"))
@pytest.mark.parametrize("name", STIFF)
def test_stiff_problems_are_told_once(name: str, method: str, per_sample: bool) -> None:
    f, y0, end = STIFF[name]
    y0 = y0.expand(2, -1) if per_sample else y0
    messages, _ = told(f, y0, end, method=method, max_steps=400, per_sample=per_sample)
    assert len(messages) == 1
    assert "stiff" in messages[0] and "esdirk54" in messages[0] and "radauIIA5" in messages[0]
    assert ("sample 0" in messages[0]) == per_sample


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_at_other_tolerances(tolerance: float) -> None:
    for f, y0, end in (STIFF["van der Pol"], STIFF["decay"]):
        messages, _ = told(f, y0, end, rtol=tolerance, atol=tolerance / 100, max_steps=400)
        assert len(messages) == 1


def test_after_some_fifty_steps() -> None:
    """A solve of 70 attempted steps is told; one of fifty is not looked at."""
    f, y0, end = STIFF["van der Pol"]
    assert told(f, y0, end, max_steps=80)[0]
    assert not told(f, y0, end, max_steps=50)[0]


def test_one_sample_of_several() -> None:
    """That which is stiff is named, also after others have left the batch."""
    rate = tensor(1, 1e5, 1)

    def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return -rate.unsqueeze(-1) * y

    messages, _ = told(f, torch.ones(3, 2, dtype=D), 10.0, args=(rate,), per_sample=True, max_steps=400)
    assert len(messages) == 1 and "sample 1)" in messages[0]


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "gauss", "forward"])
def test_in_every_gradient_mode_and_with_events_and_outputs(gradient: str) -> None:
    f, y0, end = STIFF["decay"]
    y0 = y0.clone().requires_grad_()
    event = odenet.Event(lambda t, y: y[..., 0] - 0.5, terminal=False)
    ts = torch.linspace(0.0, end, 5, dtype=D)
    with pytest.warns(StiffnessWarning) as caught:
        odenet.solve(f, y0, ts, gradient=gradient, max_steps=300, on_failure="return", dense=True, event=event)
    assert len(caught) == 1


def oscillator(w: float) -> Callable[..., Tensor]:
    return lambda t, y: torch.stack([y[..., 1], -w * w * y[..., 0]], -1)


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)


EASY: dict[str, Case] = {
    "Lorenz": (lorenz, tensor(1, 1, 1), 12.0),
    "pendulum": (pendulum, tensor(1, 0), 100.0),
    "oscillator": (oscillator(10.0), tensor(1, 0), 40.0),
    "decay": (lambda t, y: -y, tensor(1, 2), 30.0),
    "growth": (lambda t, y: y, tensor(1, 2), 10.0),
    "van der Pol": (lambda t, y: van_der_pol(t, y, 2.0), tensor(2, 0), 60.0),
    "logistic": (lambda t, y: y * (1 - y), tensor(0.01), 60.0),
    "waves": (lambda t, y: torch.sin(50 * t) * y, tensor(1), 20.0),
}


@pytest.mark.parametrize("tolerance", slow_unless([1e-3, 1e-6, 1e-9], 1e-3, 1e-6))
@pytest.mark.parametrize("name", EASY)
def test_others_are_not(name: str, tolerance: float) -> None:
    f, y0, end = EASY[name]
    for method in ("tsit5", "dopri5", "bosh3" if tolerance == 1e-3 else "dopri8"):
        messages, sol = told(f, y0, end, method=method, rtol=tolerance, atol=tolerance / 100, max_steps=1500)
        assert not messages
        assert sol.stats.accepted > 5


def network(seed: int) -> tuple[Callable[..., Tensor], Tensor]:
    """A random multilayer perceptron as a field, of widths and weights that are drawn too."""
    generator = torch.Generator().manual_seed(seed)
    wide, dim = (int(n) for n in torch.randint(2, 40, (2,), generator=generator))
    gain = float(torch.rand((), generator=generator)) * 5 + 0.5
    a = torch.randn(wide, dim, dtype=D, generator=generator) * gain / dim**0.5
    b = torch.randn(dim, wide, dtype=D, generator=generator) * gain / wide**0.5
    c = torch.randn(wide, dtype=D, generator=generator)
    return lambda t, y: torch.tanh(y @ a.mT + c) @ b.mT, torch.randn(dim, dtype=D, generator=generator)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_not(seed: int) -> None:
    f, y0 = network(seed)
    tolerance = (1e-3, 1e-5, 1e-7, 1e-10)[seed % 4]
    for dtype in (D, torch.float32):
        start = y0.to(dtype)

        def field(t: Tensor, y: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return f(t, y.double()).to(dtype)

        # float32 at 1e-10 has errors that are rounding alone
        messages, _ = told(field, start, 5.0, rtol=tolerance, atol=tolerance / 100, max_steps=600)
        assert not messages


@pytest.mark.parametrize("rate", [5.0, 8.0, 13.0, 15.5])
def test_a_step_that_an_event_cuts_short_is_not_the_measure(rate: float) -> None:
    """Some 700 steps at the bound are soon taken; those that end at an event are a hundred times shorter."""
    messages, sol = told(
        lambda t, y: -100 * (y - torch.cos(t)), tensor(1), 20.0, rtol=1e-4, atol=1e-4,
        event=odenet.Event(lambda t, y: torch.sin(rate * t + 0.1), terminal=False),
    )  # fmt: skip
    assert not messages
    assert len(sol.hits.t) == int((rate * 20.0 + 0.1) / math.pi)


COMPILED = pytest.param({"compile": True}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{}, {"per_sample": True}, COMPILED], ids=str)
def test_the_failure_itself_says_so(options: dict[str, Any]) -> None:
    f, y0, end = STIFF["decay"]
    y0 = y0.expand(2, 3) if "per_sample" in options else y0
    match = (
        r"max_steps=200.*because the problem is stiff.*'tsit5' are unstable\. Hint: take an implicit method.*radauIIA5"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StiffnessWarning)
        with pytest.raises(odenet.MaxStepsError, match=match):
            odenet.solve(f, y0, [0.0, end], max_steps=200, **options)
        if "compile" in options:
            return
        with pytest.raises(odenet.MaxStepsError, match=r"reach the end\. Hint: raise max_steps"):
            odenet.solve(
                lambda t, y: torch.sign(torch.sin(1e4 * t)).unsqueeze(-1) + 0 * y, y0, [0.0, 100.0], max_steps=200,
                **options,
            )  # fmt: skip


def test_it_costs_no_evaluation() -> None:
    """The warning comes from slopes that are there: f is called as often as with warnings ignored by a short solve."""
    calls = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return van_der_pol(t, y)

    messages, sol = told(f, tensor(2, 0), 2000.0, max_steps=300)
    assert messages and len(calls) == sol.stats.nfe == 2 + 6 * 300


def test_what_the_hints_say_works() -> None:
    """From the unknown name to a solution, against SciPy."""
    f, y0, end = STIFF["Robertson"]
    for name, ours in (("BDF", "esdirk54"), ("Radau", "radauIIA5"), ("LSODA", "esdirk54")):
        with pytest.raises(ValueError, match=f"Did you mean '{ours}'"):
            odenet.solve(f, y0, [0.0, end], method=name)
    with pytest.raises(ValueError, match=r"step is required: method='gl4'.*Give step=\.\.\., or.*'esdirk54'"):
        odenet.solve(f, y0, [0.0, end], method="gl4")
    with pytest.raises(ValueError, match="adaptive method such as 'tsit5'"):
        odenet.solve(f, y0, [0.0, end], method="rk4")
    grid = Grid(torch.logspace(-6, 4, 100, dtype=D))
    sol = odenet.solve(f, y0, [0.0, end], method="radauIIA5", controller=grid)
    exact = solve_ivp(
        lambda t, y: robertson(tensor(t), torch.from_numpy(y)).numpy(), (0.0, end), y0.numpy(), method="Radau",
        rtol=1e-10, atol=1e-14,
    ).y[:, -1]  # fmt: skip
    torch.testing.assert_close(sol.y1, torch.from_numpy(exact), rtol=1e-5, atol=0.0)
    for method in ("esdirk54", "radauIIA5"):
        sol = odenet.solve(f, y0, [0.0, end], method=method, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(sol.y1, torch.from_numpy(exact), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("heun", 2.0), ("ralston", 2.0), ("bosh3", 2.5127), ("dopri5", 3.3066), ("rk4", 2.7853), ("euler", 2.0)],
)
def test_stability_intervals(name: str, bound: float) -> None:
    """Of Hairer & Wanner II, IV.2: those of orders 1 to 4 depend on the order alone; of DOPRI5, figure 2.1."""
    tableau: Any = METHODS[name]
    assert tableau.tableau.real_stability == pytest.approx(bound, abs=0.011)
