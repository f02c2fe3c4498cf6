"""The options of the adaptive methods, observed by callbacks: the steps, and the times of evaluations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compat.sides import (
    ADAPTIVE,
    DTYPES,
    ONLY_OURS,
    JumpingField,
    RecordingFunc,
    Riccati,
    Rotation,
    close,
    double,
    real,
    rotation_start,
    start,
)


def watch(ode: Any, f: Any, y0: Any, t: Tensor, method: str = "dopri5", tol: float = 1e-6, **options: Any) -> Any:
    watched = RecordingFunc(f)
    with torch.no_grad():
        ys = ode.odeint(watched, y0, t, method=method, rtol=tol, atol=tol, options=options)
    return ys, watched


def both_ways(*t: float) -> Any:
    return pytest.mark.parametrize("t", [double(*t), double(*t).flip(0)], ids=["forwards", "backwards"])


@both_ways(0.0, 1.0)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_first_step(ode: Any, method: str, t: Tensor) -> None:
    f = Riccati()
    for given in (2.0**-8, torch.tensor(2.0**-8, dtype=torch.float64)):
        ys, watched = watch(ode, f, start(), t, method, 1e-4, first_step=given)
        assert watched.steps()[0] == (float(t[0]), 2.0**-8)
        close(ys[-1], f.exact(start(), t)[-1], 0.06 if method == "fehlberg2" else 0.02)


@both_ways(0.0, 0.25, 1.0)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_max_step(ode: Any, method: str, t: Tensor) -> None:
    f = Riccati()
    ys, watched = watch(ode, f, start(), t, method, 1e-3, max_step=1 / 32)
    assert all(0 < dt <= 1 / 32 for _, dt in watched.steps())
    assert len(watched.steps("accept")) >= 32
    close(ys, f.exact(start(), t), 1e-3)


@both_ways(0.0, 1.0)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_min_step(ode: Any, method: str, t: Tensor) -> None:
    """A step of at most `min_step` is accepted whatever its error; only the last one may be shorter."""
    f = Riccati()
    ys, watched = watch(ode, f, start(), t, method, 1e-13, min_step=1 / 16)
    steps = watched.steps()
    assert all(dt >= 1 / 16 for _, dt in steps[:-1])
    assert len(watched.steps("accept")) <= 17
    close(ys[-1], f.exact(start(), t)[-1], 1e-2)


@both_ways(0.0, 0.9, 1.0)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_step_t(ode: Any, method: str, t: Tensor) -> None:
    """Steps end at these times exactly; times outside [t0, t1], and their order, have no effect."""
    f = Riccati()
    given = double(0.7, 0.1, 0.2, -3.0, 7.0)
    ys, watched = watch(ode, f, start(), t, method, 1e-4, step_t=given)
    assert {0.1, 0.2, 0.7} <= {t0 for t0, _ in watched.steps("accept")}
    close(ys, f.exact(start(), t), 0.06)


def test_list_of_step_t(ode: Any) -> None:
    _, watched = watch(ode, Riccati(), start(), double(0.0, 1.0), tol=1e-4, step_t=[0.3, 0.6])
    assert {0.3, 0.6} <= {t0 for t0, _ in watched.steps("accept")}


def test_list_of_step_t_in_reverse(ours: Any) -> None:
    """torchdiffeq negates only tensors, so that it never gets to these."""
    for name in ("step_t", "jump_t"):
        _, watched = watch(ours, Riccati(), start(), double(1.0, 0.0), tol=1e-4, **{name: [0.3, 0.6]})
        assert {0.3, 0.6} <= {t0 for t0, _ in watched.steps("accept")}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_jump_t(ode: Any, method: str, reverse: bool) -> None:
    """No step contains a jump, so f is constant in each of them and the result is exact."""
    t = double(1.0, 0.0) if reverse else double(0.0, 1.0)
    f = JumpingField()
    ys, watched = watch(ode, f, double(2.0), t, method, 1e-8, jump_t=double(0.5))
    close(ys[-1], 2.0 + double(-5.5 if reverse else 5.5), 1e-11)
    assert not watched.steps("reject")
    assert 0.5 in {t0 for t0, _ in watched.steps("accept")}
    before, after = math.nextafter(0.5, 0.0), math.nextafter(0.5, 1.0)
    assert 0.5 not in f.times and (before if reverse else after) in f.times
    if method not in ("euler", "bosh3"):  # bosh3's last stage is f at the end of the step as well
        assert (after if reverse else before) in f.times


def test_step_t_and_jump_t_together(ode: Any) -> None:
    ys, watched = watch(
        ode, JumpingField(), double(2.0), double(0.0, 1.0), step_t=double(0.25, 0.75), jump_t=double(0.5)
    )
    assert {0.25, 0.5, 0.75} <= {t0 for t0, _ in watched.steps("accept")}
    close(ys[-1], double(7.5), 1e-11)


class EnoughError(Exception):
    """Two steps were looked at."""


@both_ways(0.0, 1.0)
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_ifactor_and_dfactor(ode: Any, method: str, t: Tensor) -> None:
    """A step far too small grows by `ifactor`, and one far too large shrinks by `dfactor`."""
    small, large = {"first_step": 1e-9, "tol": 1e-4}, {"first_step": 1.0, "tol": 1e-14}
    for factor, options in (
        (10.0, small),
        (3.0, small | {"ifactor": 3.0}),
        (0.2, large),
        (0.5, large | {"dfactor": 0.5}),
    ):
        steps: list[float] = []

        def f(t: Tensor, y: Tensor) -> Tensor:
            return -y * y * torch.cos(9 * t)

        def look(t0: Tensor, y0: Tensor, dt: Tensor, steps: list[float] = steps) -> None:
            steps.append(float(dt))
            if len(steps) == 2:
                raise EnoughError

        f.callback_step = look  # type: ignore[attr-defined]
        options = dict(options)
        tol = options.pop("tol")
        with pytest.raises(EnoughError):
            ode.odeint(f, start(), t, method=method, rtol=tol, atol=tol, options=options)
        assert steps[1] / steps[0] == pytest.approx(factor, rel=1e-6)


def test_safety(ode: Any) -> None:
    f, t = Riccati(), double(0.0, 4.0)
    counts = {}
    for safety in (0.9, 0.45):
        ys, watched = watch(ode, f, start(), t, "bosh3", 1e-6, safety=safety)
        close(ys[-1], f.exact(start(), t)[-1], 3e-4)
        counts[safety] = len(watched.steps("accept"))
    assert counts[0.45] > 1.2 * counts[0.9]
    _, default = watch(ode, f, start(), t, "bosh3", 1e-6)
    assert len(default.steps("accept")) == counts[0.9]


def test_max_num_steps_is_per_output_interval(ode: Any) -> None:
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    _, watched = watch(ode, Riccati(), start(), t, first_step=0.1, max_step=0.1, max_num_steps=3)
    assert len(watched.steps()) > 3
    with pytest.raises(AssertionError, match="max_num_steps"):
        watch(ode, Riccati(), start(), double(0.0, 1.0), first_step=0.1, max_step=0.1, max_num_steps=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_time(ode: Any, dtype: torch.dtype) -> None:
    """float64 by default, and never less than y's precision."""
    t = torch.tensor([0.0, 1.0], dtype=real(dtype))
    for options, of_time in (({}, torch.float64), ({"dtype": torch.float32}, real(dtype))):
        ys, watched = watch(ode, Riccati(dtype), start(dtype), t, "dopri5", 1e-4, **options)
        assert {each.dtype for _, t0, _, dt in watched.calls for each in (t0, dt)} == {of_time}
        close(ys, Riccati(dtype).exact(start(dtype), t), 2e-3)


def test_norm_of_a_tensor(ode: Any) -> None:
    """A norm that ignores components allows longer steps."""
    f, t = Riccati(), double(0.0, 4.0)
    counts = []
    for factor in (1.0, 1e-3):

        def norm(error: Tensor, factor: float = factor) -> Tensor:
            assert error.shape == (3,)
            return factor * error.abs().max()

        ys, watched = watch(ode, f, start(), t, "bosh3", 1e-7, norm=norm)
        close(ys[-1], f.exact(start(), t)[-1], 1e-7 * 100 / factor)
        counts.append(len(watched.steps("accept")))
    assert counts[1] < 0.5 * counts[0]


def test_norm_of_a_tuple(ode: Any) -> None:
    f, t = Rotation(), double(1.0, 0.0)
    seen = []

    def norm(error: tuple[Tensor, ...]) -> Tensor:
        seen.append([tuple(x.shape) for x in error])
        return torch.stack([x.abs().max() for x in error]).max()

    ys, _ = watch(ode, f, rotation_start(), t, norm=norm)
    close(ys, f.exact(rotation_start(), t), 1e-4)
    assert seen and all(shapes == [(2, 1), (2, 1), ()] for shapes in seen)


def test_default_norm_of_a_tuple_is_the_largest_rms(ode: Any) -> None:
    """Ten thousand constant components beside a moving one do not dilute its error."""
    t = double(0.0, 4.0)

    def alone(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(3 * t) * y

    def crowded(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return alone(t, state[0]), torch.zeros_like(state[1])

    _, one = watch(ode, alone, double(1.0), t, tol=1e-7, first_step=0.01)
    _, two = watch(ode, crowded, (double(1.0), torch.zeros(10_000, dtype=torch.float64)), t, tol=1e-7, first_step=0.01)
    assert [round(dt, 9) for _, dt in one.steps()] == [round(dt, 9) for _, dt in two.steps()]


@both_ways(0.0, 0.3, 0.7)
@pytest.mark.parametrize("method", [*ADAPTIVE, *ONLY_OURS])
def test_our_times_stay_inside(ours: Any, method: str, t: Tensor) -> None:
    """torchdiffeq steps past t[-1] and interpolates back, so it needs f beyond the end."""
    low, high = float(t.min()), float(t.max())

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert low <= float(t) <= high
        return -y

    options = {"step_size": 0.08} if method in ONLY_OURS and method != "tsit5" else {}
    ys = ours.odeint(f, start(), t, method=method, rtol=1e-4, atol=1e-4, options=options)
    close(ys, start() * torch.exp(t[0] - t)[:, None], 0.1)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_our_last_time_is_exact(ours: Any, method: str) -> None:
    """The last accepted step ends at t[-1], and the last value is not interpolated."""
    f, t = Riccati(), double(0.0, 1.0)
    ys, watched = watch(ours, f, start(), t, method, 1e-4)
    t0, dt = watched.steps("accept")[-1]
    assert t0 + dt == pytest.approx(1.0, abs=1e-15)
    if method == "dopri8":  # its error was 1.4e-6 in torchdiffeq
        ys, _ = watch(ours, f, start(), t, method, 1e-9)
        close(ys[-1], f.exact(start(), t)[-1], 1e-8)
