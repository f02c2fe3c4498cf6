"""The same solves through both packages: the same values, and both those of the closed form."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compat.sides import (
    ADAMS,
    ADAPTIVE,
    DTYPES,
    FIXED,
    ONLY_OURS,
    JumpingField,
    Riccati,
    Rotation,
    close,
    double,
    real,
    rotation_start,
    rounding,
    start,
)

# Off the grids of the fixed steps, so that what lies between the steps is compared as well.
TIMES = (0.0, 0.3, 0.35, 0.8, 1.0)
# Measured for torchdiffeq: its interpolant across long steps; the estimate of fehlberg2 is a hundredth of its error.
ERROR_OVER_TOLERANCE = {"dopri5": 20, "adaptive_heun": 20, "fehlberg2": 600}


def times(reverse: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    t = torch.tensor(TIMES, dtype=real(dtype))
    return t.flip(0) if reverse else t


# A precision and a direction of time: all of both, not all pairs.
WAYS = [(torch.float64, False), (torch.float64, True), (torch.float32, True), (torch.complex128, False)]
WAYS += [(torch.complex64, False)]


def solve(package: Any, f: Any, y0: Any, t: Tensor, method: str, options: dict[str, Any], tol: float = 1e-6) -> Any:
    with torch.no_grad():
        return package.odeint(f, y0, t, method=method, rtol=tol, atol=tol, options=options)


@pytest.mark.parametrize(("dtype", "reverse"), WAYS)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps(theirs: Any, ours: Any, method: str, dtype: torch.dtype, interp: str, reverse: bool) -> None:
    """On the same grid nothing but rounding may differ, between the steps either."""
    f, y0, t = Riccati(dtype), start(dtype), times(reverse, dtype)
    options = {"step_size": 1 / 16, "interp": interp}
    want = solve(theirs, f, y0, t, method, options)
    got = solve(ours, f, y0, t, method, options)
    close(got, want, rounding(dtype))
    close(got, f.exact(y0, t), 0.1 if method == "euler" else 2e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_of_a_tuple(theirs: Any, ours: Any, method: str, reverse: bool) -> None:
    f, y0, t = Rotation(), rotation_start(), times(reverse)
    options = {"step_size": 0.07, "interp": "cubic"}
    got = solve(ours, f, y0, t, method, options)
    close(got, solve(theirs, f, y0, t, method, options), rounding(torch.float64))
    close(got, f.exact(y0, t), 0.2 if method == "euler" else 5e-3)


@pytest.mark.parametrize("step", [0.07, 0.1, 0.3, 2.0])
def test_last_step_is_shortened(theirs: Any, ours: Any, step: float) -> None:
    """No step size divides [0, 1]: the last step ends at 1 all the same."""
    f, y0, t = Riccati(), start(), double(0.0, 1.0)
    got = solve(ours, f, y0, t, "rk4", {"step_size": step})
    close(got, solve(theirs, f, y0, t, "rk4", {"step_size": step}), rounding(torch.float64))
    close(got, f.exact(y0, t), 1e-2 if step > 1 else 1e-4)


@pytest.mark.parametrize("method", [*FIXED, "implicit_adams"])
def test_without_options_the_grid_is_t(theirs: Any, ours: Any, method: str) -> None:
    f, y0, t = Riccati(), start(), torch.linspace(0, 1, 21, dtype=torch.float64) ** 2
    got = solve(ours, f, y0, t, method, {})
    want = solve(theirs, f, y0, t, method, {})
    close(got, want, 1e-4 if "adams" in method else rounding(torch.float64))  # theirs wants even steps
    close(got, f.exact(y0, t), 0.05)


@pytest.mark.parametrize("reverse", [False, True])
def test_grid_constructor(theirs: Any, ours: Any, reverse: bool) -> None:
    """It is called with (func, y0, t) in the caller's direction of time."""
    f, y0, t = Riccati(), start(), times(reverse)
    seen: list[Tensor] = []

    def grid(func: Any, y: Tensor, t: Tensor) -> Tensor:
        assert torch.equal(y, y0) and func(t[0], y).shape == y.shape
        seen.append(t)
        return t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 12, dtype=torch.float64) ** 2

    got = solve(ours, f, y0, t, "midpoint", {"grid_constructor": grid, "interp": "cubic"})
    close(got, solve(theirs, f, y0, t, "midpoint", {"grid_constructor": grid, "interp": "cubic"}), 1e-14)
    close(got, f.exact(y0, t), 5e-3)
    assert all(torch.equal(each, t) for each in seen) and len(seen) >= 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["euler", "heun2", "rk4"])
def test_perturb(ode: Any, method: str, reverse: bool) -> None:
    """With `perturb` a step evaluates f only inside itself, so a jump at a grid point causes no error."""
    t, y0 = double(0.0, 0.25, 0.5, 0.75, 1.0), double(2.0)
    f = JumpingField()
    exact = 2.0 + double(0.0, 0.25, 0.5, 3.0, 5.5)[:, None]
    if reverse:
        t, exact = t.flip(0), 2.0 - double(0.0, 2.5, 5.0, 5.25, 5.5)[:, None]
    close(solve(ode, f, y0, t, method, {"perturb": True}), exact, 1e-14)
    assert 0.5 not in f.times
    if method != "euler" or reverse:
        assert abs(float((solve(ode, f, y0, t, method, {}) - exact).abs().max())) > 0.1


@pytest.mark.parametrize(("dtype", "reverse"), WAYS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps(theirs: Any, ours: Any, method: str, dtype: torch.dtype, reverse: bool) -> None:
    """The tolerance bounds the error of a step; torchdiffeq adds the error of interpolating back from past the end."""
    f, y0, t = Riccati(dtype), start(dtype), times(reverse, dtype)
    tol = 1e-4 if real(dtype) == torch.float32 or ADAPTIVE[method] == 2 else 1e-6
    got, want = solve(ours, f, y0, t, method, {}, tol), solve(theirs, f, y0, t, method, {}, tol)
    many = ERROR_OVER_TOLERANCE.get(method, 250)
    close(got, want, 2 * many * tol)
    close(want, f.exact(y0, t), many * tol)
    close(got, f.exact(y0, t), many * tol)
    close(got[-1], f.exact(y0, t)[-1], (many if method == "fehlberg2" else 20) * tol)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_of_a_tuple(theirs: Any, ours: Any, method: str, reverse: bool) -> None:
    f, y0, t = Rotation(), rotation_start(), times(reverse)
    tol = 1e-4 if ADAPTIVE[method] == 2 else 1e-6
    got, want = solve(ours, f, y0, t, method, {}, tol), solve(theirs, f, y0, t, method, {}, tol)
    many = ERROR_OVER_TOLERANCE.get(method, 250)
    close(got, want, 2 * many * tol)
    close(got, f.exact(y0, t), many * tol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["dopri8", "dopri5", "bosh3"])
def test_adaptive_methods_have_the_same_tableaus(theirs: Any, ours: Any, method: str, dtype: torch.dtype) -> None:
    """A step of at most `min_step` is always accepted, so these bounds make all steps 1/8 long.

    Not so adaptive_heun and fehlberg2: theirs begin a step with the last slope of the step before, which is not that at
    its end.
    """
    f, y0, t = Riccati(dtype), start(dtype), torch.tensor([0.0, 0.5, 1.0], dtype=real(dtype))
    options = {"first_step": 1 / 8, "min_step": 1 / 8, "max_step": 1 / 8}
    got = solve(ours, f, y0, t, method, options)
    close(got, solve(theirs, f, y0, t, method, options), rounding(dtype))
    close(got, f.exact(y0, t), max(1e-2 ** (ADAPTIVE[method] / 2), rounding(dtype)))


@pytest.mark.parametrize(("dtype", "reverse"), WAYS)
@pytest.mark.parametrize("method", ADAMS)
def test_adams(ode: Any, method: str, dtype: torch.dtype, reverse: bool) -> None:
    """Up to the order at which they are stable on this grid, both are as good as their start, which is rk4."""
    f, y0, t = Riccati(dtype), start(dtype), times(reverse, dtype)
    single = real(dtype) == torch.float32
    for max_order in (4, 6) if method == "explicit_adams" else (4, 6, 12):
        options = {"step_size": 1 / 64, "max_order": max_order, "interp": "cubic"}
        got = solve(ode, f, y0, t, method, options, 1e-5 if single else 1e-8)
        close(got, f.exact(y0, t), 2e-5 if single else 6e-6 if max_order == 4 else 2e-7)


def test_adams_options(ode: Any) -> None:
    f, y0, t = Riccati(), start(), torch.linspace(0, 1, 33, dtype=torch.float64)
    both = {"max_order": 5, "max_iters": 20}
    got = solve(ode, f, y0, t, "implicit_adams", both, 1e-12)
    close(got, f.exact(y0, t), 1e-6)
    assert torch.equal(got, solve(ode, f, y0, t, "fixed_adams", both, 1e-12))
    explicit = solve(ode, f, y0, t, "implicit_adams", {"max_order": 5, "implicit": False})
    assert torch.equal(explicit, solve(ode, f, y0, t, "explicit_adams", {"max_order": 5}))
    close(explicit, f.exact(y0, t), 1e-5)
    state = solve(ode, Rotation(), rotation_start(), t, "implicit_adams", {"max_order": 5})
    close(state, Rotation().exact(rotation_start(), t), 1e-4)


def test_adams_of_a_low_order_is_rk4(theirs: Any, ours: Any) -> None:
    f, y0, t = Riccati(), start(), torch.linspace(0, 1, 17, dtype=torch.float64)
    want = solve(theirs, f, y0, t, "rk4", {})
    with pytest.warns(UserWarning, match="max_order"):
        close(solve(ours, f, y0, t, "implicit_adams", {"max_order": 3}), want, rounding(torch.float64))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", [None, "LSODA", "RK45", "DOP853", "BDF", "Radau"])
def test_scipy_solver(ode: Any, solver: str | None, reverse: bool) -> None:
    pytest.importorskip("scipy")
    t = times(reverse)
    options: dict[str, Any] = {"max_step": 0.1} | ({"solver": solver} if solver else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # SciPy: all but LSODA have no `min_step`, which theirs passes on
        for f, y0 in ((Riccati(), start()), (Rotation(), rotation_start())):
            got = solve(ode, f, y0, t, "scipy_solver", options, 1e-8)
            close(got, f.exact(y0, t), 1e-5)
        if solver in ("RK45", "DOP853"):
            y0 = start(torch.complex128)
            got = solve(ode, Riccati(), y0, t, "scipy_solver", options, 1e-8)
            close(got, Riccati().exact(y0, t), 1e-5)
        assert torch.equal(solve(ode, Riccati(), start(), t[:1], "scipy_solver", options), start()[None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE, *ADAMS])
def test_what_f_is_given(ode: Any, method: str, dtype: torch.dtype) -> None:
    """t is 0-d and real in y's precision, whatever the precision of the output times."""
    y0 = start(dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert t.shape == () and t.dtype == real(dtype)
        assert y.shape == y0.shape and y.dtype == dtype
        return -y

    for of_time in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 0.1, 0.2], dtype=of_time)
        got = solve(ode, f, y0, t, method, {}, 1e-3)
        assert got.dtype == dtype and got.shape == (3, 3) and torch.equal(got[0], y0)
        assert torch.equal(ode.odeint(f, y0, t[:1], method=method), y0[None])


def test_default_method_is_dopri5(ode: Any) -> None:
    f, y0, t = Riccati(), start(), double(*TIMES)
    close(ode.odeint(f, y0, t), f.exact(y0, t).detach(), 1e-6)
    assert torch.equal(ode.odeint(f, y0, t), ode.odeint(f, y0, t, method="dopri5", rtol=1e-7, atol=1e-9))


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_tolerances_of_every_form(ode: Any, method: str) -> None:
    """A number, one per element, or one per tensor of a tuple: a loose one changes the steps."""
    f, y0, t = Riccati(), start(), double(0.0, 1.0)
    exact = f.exact(y0, t).detach()
    for tol in (1e-7, torch.tensor(1e-7), double(1e-7, 1e-7, 1e-7)):
        close(ode.odeint(f, y0, t, method=method, rtol=tol, atol=tol).detach(), exact, 1e-4)
    g, state = Rotation(), rotation_start()
    rtol = (1e-7, double(1e-7, 1e-6).reshape(2), torch.tensor(1e-7))
    for given in (rtol, 1e-7, [1e-7, 1e-7, 1e-7]):
        got = ode.odeint(g, state, t, method=method, rtol=given, atol=given)
        close(tuple(x.detach() for x in got), tuple(x.detach() for x in g.exact(state, t)), 1e-4)


@pytest.mark.parametrize("method", ONLY_OURS)
class TestMethodsOfTheMainBranch:
    """Compared with the closed form alone, as the release lacks these methods."""

    def options(self, method: str, step: float) -> dict[str, Any]:
        if method == "tsit5":  # adaptive: these bounds make its steps constant
            return {"first_step": step, "min_step": step, "max_step": step}
        return {"step_size": step}

    def test_order(self, ours: Any, method: str) -> None:
        """The slope of log error against log step. gl4 and tsit5 are of a lower order in torchdiffeq itself."""
        f, y0, t = Riccati(), start(), double(0.0, 4.0)
        large = ONLY_OURS[method] > 4 and method != "tsit5"
        steps = (0.5, 0.25, 0.125) if large else (0.125, 0.0625, 0.03125)
        errors = [
            float((solve(ours, f, y0, t, method, self.options(method, step)) - f.exact(y0, t))[-1].detach().abs().max())
            for step in steps
        ]
        slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        # the solution decays, and tsit5's error with it faster than its order says
        assert -0.35 < slope - ONLY_OURS[method] < (2.0 if method == "tsit5" else 0.35), errors

    @pytest.mark.parametrize(("dtype", "reverse"), WAYS)
    def test_values(self, ours: Any, method: str, dtype: torch.dtype, reverse: bool) -> None:
        f, y0, t = Riccati(dtype), start(dtype), times(reverse, dtype)
        got = solve(ours, f, y0, t, method, self.options(method, 1 / 16) | self.smooth(method))
        close(got, f.exact(y0, t), 0.05 if ONLY_OURS[method] == 1 else 1e-3)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_tuple(self, ours: Any, method: str, reverse: bool) -> None:
        f, y0, t = Rotation(), rotation_start(), times(reverse)
        got = solve(ours, f, y0, t, method, self.options(method, 1 / 32) | self.smooth(method))
        close(got, f.exact(y0, t), 0.1 if ONLY_OURS[method] == 1 else 2e-3)

    def smooth(self, method: str) -> dict[str, Any]:
        return {} if method == "tsit5" else {"interp": "cubic"}

    def test_stiff(self, ours: Any, method: str) -> None:
        """Implicit methods allow steps far above 1/1000, the time scale of the decayed component."""
        if method == "tsit5":
            pytest.skip("explicit")
        t = torch.linspace(0, 2, 41, dtype=torch.float64)
        got = solve(ours, lambda t, y: -1000 * (y - torch.cos(t)) - torch.sin(t), double(1.0), t, method, {})
        close(got, torch.cos(t)[:, None], 1e-3)
