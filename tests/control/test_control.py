"""Step-size control: the PID's formula and limits, stop times, jumps, and the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from odenet import PID, ConstantStep
from odenet.control import Grid
from odenet.control.controller import Attempt
from odenet.control.first_step import initial_step_size
from odenet.methods import METHODS
from odenet.methods.method import StepSizeHint

D = torch.float64
ADAPTIVE = [name for name, method in METHODS.items() if method.error_order is not None and not method.lookahead]
SETTINGS = {"I": (0.0, 1.0, 0.0), "PI": (0.4, 0.3, 0.0), "PID": (0.1, 0.3, 0.05)}


def stiffening(t: Tensor, y: Tensor) -> Tensor:
    """Slow, then fast: step sizes range over two decades."""
    return -(1.0 + 80.0 * t**4) * (y - torch.cos(t))


@pytest.mark.parametrize(("most", "wanted"), [(1.0, 0.2), (0.5, 0.5)])
def test_a_step_that_was_not_solved_is_shorter_whatever_the_method_wishes(most: float, wanted: float) -> None:
    decision = PID().decide(Attempt(1.0, math.inf, 3, StepSizeHint(most, False)), PID().init_state(1.0))
    assert not decision.accept
    assert decision.h == pytest.approx(wanted)


def attempts(f: Callable[..., Tensor], ts: list[float], controller: Any, **options: Any) -> tuple[list[float], Any]:
    """Signed sizes of every attempt, from the times of f alone: heun's carry is f(t1), its one stage a step."""
    times: list[float] = []

    def seen(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t))
        return f(t, y)

    sol = odenet.solve(seen, torch.ones(1, dtype=D), ts, method="bosh3", controller=controller, **options)
    at = ts[0]
    sizes = []
    # bosh3 asks at t0 + h/2, t0 + 3h/4 and t0 + h; what comes before the first attempt is f(t0) and perhaps the guess
    asked = times[len(times) - 3 * (sol.stats.accepted + sol.stats.rejected) :]
    for half, late, end in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
        start = end - 2 * (end - half)
        if abs(start - at) > 1e-12 * max(1.0, abs(at)):
            at = start
        assert late == pytest.approx(start + 0.75 * (end - start))
        sizes.append(end - start)
    return sizes, sol


@pytest.mark.parametrize("kind", SETTINGS)
def test_formula(kind: str) -> None:
    """The next step is Soderlind's product of the last three errors, for floats and for tensors."""
    p, i, d = SETTINGS[kind]
    control, k, ratios = PID(p, i, d), 4, (0.9, 0.4, 0.7, 0.2)
    state, lanes = control.init_state(0.1), control.init_state(torch.full((2,), 0.1, dtype=D))
    before = [1.0, 1.0]
    for r in ratios:
        decision = control.decide(Attempt(0.1, r, k), state)
        b1, b2, b3 = p + i + d, -(p + 2 * d), d
        expected = 0.9 * r ** (-b1 / k) * before[-1] ** (-b2 / k) * before[-2] ** (-b3 / k)
        assert decision.accept and not decision.failed
        assert decision.h == pytest.approx(0.1 * expected, rel=1e-6)
        wide = control.decide(Attempt(torch.full((2,), 0.1, dtype=D), torch.full((2,), r, dtype=D), k), lanes)
        assert wide.h.tolist() == [decision.h] * 2 and bool(wide.accept.all())
        state, lanes = decision.state, wide.state
        before.append(r)


def test_factor_limits() -> None:
    """A step grows and shrinks within factor_min and factor_max, and a rejected one shrinks."""
    control = PID(factor_min=0.5, factor_max=3.0)
    state = control.init_state(0.1)
    assert control.decide(Attempt(0.1, 0.0, 5), state).h == pytest.approx(0.3)
    assert control.decide(Attempt(0.1, 1e30, 5), state).h == pytest.approx(0.05)
    for ratio in (float("inf"), float("nan")):
        decision = control.decide(Attempt(0.1, ratio, 5), state)
        assert not decision.accept and not decision.failed and decision.h == pytest.approx(0.05)
        assert decision.state == state
    for coefficients in SETTINGS.values():
        control = PID(*coefficients)
        assert control.decide(Attempt(0.1, 1.0001, 5), (1e-8, 1e-8)).h < 0.1
    sizes, _ = attempts(lambda t, y: 0 * y, [0.0, 1.0], PID(first_step=1e-3, factor_max=2.0))
    assert max(b / a for a, b in pairwise(sizes)) < 2.0 + 1e-9
    assert sizes[:5] == pytest.approx([1e-3 * 2**i for i in range(5)])


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_setting_keeps_the_tolerance(kind: str, method: str) -> None:
    f, y0 = stiffening, torch.ones(2, dtype=D)
    exact = odenet.solve(f, y0, [0.0, 1.0], method="dopri8", rtol=1e-12, atol=1e-12).y1
    sol = odenet.solve(f, y0, [0.0, 1.0], method=method, rtol=1e-5, atol=1e-5, controller=PID(*SETTINGS[kind]))
    loose = 20 if method == "fehlberg2" else 1  # its estimate is 1/512 of the difference of two slopes
    assert float((sol.y1 - exact).abs().max()) < 1e-4 * loose
    assert sol.stats.rejected <= sol.stats.accepted


def test_max_step() -> None:
    for ts in ([0.0, 2.0], [2.0, 0.0]):
        sizes, sol = attempts(lambda t, y: 0 * y, ts, PID(max_step=0.125))
        assert max(map(abs, sizes)) <= 0.125 + 1e-12
        assert sol.stats.accepted >= 16 and math.copysign(1, sizes[0]) == math.copysign(1, ts[1] - ts[0])


def test_min_step() -> None:
    """A step of min_step is accepted whatever its error; only one cut short by the end is smaller."""
    control = PID(min_step=1 / 64, first_step=1 / 64)
    sizes, sol = attempts(stiffening, [0.0, 1.0], control, rtol=1e-12, atol=1e-12)
    assert sizes == [1 / 64] * 64
    assert sol.stats.rejected == 0 and sol.stats.accepted == 64
    with pytest.raises(odenet.SolveError):  # but not where a value is not finite
        odenet.solve(lambda t, y: y / 0, torch.ones(1, dtype=D), [0.0, 1.0], controller=PID(min_step=0.1))


@pytest.mark.parametrize("per_sample", [False, True])
def test_first_step(per_sample: bool) -> None:
    times: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t.flatten()[0]))
        return -y

    y0 = torch.ones(2, 1, dtype=D)
    control = PID(first_step=0.0375)
    odenet.solve(f, y0, [1.0, 0.0], method="heun", controller=control, per_sample=per_sample)
    assert times[:2] == [1.0, 1.0 - 0.0375]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ts", [[0.0, 0.95, 1.0], [1.0, 0.05, 0.0]])
def test_step_ts_are_hit_exactly(ts: list[float], per_sample: bool) -> None:
    """To the last bit, also as ends that f sees; times outside the interval do nothing."""
    wanted = [0.1, 1 / 3, 0.7]
    times: set[float] = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.update(t.flatten().tolist())
        return -y

    y0 = torch.ones(2, 1, dtype=D)
    for control in (PID(step_ts=[-1.0, *wanted, 7.0]), ConstantStep(0.3, step_ts=torch.tensor(wanted))):
        times.clear()
        sol = odenet.solve(f, y0, ts, method="heun", controller=control, per_sample=per_sample)
        kept = wanted if isinstance(control, PID) else torch.tensor(wanted).tolist()
        assert times.issuperset(kept) and min(times) >= 0.0 and max(times) <= 1.0
        exact = math.exp(ts[0] - ts[-1])
        assert float(sol.y1.max()) == pytest.approx(exact, abs=1e-4 if isinstance(control, PID) else 3e-2)


def test_a_method_that_looks_ahead_takes_no_jumps() -> None:
    with pytest.raises(ValueError, match=r"kvaerno5.*evaluates f up to 0.23 of a step past its end.*'esdirk54'"):
        odenet.solve(stiffening, torch.ones(1), [0.0, 1.0], method="kvaerno5", controller=PID(jump_ts=[0.5]))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4", "midpoint", "euler"])
def test_jump(method: str, backwards: bool, per_sample: bool) -> None:
    """A piecewise constant f is solved exactly; f is evaluated on either side of the jump, never at it."""
    times: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.extend(t.flatten().tolist())
        rate = torch.where(t < 0.3, 1.0, torch.where(t < 0.8, 5.0, -2.0)).to(D)
        return rate.reshape(-1, 1) + 0 * y

    jumps = [0.3, 0.8]
    control = PID(jump_ts=jumps) if method in ADAPTIVE else ConstantStep(0.2, jump_ts=jumps)
    ts = [1.0, 0.0] if backwards else [0.0, 1.0]
    y0 = torch.zeros(2, 1, dtype=D)
    sol = odenet.solve(f, y0, ts, method=method, controller=control, per_sample=per_sample)
    exact = (0.3 * 1 + 0.5 * 5 - 0.2 * 2) * (-1 if backwards else 1)
    assert float((sol.y1 - exact).abs().max()) < 1e-12
    for jump in jumps:
        near = {t for t in times if abs(t - jump) < 1e-9}
        before, after = math.nextafter(jump, -1), math.nextafter(jump, 2)
        assert near <= {before, after}
        first, second = (after, before) if backwards else (before, after)
        assert second in near
        if method not in ("euler", "midpoint", "ralston"):  # which have no stage at the end of a step
            assert first in near and times.index(first) < times.index(second)
    if method in ADAPTIVE:
        assert (
            int(torch.as_tensor(sol.stats.rejected).max()) == 0 and int(torch.as_tensor(sol.stats.accepted).max()) < 20
        )


def test_unannounced_jump_costs_more() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1 / 3, 1.0, 5.0).to(D) - y

    y0, options = torch.zeros(1, dtype=D), {"rtol": 1e-8, "atol": 1e-8}
    known = odenet.solve(f, y0, [0.0, 1.0], controller=PID(jump_ts=[1 / 3]), **options)
    blind = odenet.solve(f, y0, [0.0, 1.0], **options)
    assert known.stats.nfe < blind.stats.nfe / 2 and known.stats.rejected < blind.stats.rejected


def test_jumps_of_float32_time_are_seen_in_float32() -> None:
    """f's own time dtype decides what 'just before' means."""
    seen: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        seen.append(float(t))
        return torch.where(t < 0.5, 1.0, 3.0).to(y) + 0 * y

    ts = torch.tensor([0.0, 1.0], dtype=torch.float32)
    sol = odenet.solve(f, torch.zeros(1, dtype=torch.float32), ts, controller=PID(jump_ts=[0.5]))
    assert float(sol.y1) == pytest.approx(2.0, abs=1e-6)
    half = torch.tensor(0.5, dtype=torch.float32)
    assert {t for t in seen if abs(t - 0.5) < 1e-6} == {
        float(torch.nextafter(half, half - 1)),
        float(torch.nextafter(half, half + 1)),
    }


BAD: list[tuple[dict[str, Any], str]] = [
    ({"safety": 0.0}, r"safety.*0\.0"),
    ({"safety": 1.5}, r"safety.*1\.5"),
    ({"factor_min": 0.0}, r"factor_min.*0\.0"),
    ({"factor_min": 1.0}, r"factor_min.*1\.0"),
    ({"factor_max": 0.5}, r"factor_max.*0\.5"),
    ({"min_step": -1.0}, r"min_step.*-1\.0"),
    ({"min_step": 2.0, "max_step": 1.0}, r"min_step=2\.0, max_step=1\.0"),
    ({"max_step": 0.0}, r"max_step=0\.0"),
    ({"max_step": float("nan")}, "max_step must be a number; got nan"),
    ({"first_step": 0.0}, r"first_step.*0\.0"),
    ({"first_step": float("inf")}, "first_step.*inf"),
]


@pytest.mark.parametrize(("settings", "match"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PID(**settings)


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_constant_step(step: float) -> None:
    with pytest.raises(ValueError, match=f"step must be.*{step!r}"):
        ConstantStep(step)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("ts", [[0.0, 1e-9], [5.0, 5.0 - 1e-3], [0.0, 1e-14], [1e6, 1e6 + 1e-7]])
def test_first_step_stays_inside(ts: list[float], method: str) -> None:
    """Hairer's guess evaluates f once more: never beyond the end, for any length of the interval."""
    times: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t))
        return -1e-9 * y

    odenet.solve(f, torch.ones(2, dtype=D), ts, method=method)
    assert min(times) >= min(ts) and max(times) <= max(ts)


def test_first_step_size() -> None:
    """It scales with the time of the problem, is within the span, and does not depend on the rest of the batch."""

    def guess(rates: list[float], span: float) -> Tensor:
        rate = torch.tensor(rates, dtype=D)[:, None]
        y = (torch.ones(len(rates), 2, dtype=D),)
        lane = torch.zeros(len(rates), dtype=D)
        return initial_step_size(lambda t, x: (-rate * x[0],), lane, lane + span, y, (-rate * y[0],), 5, [1e-6], [1e-6])

    both = guess([1.0, 100.0], 10.0)
    assert 0.0 < float(both[1]) <= 100 * 0.01 / 100.0 + 1e-9 and float(both[0]) > 3 * float(both[1])
    assert torch.equal(both[:1], guess([1.0], 10.0)) and torch.equal(both[1:], guess([100.0], 10.0))
    assert float(guess([1e-3], 1e-2)) <= 1e-2
    assert bool((guess([1.0, 7.0], -10.0) > 0).all())
    assert bool(guess([float("nan")], 1.0).isnan())


def by_the_book(f: Any, t0: float, span: float, y0: Tensor, order: int, rtol: float, atol: float) -> float:
    """Hairer, Norsett & Wanner I, II.4, steps a to f, in float64; scale zero stands for 1e-12."""
    scale = atol + rtol * y0.abs()
    scale = torch.where(scale == 0, torch.full_like(scale, 1e-12), scale)

    def size(x: Tensor) -> float:
        return float((x / scale).square().mean().sqrt())

    f0 = f(torch.tensor(t0, dtype=D), y0)
    d0, d1 = size(y0), size(f0)
    h0 = min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, abs(span))
    signed = math.copysign(h0, span)
    d2 = size(f(torch.tensor(t0 + signed, dtype=D), y0 + signed * f0) - f0) / h0
    top = max(d1, d2)
    h1 = max(1e-6, 1e-3 * h0) if top <= 1e-15 else (0.01 / top) ** (1 / (order + 1))
    if not math.isfinite(d2):
        h1 = h0
    return min(100 * h0, h1, abs(span))


FIRST: dict[str, tuple[Callable[..., Tensor], list[float], float]] = {
    "decay": (lambda t, y: -3 * y, [1.0, 2.0], 5.0),
    "backwards": (lambda t, y: -3 * y + t, [1.0, 2.0], -5.0),
    "slow, bounded by 100 h0": (lambda t, y: 1e-4 * y, [1e-4, 2e-4], 1e9),
    "of time": (lambda t, y: torch.sin(40 * t) + 0 * y, [1.0, 0.3], 5.0),
    "small state": (lambda t, y: 1.0 + t + y, [1e-12, -1e-12], 5.0),
    "small slope": (lambda t, y: 1e-12 * y, [1.0, 2.0], 5.0),
    "no slope": (lambda t, y: 0 * y, [1.0, 2.0], 5.0),
    "no slope and a large first guess": (lambda t, y: 1e-20 * torch.ones_like(y), [1e-4, 1e-4], 1e9),
    "short": (lambda t, y: -3 * y, [1.0, 2.0], 1e-4),
    "a singularity ahead": (lambda t, y: torch.where(t > 0, torch.inf, 1.0) * torch.ones_like(y), [1.0, 2.0], 5.0),
}


@pytest.mark.parametrize("tolerance", [(1e-6, 1e-3), (1e-3, 0.0), (0.0, 1e-3)])
@pytest.mark.parametrize("order", [1, 5])
@pytest.mark.parametrize("case", FIRST)
def test_first_step_by_the_book(case: str, order: int, tolerance: tuple[float, float]) -> None:
    f, y, span = FIRST[case]
    y0, t0 = torch.tensor(y, dtype=D), torch.zeros((), dtype=D)
    rtol, atol = tolerance
    expected = by_the_book(f, 0.0, span, y0, order, rtol, atol)
    mine = initial_step_size(
        lambda t, x: (f(t, x[0]),), t0, t0 + span, (y0,), (f(t0, y0),), order, [rtol], [atol]
    )  # fmt: skip
    assert mine.dtype == D and float(mine) == pytest.approx(expected, rel=1e-4)


def test_first_step_where_scale_is_zero() -> None:
    """A component with tolerance zero is scaled by 1e-12, and not ignored."""
    y0, t0, f = torch.tensor([0.0, 1.0], dtype=D), torch.zeros((), dtype=D), lambda t, y: torch.ones_like(y)
    expected = by_the_book(f, 0.0, 5.0, y0, 3, 1e-3, 0.0)
    mine = initial_step_size(lambda t, x: (f(t, x[0]),), t0, t0 + 5, (y0,), (f(t0, y0),), 3, [1e-3], [0.0])
    assert float(mine) == pytest.approx(expected, rel=1e-4)


def test_first_step_asks_once_and_by_its_norm() -> None:
    """One evaluation, an Euler step of the first guess away; the caller's norm is used in all three norms."""
    asked: list[tuple[float, float]] = []

    def f(t: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        asked.append((float(t), float(x[0][0])))
        return (-x[0],)

    y0, t0 = torch.tensor([2.0, 2.0], dtype=D), torch.ones((), dtype=D)
    plain = initial_step_size(f, t0, t0 * -4, (y0,), (-y0,), 4, [0.0], [1e-2])
    assert asked == [pytest.approx((1.0 - 0.01, 2.0 + 0.02))]
    sizes: list[int] = []

    def largest(x: tuple[Tensor, ...]) -> Tensor:
        sizes.append(len(x))
        return 3 * x[0].abs().max()

    mine = initial_step_size(f, t0, t0 * -4, (y0,), (-y0,), 4, [0.0], [1e-2], largest)
    assert sizes == [1, 1, 1] and float(mine) == pytest.approx(float(plain) * 3 ** (-1 / 5), rel=1e-4)


def test_constant_step_as_made() -> None:
    control = ConstantStep(0.25)
    assert (control.step, control.step_ts, control.jump_ts) == (0.25, None, None)
    assert control.every_output and control.finite and not control.perturb and not control.adaptive
    assert repr(control) == "ConstantStep(0.25)" and control.init_state(1.0) == ()
    other = ConstantStep(1, every_output=False, step_ts=[0.5], jump_ts=[0.25], perturb=True, finite=False)
    assert (other.step_ts, other.jump_ts) == ([0.5], [0.25]) and type(other.step) is float
    assert other.perturb and not other.every_output and not other.finite
    lane = other.initial_step(torch.full((3,), float(7), dtype=D))
    assert lane.tolist() == [1.0] * 3 and other.initial_step(7.0) == 1.0
    good, bad = other.decide(Attempt(7.0, 0.0, 1), ()), other.decide(Attempt(7.0, math.nan, 1), ())
    assert (good.accept, good.h, good.state, good.failed) == (True, 1.0, (), False)
    assert (bad.accept, bad.failed) == (False, True)


def test_grid_as_made() -> None:
    whole, some = Grid(), Grid([0.1, 0.2], perturb=True, finite=False)
    assert whole.every_output and whole.finite and not whole.perturb and whole.step_ts is None
    assert not some.every_output and not some.finite and some.perturb and some.step_ts == [0.1, 0.2]
    assert repr(whole) == "Grid()" and repr(some) == "Grid([0.1, 0.2], perturb=True, finite=False)"
    assert whole.initial_step(0.5) >= 1e300 and whole.stretch == 1.0


@pytest.mark.parametrize("name", ["step_ts", "jump_ts", "times"])
@pytest.mark.parametrize(
    ("given", "error", "rest"),
    [
        ("soon", TypeError, "must be a sequence or tensor of times; got 'soon'"),
        (0.5, ValueError, r"must be a sequence of times, \(n,\) or \(B, n\); got 0.5: write {name}=\[...\]"),
        ([[[0.5]]], ValueError, "must be a sequence of times"),
        ([0.5, math.inf], ValueError, "must be real and finite; got"),
        ([0.5, math.nan], ValueError, "must be real and finite; got"),
        (torch.ones(2, dtype=torch.complex64), ValueError, "must be real and finite; got"),
    ],
)
def test_bad_times(name: str, given: Any, error: type[Exception], rest: str) -> None:
    """The error names the argument, for each argument that takes times."""
    makers: list[Callable[..., Any]] = [Grid] if name == "times" else [PID, lambda **k: ConstantStep(0.1, **k)]
    for make in makers:
        with pytest.raises(error, match=f"^{name} {rest.format(name=name)}"):
            make(**{name: given})
        for fine in (None, [0.5], [[0.5, 0.7]], torch.tensor([0.5]), lambda ts: ts):
            assert make(**{name: fine}).step_ts is fine or name == "jump_ts"


def test_pid_as_made() -> None:
    control = PID()
    assert control.beta == (1.0, -0.0, 0.0) and (control.safety, control.factor_min, control.factor_max) == (
        0.9,
        0.2,
        10,
    )
    assert (control.min_step, control.max_step, control.first_step) == (0.0, math.inf, None)
    assert control.init_state(0.1) == (1.0, 1.0) and control.adaptive and not control.every_output
    lanes = control.init_state(torch.zeros(3, dtype=D))
    assert [x.tolist() for x in lanes] == [[1.0] * 3] * 2
    full = PID(0.1, 0.2, 0.3, safety=1.0, factor_max=1.0, min_step=0.5, max_step=0.5, first_step=2.0)
    assert full.beta == pytest.approx((0.6, -0.7, 0.3)) and full.initial_step(9.0) == 0.5
    decision = full.decide(Attempt(0.5, math.inf, 3), (1.0, 1.0))
    assert decision.failed and not decision.accept
    forced = full.decide(Attempt(0.5, 50.0, 3), (0.25, 0.125))
    assert forced.accept and not forced.failed and forced.h == 0.5 and forced.state == (50.0, 0.25)


def test_a_rejected_step_is_forgotten() -> None:
    control = PID(0.4, 0.3)
    decision = control.decide(Attempt(0.1, 2.0, 4), (0.25, 0.125))
    assert not decision.accept and decision.state == (0.25, 0.125) and decision.h <= 0.09
    assert control.decide(Attempt(0.1, 1.0, 4), (0.25, 0.125)).accept  # the tolerance itself is within it
    tiny = control.decide(Attempt(0.1, 0.0, 4), (1.0, 1.0))
    assert tiny.accept and tiny.state[0] == pytest.approx(1e-10, rel=1e-6)


@pytest.mark.parametrize("span", [2.0, 0.0])
def test_first_step_of_float32_states_is_in_times_dtype(span: float) -> None:
    """Also for an interval of zero length, where it is zero and not NaN."""
    y0, t0 = torch.ones(2, dtype=torch.float32), torch.zeros((), dtype=D)
    mine = initial_step_size(lambda t, x: (-x[0],), t0, t0 + span, (y0,), (-y0,), 3, [1e-3], [1e-3])
    assert mine.dtype == D and float(mine) >= 0.0 and (float(mine) == 0.0) == (span == 0.0)


def test_pid_is_shown_with_what_was_given() -> None:
    assert repr(PID()) == "PID()"
    shown = repr(PID(0.4, 0.3, max_step=2.0, step_ts=torch.tensor([1.0])))
    assert shown == "PID(pcoeff=0.4, icoeff=0.3, max_step=2.0, step_ts=tensor([1.]))"
    assert repr(PID(jump_ts=np.array([1.0, 2.0]))) == "PID(jump_ts=array([1., 2.]))"
    with pytest.raises(ValueError, match=r"^max_step must be positive; got max_step=-1\.0"):
        PID(max_step=-1)
