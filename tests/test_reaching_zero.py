"""Event functions that become exactly zero, and zeros that only the dense output of a step has."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import SETTINGS
from odenet import Event, Status
from odenet.compat import torchdiffeq as drop_in
from odenet.methods import METHODS
from slow_cases import slow_unless

D = torch.float64
T = 0.6
LEVEL = math.exp(-T)  # of exp(-t) at T

# what each is along exp(-t), the times at which it comes to zero, and from which side
REACHES: dict[str, tuple[Any, list[float], int]] = {
    "from one on": (lambda t, y: torch.where(t > T, torch.zeros_like(y), torch.ones_like(y)), [T], -1),
    "from below": (lambda t, y: torch.where(t > T, torch.zeros_like(y), -torch.ones_like(y)), [T], 1),
    "clamped": (lambda t, y: (T - t).clamp(min=0) * torch.ones_like(y), [T], -1),
    "clamped state": (lambda t, y: (y - LEVEL).clamp(min=0), [T], -1),
    "a condition on the state": (lambda t, y: torch.where(y > LEVEL, 1.0, 0.0).to(y.dtype), [T], -1),
    "then to the other side": (
        lambda t, y: ((t < T).to(y.dtype) - (t > 0.8).to(y.dtype)) * torch.ones_like(y),
        [T],
        -1,
    ),
    "then back again": (lambda t, y: ((t < T) | (t > 0.8)).to(y.dtype) * torch.ones_like(y), [T], -1),
    "again and again": (lambda t, y: torch.sin(20 * t).clamp(min=0) * y, [math.pi * k / 20 for k in (1, 3, 5)], -1),
    "zero at first": (lambda t, y: (t - T).clamp(min=0) * y, [], 0),
    "zero at first, then a jump": (lambda t, y: torch.where(t > T, 1.0, 0.0) * y, [], 0),
    "zero all along": (lambda t, y: 0 * y, [], 0),
    "a touch": (lambda t, y: (t - T) ** 2 * y, [], 0),
    "a touch with a corner": (lambda t, y: (t - T).abs() * y, [], 0),
}


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


@pytest.mark.parametrize(
    ("per_sample", "steps"),
    [(False, {}), (True, {"method": "dopri8", "step": 0.25}), (False, {"method": "gl4", "step": 0.3})],
)
@pytest.mark.parametrize("kind", REACHES)
def test_a_value_that_becomes_zero_is_an_event(kind: str, steps: dict[str, Any], per_sample: bool) -> None:
    """Once, when it gets there, whatever it does then; also where a step ends on a touch (at 0.6, of steps of 0.3)."""
    fn, times, sign = REACHES[kind]
    identity = {"terminal": False, "reset": lambda t, y: y}
    cases: list[tuple[int, dict[str, Any]]] = [(0, {"terminal": False}), (sign or 1, {}), (sign or -1, identity)]
    for direction, settings in [*cases, (-sign, identity)] if sign else cases:
        options: dict[str, Any] = {"per_sample": per_sample, "rtol": 1e-9, "atol": 1e-9, **steps}
        event = Event(fn, direction=direction, **settings)
        sol = odenet.solve(decay, torch.ones(1, dtype=D), [0.0, 1.0], event=event, **options)
        expected = times if direction in (0, sign) else []
        expected = expected[:1] if event.terminal else expected
        error = 1e-5 if steps.get("method") == "gl4" else 1e-8
        assert sol.hits.t.flatten().tolist() == pytest.approx(expected, abs=error)
        end = expected[0] if event.terminal and expected else 1.0
        assert sol.y1.tolist() == pytest.approx([math.exp(-end)], abs=1e-4)


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_at_the_latest_at_a_time(end: float) -> None:
    """The idiom: whatever else is looked for, and the time limit beside it. In both directions of time."""
    events = [Event(lambda t, y: y[0] - 9.0), Event(lambda t, y: torch.zeros_like(t) if t / end > 0.7 else t.abs() + 1)]
    sol = odenet.solve(decay, torch.ones(1, dtype=D), [0.0, end], event=events)
    assert sol.event.which == 1 and sol.status == Status.EVENT
    assert float(sol.event.t) == pytest.approx(0.7 * end, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
@pytest.mark.parametrize("function", ["odeint", "odeint_adjoint", "odeint_event"])
def test_the_drop_in_ends_where_the_event_function_becomes_zero(function: str, method: str, dtype: torch.dtype) -> None:
    def at_the_latest(t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(t) if t > T else y[0] + 1

    y0 = torch.ones(1, dtype=dtype)
    options: dict[str, Any] = {} if method == "dopri5" else {"options": {"step_size": 0.1}}
    if function == "odeint_event":
        time, ys = drop_in.odeint_event(
            decay, y0, torch.tensor(0.0, dtype=dtype), event_fn=at_the_latest, method=method, **options
        )  # fmt: skip
    else:
        more = {"adjoint_params": ()} if function == "odeint_adjoint" else {}
        t = torch.tensor([0.0, 1.0], dtype=dtype)
        time, ys = getattr(drop_in, function)(decay, y0, t, event_fn=at_the_latest, method=method, **options, **more)
    assert float(time) == pytest.approx(T, abs=1e-6)
    assert float(ys[-1]) == pytest.approx(LEVEL, abs=1e-5)


def test_the_end_of_the_solve_counts() -> None:
    """There nobody asks what the value would do after it."""
    sol = odenet.solve(decay, torch.ones(1, dtype=D), [0.0, T], event=Event(lambda t, y: (t - T) ** 2))
    assert sol.hits.t.tolist() == [T]


# --- zeros of the dense output alone


@pytest.mark.filterwarnings("ignore:.*nonlinear solve did not converge")  # next to a pole
@pytest.mark.parametrize("interpolation", slow_unless(["own", "linear", "cubic"], "own"))
@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_event_is_a_zero_at_the_state_that_is_returned(name: str, interpolation: str) -> None:
    """y' = 50 y from 1 in steps of 0.1: the polynomial of a step dips far below zero, and the solution does not.

    Of implicit methods the steps may have poles there, between which the solution is negative.
    """
    if (name, interpolation) in (("kvaerno5", "linear"), ("esdirk54", "linear")):
        pytest.skip("the end of such a step grows by 1e6 with its length: the level is lost beside that")
    method, y0 = METHODS[name].with_dense_output(interpolation), torch.ones(1, dtype=D)
    options: dict[str, Any] = {"method": method, "step": 0.1, "on_failure": "return"}
    level = -1.0 if interpolation != "linear" else 3.0
    event = Event(lambda t, y: y[0] - level, terminal=False)
    sol = odenet.solve(lambda t, y: 50 * y, y0, [0.0, 0.2], event=event, **options)
    assert bool(((sol.hits.y[:, 0] - level).abs() < 1e-8).all())
    if name in ("rk4", "euler", "dopri5", "tsit5", "dopri8", "heun3"):  # whose steps grow with their length
        assert len(sol.hits.t) == (1 if level > 0 else 0)
        side = Event(lambda t, y: torch.where(y[0] > -1.0, 1.0, -1.0).to(D))
        none = odenet.solve(lambda t, y: 50 * y, y0, [0.0, 0.2], event=side, **options)
        assert none.event is None
        plain = odenet.solve(lambda t, y: 50 * y, y0, [0.0, 0.2], **options)
        assert torch.equal(none.y1, plain.y1)  # steps that were tried in vain have left no trace


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_false_zero_hides_no_true_one(per_sample: bool) -> None:
    """Beside a value that has one, and each sample for itself."""
    y0 = torch.tensor([[1.0], [-0.02]], dtype=D)
    event = Event(lambda t, y: torch.cat([y + 1, y - 2.0], -1), terminal=False)
    options: dict[str, Any] = {"method": "rk4", "step": 0.1, "event": event}
    for i, start in enumerate(y0):
        row = start[None] if per_sample else start
        sol = odenet.solve(lambda t, y: 50 * y, row, [0.0, 0.2], per_sample=per_sample, **options)
        assert sol.hits.y.flatten().tolist() == pytest.approx([2.0] if i == 0 else [-1.0], abs=1e-9)
    if per_sample:
        both = odenet.solve(lambda t, y: 50 * y, y0, [0.0, 0.2], per_sample=True, **options)
        assert both.hits.y.flatten().tolist() == pytest.approx([2.0, -1.0], abs=1e-9)


@pytest.mark.parametrize("gradient", slow_unless(SETTINGS, "discrete", "adjoint"), ids=str)
def test_a_blow_up_is_no_fault_of_the_event_function(gradient: Any) -> None:
    """y' = y^2 ends at t = 1; what fn makes of y overflows before y does."""
    y0, per_sample = torch.ones(1, 1, dtype=D, requires_grad=True), gradient in ("discrete", "adjoint")
    event = Event(lambda t, y: torch.exp(y[..., 0]), terminal=False)
    options: dict[str, Any] = {"gradient": gradient, "event": event, "per_sample": per_sample}
    sol = odenet.solve(lambda t, y: y * y, y0, [0.0, 2.0], on_failure="return", **options)
    assert bool((torch.as_tensor(sol.status) == Status.BLOW_UP).all())
    with pytest.raises(odenet.BlowUpError):
        odenet.solve(lambda t, y: y * y, y0, [0.0, 2.0], **options)


@pytest.mark.filterwarnings("ignore:gradient='reversible'. the solution is not accurate")
def test_a_reversible_solve_that_blows_up_says_so() -> None:
    """It is not stable on what decays: the state grows without bound, past what an event function can be asked."""
    event = Event(lambda t, y: y[0] + 1000.0)
    sol = odenet.solve(
        lambda t, y: -50 * y, torch.ones(2, dtype=D, requires_grad=True), [0.0, 60.0], gradient="reversible",
        event=event, on_failure="return",
    )  # fmt: skip
    assert sol.status == Status.BLOW_UP


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
@pytest.mark.parametrize("fn", [torch.relu, lambda v: v.clamp(min=0), lambda v: torch.where(v > 0, v, 0 * v)])
def test_the_time_of_what_stays_zero_has_the_derivative_before_it(fn: Any, gradient: Any, per_sample: bool) -> None:
    y0 = torch.tensor([[1.0, 0.9]] if per_sample else [1.0, 0.9], dtype=D, requires_grad=True)
    rate, level = (torch.tensor(x, dtype=D, requires_grad=True) for x in (2.0, 0.4))
    event = Event(lambda t, y: fn(y[..., 0] - level))
    options: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
    sol = odenet.solve(
        lambda t, y: -rate * y, y0, [0.0, 3.0], event=event, per_sample=per_sample, gradient=gradient, **options
    )
    found = torch.autograd.grad(sol.event.t.sum() + sol.y1[..., 1].sum(), (y0, rate, level))
    time = torch.log(y0[..., 0] / level) / rate
    right = torch.autograd.grad(time.sum() + (level * y0[..., 1] / y0[..., 0]).sum(), (y0, rate, level))
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- what it costs


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ["discrete", "backprop", "gauss"])
@pytest.mark.parametrize(("method", "count"), [("dopri8", 34), ("rk4", 10)])
def test_dense_output_is_computed_once(method: str, count: int, gradient: str, per_sample: bool) -> None:
    """For outputs within two steps, for events, and for both together; and it is the same for gradients."""
    (k,) = (torch.tensor(1.3, dtype=D, requires_grad=True),)
    calls = 0

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -k * y

    options: dict[str, Any] = {
        "args": (k,), "method": method, "controller": odenet.ConstantStep(0.5, every_output=False),
        "gradient": gradient, "per_sample": per_sample,
    }  # fmt: skip
    event, found = Event(lambda t, y, k: y[..., 0] + 1), []
    for ts, more in (([0.0, 1.0], {"event": event}), (None, {}), (None, {"event": event})):
        calls = 0
        ts = torch.linspace(0, 1, 9, dtype=D) if ts is None else ts
        sol = odenet.solve(f, torch.ones(1, 1, dtype=D), ts, **options, **more)
        assert calls == int(sol.stats.nfe) == count
        found.append(torch.autograd.grad(sol.ys.sum(), k)[0])
    assert torch.equal(found[1], found[2])
