"""Event mode and dense output in their less common forms: fixed steps, tuples, reversed time, single precision."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from compat.sides import FIXED, Fall, Riccati, Rotation, close, double, rotation_start, start

both_interfaces = pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
both_directions = pytest.mark.parametrize("reverse", [False, True])


def crossing(f: Rotation, state: tuple[Tensor, ...], level: float, reverse: bool) -> Tensor:
    """How long after (before) t0 the first entry of q = a cos + b sin is `level`, in closed form."""
    q, p = state[0][0, 0], state[1][0, 0]
    phase, size = torch.atan2(p, q), torch.sqrt(q**2 + p**2)
    angle = torch.acos(level / size)
    all_of_them = torch.stack([phase + s * angle + 2 * math.pi * k for s in (-1, 1) for k in range(-2, 3)]) / f.speed
    return all_of_them[all_of_them < 0].max() if reverse else all_of_them[all_of_them > 0].min()


@both_directions
@both_interfaces
def test_event_of_a_tuple_depends_on_its_inputs(theirs: Any, ours: Any, interface: str, reverse: bool) -> None:
    """Its time and the whole state at that time, in both packages and in the closed form."""
    found = []
    for ode in (theirs, ours):
        f = Rotation()
        state = tuple(x.requires_grad_() for x in rotation_start())
        t0 = double(0.3).requires_grad_()
        at, ys = ode.odeint_event(
            f, state, t0, event_fn=lambda t, y: y[0][0, 0] - 0.1, reverse_time=reverse,
            odeint_interface=getattr(ode, interface), rtol=1e-9, atol=1e-9,
        )  # fmt: skip
        assert [y.shape for y in ys] == [(2, 2, 1), (2, 2, 1), (2,)] and at.shape == ()
        inputs = (*state, f.speed)
        value = 2 * at + sum(y[-1].sum() for y in ys)
        found.append((at.detach(), *torch.autograd.grad(value, inputs)))
    flight = crossing(f, state, 0.1, reverse)
    end = f.exact(state, torch.stack([t0[0], t0[0] + flight]))
    value = 2 * (t0[0] + flight) + sum(y[-1].sum() for y in end)
    exact = ((t0[0] + flight).detach(), *torch.autograd.grad(value, inputs))
    close(found[1], exact, 1e-6)
    close(found[0], exact, 1e-5)


@both_directions
@pytest.mark.parametrize("method", FIXED)
def test_event_by_fixed_steps(theirs: Any, ours: Any, method: str, reverse: bool) -> None:
    """The cubic interpolant is the same in both, so the event is too, to the error of the method."""
    f, y0 = Fall(), double(2.0, 1.0)
    t = double(0.5, 0.4) if reverse else double(0.5, 0.6)
    options = {"step_size": 1 / 128, "interp": "cubic"}
    found = [
        ode.odeint(f, y0, t, method=method, options=options, event_fn=lambda t, y: y[0], atol=1e-10)
        for ode in (theirs, ours)
    ]
    at, ys = found[1]
    close(at.detach(), found[0][0].detach(), 1e-2 if method == "euler" else 1e-8)
    exact = (0.5 + f.lands(y0, forwards=not reverse)).detach()
    close(at.detach(), exact, 2e-2 if method == "euler" else 1e-8)
    assert float(ys[-1, 0].detach().abs()) < (0.1 if method == "euler" else 1e-7)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "bosh3"])
@both_directions
def test_zero_at_the_start(ode: Any, method: str, reverse: bool) -> None:
    if method == "rk4" and ode.__name__ == "torchdiffeq":
        pytest.skip("it multiplies by the sign at the start, 0 here, and finds no event in 20,000 steps")
    options = {"step_size": 0.01} if method == "rk4" else {}
    t = double(0.25, -1.0) if reverse else double(0.25, 1.0)
    at, ys = ode.odeint(Fall(), double(0.0, 1.0), t, method=method, options=options, event_fn=lambda t, y: y[0])
    assert float(at.detach()) == pytest.approx(0.25, abs=1e-8)
    close(ys[1].detach(), ys[0].detach(), 1e-7)


@both_directions
def test_first_of_several(ode: Any, reverse: bool) -> None:
    """Either event function may be first; they may start positive or negative."""
    f, y0 = Fall(), double(2.0, 1.0)
    sign = -1.0 if reverse else 1.0
    lands = float(f.lands(y0, forwards=not reverse).detach())
    for limit in (0.1, 10.0):
        at, _ = ode.odeint_event(
            f, y0, double(0.0), reverse_time=reverse, rtol=1e-9, atol=1e-9,
            event_fn=lambda t, y, limit=limit: torch.stack([-y[0], t - sign * limit]),
        )  # fmt: skip
        assert float(at.detach()) == pytest.approx(sign * min(abs(lands), limit), abs=1e-7)


def test_single_precision(ode: Any) -> None:
    """The time of the event has the precision of t, the state that of y0."""
    for of_time in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 1.0], dtype=of_time)
        y0 = torch.tensor([1.0], dtype=torch.float32)
        at, ys = ode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 0.5, rtol=1e-5, atol=1e-6)
        assert at.dtype == of_time and ys.dtype == torch.float32
        assert float(at) == pytest.approx(math.log(2), abs=1e-4)


def test_no_event_in_sight_ends_by_max_num_steps(ode: Any) -> None:
    with pytest.raises(AssertionError, match="max_num_steps"):
        ode.odeint(Fall(), double(2.0, 1.0), double(0.0, 1.0), event_fn=lambda t, y: y[1] - 99.0,
                   options={"max_num_steps": 5, "max_step": 0.1})  # fmt: skip


def test_interface_with_options_of_its_own(ode: Any) -> None:
    """Keyword arguments are passed to the interface, here those of the backward solve."""
    f, y0 = Fall(), double(2.0, 1.0).requires_grad_()
    at, _ = ode.odeint_event(
        f, y0, double(0.0), event_fn=lambda t, y: y[0], odeint_interface=ode.odeint_adjoint, method="dopri5",
        rtol=1e-9, atol=1e-9, adjoint_method="rk4", adjoint_options={"step_size": 0.05},
    )  # fmt: skip
    close(torch.autograd.grad(at, (y0, f.g)), torch.autograd.grad(f.lands(y0), (y0, f.g)), 1e-6)


@both_directions
def test_many_times_at_once(ours: Any, reverse: bool) -> None:
    """torchdiffeq's takes one time a call, and only forwards."""
    f, y0 = Riccati(), start()
    t = double(1.0, 0.9, 0.31, 0.0) if reverse else double(0.0, 0.31, 0.9, 1.0)
    dense = ours.odeint_dense(f, y0, t[0], t[-1], rtol=1e-8, atol=1e-8)
    exact = f.exact(y0, t).detach()
    close(dense(t).detach(), exact, 1e-5)
    for one, want in zip(t, exact, strict=True):
        close(dense(one).detach(), want, 1e-5)


@pytest.mark.parametrize("given", [{"method": "rk4"}, {"method": "dopri8"}, {"method": "bosh3"}, {}], ids=str)
def test_dense_output_that_theirs_refuses(theirs: Any, ours: Any, given: dict[str, Any]) -> None:
    f, state = Rotation(), rotation_start()
    y0: Any = state if not given else start()
    func: Any = f if not given else Riccati()
    with pytest.raises(AssertionError):
        theirs.odeint_dense(func, y0, double(0.0)[0], double(1.0)[0], **given)
    options = {"options": {"step_size": 0.01}} if given.get("method") == "rk4" else {}
    dense = ours.odeint_dense(func, y0, double(0.0)[0], double(1.0)[0], **given, **options)
    t = double(0.0, 0.2, 0.7)
    got, exact = dense(t), func.exact(y0, t)
    close(got, exact, 1e-4)


def test_adjoint_callbacks_of_a_tuple(ode: Any) -> None:
    """The backward state is (t, y, adj_y, *params), a tuple y as one vector; time runs backwards."""
    f, seen = Rotation(), []
    f.callback_step_adjoint = lambda t0, y0, dt: seen.append((float(t0), [tuple(x.shape) for x in y0], float(dt)))
    ys = ode.odeint_adjoint(f, rotation_start(), double(0.0, 0.5, 1.0), rtol=1e-6, atol=1e-6)
    assert not seen
    ys[0][-1].sum().backward()
    assert seen[0][0] == 1.0 and all(0 < t0 <= 1 and dt > 0 for t0, _, dt in seen)
    assert all(shapes == [(), (5,), (5,), ()] for _, shapes, _ in seen)
    assert [t0 for t0, *_ in seen] == sorted((t0 for t0, *_ in seen), reverse=True)


def test_callbacks_see_every_accepted_step_once(ode: Any) -> None:
    """The accepted steps follow one another without a gap, from t[0] to t[-1] or past it."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * torch.cos(9 * t)

    for t in (double(0.0, 0.5, 1.0), double(1.0, 0.5, 0.0)):
        steps: list[tuple[float, float]] = []
        f.callback_accept_step = lambda t0, y0, dt, steps=steps: steps.append((float(t0), float(dt)))  # type: ignore[attr-defined]
        ode.odeint(f, start(), t, rtol=1e-7, atol=1e-7)
        sign = 1.0 if t[1] > t[0] else -1.0
        assert steps[0][0] == float(t[0])
        for (t0, dt), (t1, _) in pairwise(steps):
            assert t1 == pytest.approx(t0 + sign * dt, abs=1e-14)
        last = steps[-1][0] + sign * steps[-1][1]
        assert sign * (last - float(t[-1])) >= -1e-14


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_at_the_latest_at_a_time(ode: Any, method: str, interface: str) -> None:
    """event_fn jumps to zero at a time: the state at that time has a gradient, and the time is a constant."""
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    options = {"step_size": 0.05} if method == "rk4" else None
    more = {"adjoint_params": (rate,)} if interface == "odeint_adjoint" else {}
    event_t, ys = ode.odeint_event(
        lambda t, y: -rate * y, y0, torch.tensor(0.0, dtype=torch.float64),
        event_fn=lambda t, y: torch.zeros_like(t) if t > 0.5 else torch.ones_like(t),
        odeint_interface=getattr(ode, interface), method=method, options=options, **more,
    )  # fmt: skip
    by_y0, by_rate = torch.autograd.grad(ys[-1].sum() + event_t, (y0, rate))
    decay = math.exp(-2 * float(event_t.detach()))
    assert float(event_t.detach()) == pytest.approx(0.5, abs=1e-6)
    close(by_y0, torch.full((2,), decay, dtype=torch.float64), 1e-5)
    close(by_rate, torch.tensor(-3 * float(event_t.detach()) * decay, dtype=torch.float64), 1e-5)


def test_a_jump_that_the_state_makes(ours: Any) -> None:
    """Its time is a constant, as in torchdiffeq, which does not warn."""
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    event_t, ys = ours.odeint_event(
        lambda t, y: -2 * y, y0, torch.tensor(0.0, dtype=torch.float64),
        event_fn=lambda t, y: torch.where(y[0] > 0.4, 1.0, -1.0),
    )  # fmt: skip
    assert float(event_t.detach()) == pytest.approx(math.log(2.5) / 2, abs=1e-7)
    with pytest.warns(UserWarning, match=r"event_fn jumps across zero.*treated as a constant"):
        (found,) = torch.autograd.grad(ys[-1].sum(), y0)
    close(found, torch.full((2,), 0.4, dtype=torch.float64), 1e-6)
