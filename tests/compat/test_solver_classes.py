"""torchdiffeq's solver classes, built and stepped by hand, and subclasses of them, as other people's programs do it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from compat.sides import Riccati, Rotation, close, double, rotation_start, start

TIMES = (0.0, 0.3, 0.35, 1.0)
FIXED = {"Euler": 0.2, "Midpoint": 2e-2, "Heun2": 2e-2, "Heun3": 2e-3, "RK4": 1e-4}
PAIRS = {"dopri5": "Dopri5Solver", "dopri8": "Dopri8Solver", "bosh3": "Bosh3Solver", "fehlberg2": "Fehlberg2",
         "adaptive_heun": "AdaptiveHeunSolver"}  # fmt: skip


def impl(ode: Any, module: str) -> Any:
    return importlib.import_module(f"{ode.__name__}._impl.{module}")


def wrapped(ode: Any, f: Callable[..., Any]) -> Any:
    """As torchdiffeq's classes want func: they call it with perturb=, and its callbacks."""
    misc = impl(ode, "misc")
    out = misc._PerturbFunc(f)
    for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
        setattr(out, name, misc._null_callback)
    return out


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_fixed_steps(theirs: Any, ours: Any, name: str, interp: str) -> None:
    """The same numbers, and the same gradients of them."""
    found = []
    for ode in (theirs, ours):
        f, y0 = Riccati(), start().requires_grad_()
        kind = getattr(impl(ode, "fixed_grid"), name)
        solver = kind(func=wrapped(ode, f), y0=y0, rtol=1e-7, atol=1e-9, step_size=0.125, interp=interp, perturb=True)
        ys = solver.integrate(double(*TIMES))
        found.append((ys, *torch.autograd.grad(ys.sin().sum(), (y0, f.rate))))
        assert solver.order == kind.order and solver.step_size == 0.125
    close(tuple(found[1]), tuple(found[0]), 1e-12)
    close(found[1][0][-1], Riccati().exact(start(), double(*TIMES))[-1].detach(), FIXED[name])


@pytest.mark.parametrize(
    "name", ["euler", "rk4", "dopri5", "bosh3", "scipy_solver", "explicit_adams", "implicit_adams"]
)
def test_the_table_of_solvers_can_be_called(ode: Any, name: str) -> None:
    kind = impl(ode, "odeint").SOLVERS[name]
    norm = {} if name == "scipy_solver" else {"norm": impl(ode, "misc")._rms_norm}
    steps = {"step_size": 0.01} if issubclass(kind, impl(ode, "solvers").FixedGridODESolver) else {}
    solver = kind(func=wrapped(ode, Riccati()), y0=start(), rtol=1e-8, atol=1e-8, **norm, **steps)
    ys = solver.integrate(double(*TIMES))
    close(ys.detach(), Riccati().exact(start(), double(*TIMES)).detach(), {"euler": 1e-2}.get(name, 1e-4))
    assert "callback_step" in kind.valid_callbacks() or name == "scipy_solver"


@pytest.mark.parametrize("name", ["implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "gl4", "radauIIA5",
                                  "gl6", "sdirk2", "trbdf2", "tsit5"])  # fmt: skip
def test_solvers_missing_from_the_release(ours: Any, name: str) -> None:
    """Against odeint, which has its own tests; func needs no wrapper."""
    kind, t = impl(ours, "odeint").SOLVERS[name], double(0.0, 0.25, 0.5, 1.0)
    more = {} if name == "tsit5" else {"step_size": 0.125, "max_iters": 50}
    got = kind(func=Riccati(), y0=start(), rtol=1e-10, atol=1e-12, **more).integrate(t)
    want = ours.odeint(Riccati(), start(), t, rtol=1e-10, atol=1e-12, method=name, options=more)
    close(got, want, 1e-8)


@pytest.mark.parametrize("module", PAIRS)
def test_adaptive_steps_by_hand(theirs: Any, ours: Any, module: str) -> None:
    """As samplers do: a number of attempts, and the state after each of them."""
    states = []
    for ode in (theirs, ours):
        kind = getattr(impl(ode, module), PAIRS[module])
        solver = kind(
            func=wrapped(ode, Riccati()),
            y0=start(),
            rtol=1e-6,
            atol=1e-6,
            norm=impl(ode, "misc")._rms_norm,
            max_step=0.1,
        )
        solver._before_integrate([torch.tensor(0.0, dtype=torch.float64)])
        steps = []
        for _ in range(8):
            solver.rk_state = solver._adaptive_step(solver.rk_state)
            steps.append(solver.rk_state)
        states.append(steps)
        assert len(torch.stack(steps[0].interp_coeff)) == 5
    f, misc = Riccati(), impl(ours, "interp")
    for mine, other in zip(*reversed(states), strict=True):
        if module in ("dopri5", "dopri8", "bosh3"):  # the others begin a step with a slope that is not its own there
            for field in ("y1", "f1", "t0", "t1", "dt"):
                torch.testing.assert_close(getattr(mine, field), getattr(other, field), rtol=1e-6, atol=1e-8)
        tol = 1e-5 if module in ("dopri5", "dopri8", "bosh3") else 1e-3
        if mine.t1 > mine.t0:
            for t in (mine.t0, 0.3 * mine.t0 + 0.7 * mine.t1, mine.t1):
                exact = f.exact(start(), torch.stack([torch.zeros_like(t), t]))[1]
                close(misc._interp_evaluate(mine.interp_coeff, mine.t0, mine.t1, t), exact.detach(), tol)


def test_adaptive_stops_jumps_limits_and_callbacks(ode: Any) -> None:
    seen: list[str] = []
    jumping = wrapped(ode, lambda t, y: torch.where(t < 0.5, 1.0, 10.0).to(y) * torch.ones_like(y))
    for name in ("callback_step", "callback_accept_step"):
        setattr(jumping, name, lambda *_, name=name: seen.append(name))
    kind, given = impl(ode, "dopri5").Dopri5Solver, {"rtol": 1e-8, "atol": 1e-8, "norm": impl(ode, "misc")._rms_norm}
    solver = kind(func=jumping, y0=double(0.0), jump_t=double(0.5), step_t=double(0.2), **given)
    close(solver.integrate(double(0.0, 0.5, 1.0)), double(0.0, 0.5, 5.5)[:, None], 1e-12)
    assert seen.count("callback_step") >= seen.count("callback_accept_step") > 2
    short = kind(func=wrapped(ode, Riccati()), y0=start(), max_num_steps=3, max_step=0.1, **given)
    with pytest.raises(AssertionError, match="max_num_steps exceeded"):
        short.integrate(double(0.0, 1.0))
    broken = kind(func=wrapped(ode, lambda t, y: y * torch.nan), y0=start(), **given)
    with pytest.raises(AssertionError, match=r"underflow|non-finite"):
        broken.integrate(double(0.0, 1.0))


@pytest.mark.parametrize("where", ["dopri5", "fixed_grid"])
def test_until_an_event_by_hand(ode: Any, where: str) -> None:
    """y = 1 - t reaches 0.3 at 0.7."""
    fall = wrapped(ode, lambda t, y: -torch.ones_like(y))
    name, more = (
        ("Dopri5Solver", {"norm": impl(ode, "misc")._rms_norm}) if where == "dopri5" else ("RK4", {"step_size": 0.1})
    )
    solver = getattr(impl(ode, where), name)(func=fall, y0=double(1.0), rtol=1e-9, atol=1e-9, **more)
    t, ys = solver.integrate_until_event(torch.tensor(0.0, dtype=torch.float64), lambda t, y: y[0] - 0.3)
    close(t, torch.tensor(0.7, dtype=torch.float64), 1e-8)
    close(ys, double(1.0, 0.3)[:, None], 1e-8)


def clamped(base: type) -> type:
    """A projection after each step in its own loop, with `_linear_interp` and a step without `perturb`."""

    class Clamped(base):  # type: ignore[misc]
        def __init__(self, func: Any, y0: Tensor, *, project: Any = None, **options: Any) -> None:
            super().__init__(func=func, y0=y0, **options)
            self.project = project

        def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
            f0 = func(t0, y0)
            return dt * f0, f0

        def integrate(self, t: Tensor) -> Tensor:
            grid = self.grid_constructor(self.func, self.y0, t)
            y0, out = self.y0, [self.y0]
            for t0, t1 in pairwise(grid):
                dy, _ = self._step_func(self.func, t0, t1 - t0, t1, y0)
                y1 = y0 + dy if self.project is None else self.project(y0 + dy)
                while len(out) < len(t) and t1 >= t[len(out)]:
                    out.append(self._linear_interp(t0, t1, y0, y1, t[len(out)]))
                y0 = y1
            return torch.stack(out)

    return Clamped


@pytest.mark.parametrize("base", ["Euler", "RK4"])
def test_a_subclass_with_a_loop_of_its_own(theirs: Any, ours: Any, base: str) -> None:
    found = []
    for ode in (theirs, ours):
        kind = clamped(getattr(impl(ode, "fixed_grid"), base))
        bounds = {"project": lambda y: y.clamp(min=0.6), "step_size": 0.1, "atol": 1e-9}
        by_hand = kind(wrapped(ode, lambda t, y: -y), double(1.0, 2.0), **bounds).integrate(double(0.0, 0.55, 1.0))
        table = impl(ode, "odeint").SOLVERS
        table["clamped"] = kind
        try:
            f, y0 = Rotation(), tuple(x.requires_grad_() for x in rotation_start())
            ys = ode.odeint(f, y0, double(1.0, 0.4, 0.0), method="clamped", options={"step_size": 0.05})
            grads = torch.autograd.grad(sum(y.sin().sum() for y in ys), (*y0, f.speed))
            again = ode.odeint_adjoint(f, y0, double(0.0, 1.0), method="clamped", options={"step_size": 0.05})
            assert torch.autograd.grad(sum(y[-1].sum() for y in again), y0)[0].shape == y0[0].shape
        finally:
            del table["clamped"]
        found.append((by_hand, *ys, *grads))
    close(tuple(found[1]), tuple(found[0]), 1e-12)
    close(found[1][0][-1], double(0.6, 2 * 0.9**10), 1e-12)


def stopping(ode: Any) -> type:
    """An adaptive pair that stops early, as in graph networks: positional arguments, and its own loop."""
    pair, interp = impl(ode, "dopri5"), impl(ode, "interp")

    class Stopping(impl(ode, "rk_common").RKAdaptiveStepsizeODESolver):  # type: ignore[misc]
        order, tableau, mid = 5, pair._DORMAND_PRINCE_SHAMPINE_TABLEAU, pair.DPS_C_MID

        def __init__(self, func: Any, y0: Tensor, rtol: Any, atol: Any, most: int = 10**6, **options: Any) -> None:
            super().__init__(func, y0, rtol, atol, **options)
            self.most = most

        def integrate(self, t: Tensor) -> Tensor:
            out = [self.y0]
            t = t.to(self.dtype)
            self._before_integrate(t)
            for x in t[1:]:
                count = 0
                while x > self.rk_state.t1 and count < self.most:
                    self.rk_state = self._adaptive_step(self.rk_state)
                    count += 1
                s = self.rk_state
                out.append(interp._interp_evaluate(s.interp_coeff, s.t0, s.t1, torch.minimum(x, s.t1)))
            return torch.stack(out)

    return Stopping


def test_a_subclass_that_stops_early(theirs: Any, ours: Any) -> None:
    found = []
    for ode in (theirs, ours):
        table, f = {"stopping": stopping(ode)}, Riccati()
        shapes, func, y0, t, rtol, atol, method, options, event_fn, backwards = impl(ode, "misc")._check_inputs(
            f, start(), double(1.0, 0.0), 1e-8, 1e-8, "stopping", {"first_step": 0.01}, None, table
        )
        assert shapes is None and event_fn is None and backwards and float(t[0]) == -1.0
        solver = table[method](func, y0, rtol=rtol, atol=atol, most=3, **options)
        found.append((solver.integrate(t), solver.rk_state.t1))
    close(tuple(found[1]), tuple(found[0]), 1e-7)
    SOLVERS = impl(ours, "odeint").SOLVERS
    SOLVERS["stopping"] = stopping(ours)
    try:
        y0 = start().requires_grad_()
        ys = ours.odeint(Riccati(), y0, double(*TIMES), method="stopping", rtol=1e-9, atol=1e-9)
        close(ys.detach(), Riccati().exact(start(), double(*TIMES)).detach(), 1e-6)
        t, ends = ours.odeint(
            Riccati(), y0, double(1.0, 0.0), method="stopping", rtol=1e-9, atol=1e-9, event_fn=lambda t, y: t - 0.25
        )
        close(t.detach(), torch.tensor(0.25, dtype=torch.float64), 1e-8)
        close(ends[-1].detach(), Riccati().exact(start(), double(1.0, 0.25))[-1].detach(), 1e-6)
    finally:
        del SOLVERS["stopping"]


def test_small_functions(theirs: Any, ours: Any) -> None:
    found = []
    for ode in (theirs, ours):
        misc, common, adams = (impl(ode, name) for name in ("misc", "rk_common", "fixed_adams"))
        x = double(1.0, -2.0, 0.0).requires_grad_()
        near = misc._nextafter(x, x + 1)
        scratch = torch.zeros(3, 2, dtype=torch.float64)
        put = common._UncheckedAssign.apply(scratch, x * 2, (..., 1))
        assert torch.equal(scratch[:, 1], (2 * x).detach())
        t0, dt, f = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64), Riccati()
        at = (wrapped(ode, f), t0, dt, t0 + dt, start())
        table = [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
        third = [[0.0, 0.0, 0.0, 0.0], [1 / 3, 1 / 3, 0.0, 0.0], [2 / 3, 0.0, 2 / 3, 0.0], [0.0, 0.25, 0.0, 0.75]]
        found.append((
            near, *torch.autograd.grad((near * 3).sum() + (put * put).sum(), x), common.rk4_step_func(*at),
            common.rk4_alt_step_func(*at, perturb=True), common.rk2_step_func(*at, butcher_tableu=table),
            common.rk3_step_func(*at, butcher_tableu=third), adams._dot_product([2.0, 3.0], [x, x, x]),
            impl(ode, "dopri5").DPS_C_MID, impl(ode, "dopri8")._C_mid.sum(),
            impl(ode, "event_handling").combine_event_functions(lambda t, y: y - 1.0, t0, x)(t0, 2 * x),
        ))  # fmt: skip
    close(tuple(found[1]), tuple(found[0]), 1e-13)
