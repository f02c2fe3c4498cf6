"""Wrong calls: the same class of exception, or the same warning, from torchdiffeq and from the drop-in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from compat.sides import double

Y0 = double(1.0, 2.0)
T = double(0.0, 0.5, 1.0)


def f(t: Tensor, y: Tensor) -> Tensor:
    return -y


def pair(t: Tensor, y: Any) -> Any:
    return tuple(-x for x in y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


def growing(t: Tensor, y: Tensor) -> Tensor:
    return y * y


def broken(t: Tensor, y: Tensor) -> Tensor:
    return y * (math.nan if t > 0.3 else 1.0)


def wrong(**given: Any) -> Callable[[Any], Any]:
    """odeint with one argument changed."""
    call = {"func": f, "y0": Y0, "t": T} | given
    positional = (call.pop("func"), call.pop("y0"), call.pop("t"))
    return lambda ode: ode.odeint(*positional, **call)


def adjoint(**given: Any) -> Callable[[Any], Any]:
    call = {"func": Net(), "y0": Y0, "t": T} | given
    positional = (call.pop("func"), call.pop("y0"), call.pop("t"))
    return lambda ode: ode.odeint_adjoint(*positional, **call)


def twice(ode: Any) -> Any:
    y0 = Y0.clone().requires_grad_()
    ys = ode.odeint_adjoint(Net(), y0, T)
    (grad,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    return torch.autograd.grad(grad.sum(), y0)


def step_size(**more: Any) -> dict[str, Any]:
    return {"step_size": 0.1} | more


ERRORS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "y0 a list": (wrong(y0=[Y0]), AssertionError, "y0 must be a tensor or a tuple.*list"),
    "y0 a number": (wrong(y0=1.0), AssertionError, "y0 must be.*float"),
    "t a list": (wrong(t=[0.0, 1.0]), AssertionError, "t must be a tensor.*list"),
    "t of two axes": (wrong(t=T[None]), AssertionError, r"one-dimensional.*\(1, 3\)"),
    "t repeated": (wrong(t=double(0.0, 0.5, 0.5)), AssertionError, "strictly"),
    "t turns": (wrong(t=double(0.0, 1.0, 0.5)), AssertionError, "strictly"),
    "rtol with grad": (wrong(rtol=double(1e-3).requires_grad_()), AssertionError, "rtol.*detach"),
    "atol with grad": (wrong(atol=double(1e-3).requires_grad_()), AssertionError, "atol.*detach"),
    "rtol of wrong length": (
        wrong(func=pair, y0=(Y0, Y0), rtol=(1e-3, 1e-3, 1e-3)), AssertionError, "rtol must have one entry.*2; got 3",
    ),
    "grid that ends elsewhere": (
        wrong(method="euler", options={"grid_constructor": lambda f, y, t: double(0.0, 0.9)}), AssertionError, "t.-1",
    ),
    "max_num_steps": (wrong(options={"max_num_steps": 1}), AssertionError, "max_num_steps=.*rtol"),
    "blow-up": (wrong(func=growing, t=double(0.0, 2.0)), AssertionError, "blows up"),
    "NaN": (wrong(func=broken), AssertionError, r"t=0\.[23].*NaN or infinity"),
    "event without step_size": (
        wrong(t=T[:2], method="rk4", event_fn=lambda t, y: y[0] - 0.5), AssertionError, "rk4.*step_size",
    ),
    "max_order": (wrong(method="implicit_adams", options={"max_order": 13}), AssertionError, "12; got 13"),
    "unknown method": (wrong(method="dopri6"), ValueError, "Did you mean 'dopri"),
    "step_size and grid_constructor": (
        wrong(method="rk4", options=step_size(grid_constructor=lambda f, y, t: t)), ValueError, "exclude each other",
    ),
    "unknown interp": (wrong(method="rk4", options=step_size(interp="quintic")), ValueError, "interp='quintic'"),
    "step_t and jump_t overlap": (
        wrong(options={"step_t": double(0.3), "jump_t": double(0.3)}), ValueError, "step_t and jump_t",
    ),
    "event with three times": (wrong(event_fn=lambda t, y: y[0] - 0.5), ValueError, "two times.*got 3"),
    "func that is no module": (adjoint(func=f), ValueError, "adjoint_params"),
    "adjoint_method with options": (
        adjoint(method="rk4", options=step_size(), adjoint_method="euler"), ValueError, "adjoint_options",
    ),
    "integer t": (wrong(t=torch.tensor([0, 1])), TypeError, "floating point.*int64"),
    "positional rtol": (lambda ode: ode.odeint(f, Y0, T, 1e-3), TypeError, "positional"),
    "norm that is text": (wrong(options={"norm": "euclid"}), TypeError, "norm must be callable.*euclid"),
    "event_fn that gives a float": (wrong(t=T[:2], event_fn=lambda t, y: float(y[0])), TypeError, "tensor; got float"),
    "event that does not happen": (
        wrong(t=T[:2], method="euler", options=step_size(), event_fn=lambda t, y: y[0] + 1.0), RuntimeError, "20000",
    ),
    "second derivative through the adjoint": (twice, RuntimeError, "odeint"),
}  # fmt: skip


LONG = "event that does not happen"  # 20,000 steps on both sides


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == LONG else n for n in ERRORS])
def test_the_same_class(theirs: Any, ours: Any, name: str) -> None:
    call, kind, says = ERRORS[name]
    with pytest.raises(kind):
        call(theirs)
    with pytest.raises(kind, match=f"(?s){says}"):
        call(ours)


def test_an_empty_tuple(ours: Any) -> None:
    with pytest.raises(ValueError, match="empty tuple"):
        ours.odeint(pair, (), T)


def test_adjoint_norm_that_is_unknown(ours: Any) -> None:
    with pytest.raises(TypeError, match=r"'seminorm' or callable.*'half'"):
        ours.odeint_adjoint(Net(), Y0, T, adjoint_options={"norm": "half"})


def test_failures_are_the_librarys_too(ours: Any) -> None:
    with pytest.raises(odenet.MaxStepsError) as caught:
        ours.odeint(f, Y0, T, options={"max_num_steps": 1})
    assert isinstance(caught.value, AssertionError) and caught.value.t < 1.0
    with pytest.raises(odenet.NonFiniteError):
        ours.odeint(broken, Y0, T)


def test_constant_steps_go_on_through_nan(ode: Any) -> None:
    ys = ode.odeint(broken, Y0, double(0.0, 0.25, 0.5, 0.75), method="euler")
    assert bool(ys[:2].isfinite().all()) and bool(ys[-1].isnan().all())


WARNINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown option": (wrong(options={"stepsize": 0.1}), "stepsize"),
    "an option of another method": (wrong(method="rk4", options={"first_step": 0.1}), "first_step"),
    "a nonlinear solve that does not converge": (
        wrong(
            func=lambda t, y: -30 * y, t=torch.linspace(0, 3, 60, dtype=torch.float64), method="implicit_adams",
            options={"max_iters": 1},
        ), "converge",
    ),
    "a low order": (wrong(method="implicit_adams", options={"max_order": 3}), "max_order"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_the_same_warning(ode: Any, name: str) -> None:
    call, says = WARNINGS[name]
    with pytest.warns(UserWarning, match=says):
        found = call(ode)
    assert found.shape[0] >= 3  # and goes on


def test_an_implicit_solve_that_does_not_converge_warns(ours: Any) -> None:
    with pytest.warns(UserWarning, match="implicit_euler.*did not converge in 1"):
        ours.odeint(lambda t, y: -(y**3), Y0, T, method="implicit_euler", options={"max_iters": 1})


def test_unsupported_callbacks_warn(ode: Any) -> None:
    net = Net()
    net.callback_reject_step = lambda t0, y0, dt: None  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="callback_reject_step"):
        ode.odeint(net, Y0, T, method="rk4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ode.odeint(net, Y0, T, method="dopri5")


SHAPES = [(2,), (), (1, 2), (3, 1), (4, 3, 2), (6,), (2, 3), (1, 3, 2)]


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "rk4", "euler", "explicit_adams"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_result_of_another_shape(theirs: Any, ours: Any, shape: tuple[int, ...], method: str) -> None:
    """Solved to the same values where torchdiffeq solves, and an error where it raises, but for axes of length one."""
    y0 = torch.ones(3, 2, dtype=torch.float64)
    rate = torch.linspace(0.1, 0.9, math.prod(shape), dtype=torch.float64).reshape(shape)

    def solved(ode: Any) -> Tensor | None:
        try:
            return ode.odeint(lambda t, y: rate + 0 * t, y0, T, method=method)
        except RuntimeError:
            return None

    want, got = solved(theirs), solved(ours)
    if shape == (1, 3, 2):
        want = solved_as(ours, rate[0], y0, method)
    assert (want is None) == (got is None)
    if want is not None and got is not None:
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def solved_as(ode: Any, rate: Tensor, y0: Tensor, method: str) -> Tensor:
    return ode.odeint(lambda t, y: rate + 0 * t, y0, T, method=method)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_a_result_of_another_shape_is_named(ours: Any, name: str) -> None:
    more = {"adjoint_params": ()} if name == "odeint_adjoint" else {}
    with pytest.raises(RuntimeError, match=r"shape \(2,\) for y of shape \(3, 2\): dy/dt has y's shape"):
        getattr(ours, name)(lambda t, y: torch.ones(2), torch.ones(3, 2), T, method="dopri5", **more)
