"""Events that let a solve go on, each sample with its own: against closed forms, in value and in gradient."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import SETTINGS
from odenet import Event, Status
from slow_cases import slow_unless

D = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
G = 9.81


def leaves(*values: Any) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(x, dtype=D, requires_grad=True) for x in values)


def close_gradients(mine: Tensor, true: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-6) -> None:
    """Of a sum of all entries with different weights."""
    weights = torch.linspace(1.0, 2.0, true.numel(), dtype=D).view(true.shape)
    a = torch.autograd.grad((mine * weights).sum(), inputs, retain_graph=True)
    b = torch.autograd.grad((true * weights).sum(), inputs, retain_graph=True)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# --- a bouncing ball: the state is (height, speed), args are gravity and restitution


def fall(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -g.expand_as(y[..., 1])], -1)


def bounce(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return torch.stack([y[..., 0], -e * y[..., 1]], -1)


def height(t: Tensor, y: Tensor, g: Tensor, e: Tensor) -> Tensor:
    return y[..., 0]


BALL = Event(height, direction=-1, reset=bounce)


def true_ball(h: Tensor, g: Tensor, e: Tensor, start: Tensor, end: Tensor) -> tuple[list[Tensor], Tensor]:
    """Times of the bounces, and the state at the end."""
    first = (2 * h / g).sqrt()
    speed, time, times = g * first, start + first, [start + first]
    while True:
        speed = e * speed
        if float((time + 2 * speed / g - end).detach()) > 0.0:
            break
        time = time + 2 * speed / g
        times.append(time)
    late = end - time
    return times, torch.stack([speed * late - g * late**2 / 2, speed - g * late])


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_bouncing_ball(gradient: Any) -> None:
    h, g, e = leaves(2.0, G, 0.8)
    ts = torch.tensor([0.1, 1.0, 2.0, 3.0], dtype=D, requires_grad=True)
    y0 = torch.stack([h, torch.zeros((), dtype=D)])
    sol = odenet.solve(fall, y0, ts, args=(g, e), event=BALL, gradient=gradient, dense=True, **TIGHT)
    times, end = true_ball(h, g, e, ts[0], ts[-1])
    assert sol.status == Status.SUCCESS and sol.hits.which.tolist() == [0] * len(times) and len(times) == 3
    torch.testing.assert_close(sol.hits.t, torch.stack(times), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.y1, end, rtol=1e-8, atol=1e-8)
    assert float(sol.hits.y[0, 0].detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(sol.hits.y[0, 1].detach()) == pytest.approx(-math.sqrt(2 * 2 * G), abs=1e-7)  # before the bounce
    assert sol.event.which == 0 and torch.equal(sol.event.t, sol.hits.t[-1])
    close_gradients(torch.cat([sol.hits.t, sol.y1]), torch.stack([*times, *end]), (h, g, e, ts))
    for i in (1, 2):
        _, there = true_ball(h, g, e, ts[0], ts[i])
        torch.testing.assert_close(sol.ys[i], there, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sol(ts[i].detach()), there, rtol=1e-8, atol=1e-8)
        close_gradients(sol.ys[i], there, (h, g, e, ts))
    assert torch.equal(sol.ys[-1], sol.y1)


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_bouncing_balls_of_their_own(gradient: Any) -> None:
    """Each with its height and restitution; the last does not reach the floor."""
    heights = [0.5, 3.0, 1.0, 2.0, 60.0]
    h = torch.tensor(heights, dtype=D, requires_grad=True)
    e = torch.tensor([0.9, 0.8, 0.85, 0.8, 0.6], dtype=D, requires_grad=True)
    (g,) = leaves(G)
    ts = torch.tensor([0.0, 0.9, 1.7, 3.0], dtype=D, requires_grad=True)
    y0 = torch.stack([h, torch.zeros_like(h)], -1)
    sol = odenet.solve(
        fall, y0, ts, args=(g, e), event=BALL, gradient=gradient, per_sample=True, dense=True, **TIGHT
    )  # fmt: skip
    true = [true_ball(h[i], g, e[i], ts[0], ts[-1]) for i in range(4)]
    counts = [len(times) for times, _ in true] + [0]
    assert sol.status.tolist() == [Status.SUCCESS] * 5 and (sol.hits.which >= 0).sum(1).tolist() == counts
    assert sol.event.which.tolist() == [0, 0, 0, 0, -1] and bool(sol.event.t[-1].isnan())
    happened = sol.hits.which >= 0
    every = torch.cat([torch.stack(times) for times, _ in true])
    torch.testing.assert_close(sol.hits.t[happened], every, rtol=1e-9, atol=1e-9)
    ends = torch.stack([end for _, end in true])
    torch.testing.assert_close(sol.y1[:4], ends, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol.y1[4], torch.stack([h[4] - g * 9 / 2, -3 * g]), rtol=1e-7, atol=1e-7)
    mine = torch.cat([sol.hits.t[happened], sol.y1[:4].flatten()])
    close_gradients(mine, torch.cat([every, ends.flatten()]), (h, g, e, ts))
    between = torch.stack([true_ball(h[i], g, e[i], ts[0], ts[2])[1] for i in range(4)])
    torch.testing.assert_close(sol.ys[:4, 2], between, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol(1.7)[:4], between, rtol=1e-7, atol=1e-7)
    close_gradients(sol.ys[:4, 2], between, (h, g, e, ts))
    assert bool((sol.stats.nfe > 0).all()) and sol.stats.nfe[4] < sol.stats.nfe[0]
    assert torch.is_tensor(sol.stats.backward_nfe) and sol.stats["backward_nfe"].shape == (5,)


def test_a_sample_is_what_it_is_alone() -> None:
    """Bit for bit, with events of other samples beside it."""
    h = torch.tensor([0.5, 3.0, 1.0, 2.0, 0.01], dtype=D)
    e = torch.tensor([0.9, 0.5, 0.7, 0.8, 0.95], dtype=D)
    y0 = torch.stack([h, torch.zeros_like(h)], -1)
    options: dict[str, Any] = {"event": BALL, "per_sample": True}
    args = (torch.tensor(G, dtype=D), e)
    together = odenet.solve(fall, y0, [0.0, 0.4, 1.3], args=args, **options)
    for i in range(len(h)):
        alone = odenet.solve(fall, y0[i : i + 1], [0.0, 0.4, 1.3], args=(args[0], e[i : i + 1]), **options)
        assert torch.equal(alone.ys[0], together.ys[i])
        count = int((together.hits.which[i] >= 0).sum())
        assert torch.equal(alone.hits.t[0], together.hits.t[i, :count])
        assert alone.stats.accepted.tolist() == together.stats.accepted[i : i + 1].tolist()


def test_a_ball_that_comes_to_rest_is_no_silent_fall() -> None:
    h, e = torch.tensor([2.0, 2.0], dtype=D), torch.tensor([0.8, 0.99], dtype=D)
    y0 = torch.stack([h, torch.zeros_like(h)], -1)
    args = (torch.tensor(G, dtype=D), e)
    options: dict[str, Any] = {"args": args, "event": BALL, "per_sample": True}
    with pytest.raises(odenet.PileUpError, match=r"sample 0.*pile up.*terminal event"):
        odenet.solve(fall, y0, [0.0, 20.0], **options)
    sol = odenet.solve(fall, y0, [0.0, 20.0], on_failure="return", **options)
    assert sol.status.tolist() == [Status.PILE_UP, Status.SUCCESS]
    rest = math.sqrt(2 * 2 / G) * (1 + 2 * 0.8 / (1 - 0.8))  # where the series of the bounces ends
    assert float(sol.event.t[0]) == pytest.approx(rest, abs=1e-5)
    torch.testing.assert_close(sol.y1[0], torch.zeros(2, dtype=D), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        sol.y1[1], true_ball(h[1], args[0], e[1], torch.zeros((), dtype=D), torch.tensor(20.0, dtype=D))[1]
    )
    rough = odenet.solve(
        fall, y0.float(), [0.0, 20.0], on_failure="return", **(options | {"args": tuple(x.float() for x in args)})
    )  # fmt: skip
    assert rough.status.tolist() == [Status.PILE_UP, Status.SUCCESS]
    in_time = odenet.solve(fall, y0[:1], [0.0, 5.7], **(options | {"args": (args[0], e[:1])}))
    assert in_time.status.tolist() == [Status.SUCCESS]
    slow = Event(lambda t, y, g, e: (y[..., 1] ** 2 / 2 + g * y[..., 0]) - 1e-2, direction=-1)  # energy: at a bounce
    ended = odenet.solve(fall, y0[0], [0.0, 20.0], args=(args[0], e[0]), event=[BALL, slow], on_failure="return")
    assert ended.status == Status.PILE_UP  # the energy jumps below with a bounce: it does not cross


# --- a thermostat: temperature and whether the heating is on


class Level(nn.Module):
    """Temperature against a level that is learnt."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level, dtype=D))

    def forward(self, t: Tensor, y: dict[str, Tensor], k: Tensor) -> Tensor:
        return y["temperature"] - self.level


class Switch(nn.Module):
    """The heating, at a power that is learnt."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power, dtype=D))

    def forward(self, t: Tensor, y: dict[str, Tensor], k: Tensor) -> dict[str, Tensor]:
        return {"temperature": y["temperature"], "heat": self.power.expand_as(y["heat"])}


def warm(t: Tensor, y: dict[str, Tensor], k: Tensor) -> dict[str, Tensor]:
    return {"temperature": -k * (y["temperature"] - 5.0) + y["heat"], "heat": torch.zeros_like(y["heat"])}


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", slow_unless(SETTINGS, "discrete", "adjoint", "forward"), ids=str)
def test_thermostat(gradient: Any, per_sample: bool) -> None:
    low, high, on, off = Level(18.0), Level(22.0), Switch(9.0), Switch(0.0)
    (k,) = leaves(0.4)
    events = [Event(high, terminal=False, direction=1, reset=off), Event(low, False, -1, on)]
    shape = (2,) if per_sample else ()
    start = torch.tensor(20.0, dtype=D)
    y0 = {"temperature": start.expand(shape).clone(), "heat": torch.full(shape, 9.0, dtype=D)}
    sol = odenet.solve(
        warm, y0, [0.0, 3.0, 6.0], args=(k,), event=events, gradient=gradient, per_sample=per_sample, **TIGHT
    )  # fmt: skip
    temperature, heat, time, which, times = start, torch.tensor(9.0, dtype=D), torch.zeros((), dtype=D), 0, []
    while True:
        at, goal = 5.0 + heat / k, (high, low)[which].level
        rest = ((temperature - at) / (goal - at)).log() / k
        if float((time + rest).detach()) > 6.0:
            break
        temperature, time, heat = goal, time + rest, (off, on)[which].power
        times.append(time)
        which = 1 - which
    end = at + (temperature - at) * torch.exp(-k * (6.0 - time))
    assert len(times) >= 4
    index = (0,) if per_sample else ()
    assert sol.hits.which[index].tolist() == [i % 2 for i in range(len(times))]
    torch.testing.assert_close(sol.hits.t[index], torch.stack(times), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol.y1["temperature"][index], end, rtol=1e-8, atol=1e-8)
    mine = torch.cat([sol.hits.t[index], sol.y1["temperature"][index].reshape(1)])
    learnt = (k, low.level, high.level, on.power, off.power)
    close_gradients(mine, torch.stack([*times, end]), learnt, 2e-5)


# --- leaky integrate-and-fire neurons


class Neuron(nn.Module):
    """v' = (I - v) / tau. Threshold and reset are learnt, tau as well."""

    def __init__(self) -> None:
        super().__init__()
        self.tau, self.threshold, self.low = (nn.Parameter(torch.tensor(x, dtype=D)) for x in (0.5, 1.0, 0.1))

    def forward(self, t: Tensor, v: Tensor, current: Tensor) -> Tensor:
        return (current - v) / self.tau

    def above(self, t: Tensor, v: Tensor, current: Tensor) -> Tensor:
        return v - self.threshold

    def fire(self, t: Tensor, v: Tensor, current: Tensor) -> Tensor:
        return self.low.expand_as(v)

    def spikes(self, v0: Tensor, current: Tensor, count: int) -> Tensor:
        first = self.tau * ((current - v0) / (current - self.threshold)).log()
        period = self.tau * ((current - self.low) / (current - self.threshold)).log()
        return first + period * torch.arange(count, dtype=D)


@pytest.mark.parametrize("gradient", slow_unless(SETTINGS, "discrete", "adjoint"), ids=str)
def test_integrate_and_fire(gradient: Any) -> None:
    neuron = Neuron()
    current = torch.tensor([1.2, 0.8, 4.0, 2.0, 1.05], dtype=D, requires_grad=True)
    v0 = torch.tensor([0.0, 0.3, 0.5, 0.9, 0.2], dtype=D, requires_grad=True)
    event = Event(neuron.above, direction=1, reset=neuron.fire)
    sol = odenet.solve(
        neuron, v0, [0.0, 2.0], args=(current,), event=event, per_sample=True, gradient=gradient, **TIGHT
    )  # fmt: skip
    counts = (sol.hits.which >= 0).sum(1).tolist()
    assert counts == [int((n.spikes(v0[i], current[i], 99) < 2.0).sum()) for i, n in enumerate([neuron] * 5)]
    assert counts[1] == 0 and counts[2] > 5
    true = torch.cat([neuron.spikes(v0[i], current[i], n) for i, n in enumerate(counts) if n])
    mine = sol.hits.t[sol.hits.which >= 0]
    torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-8)
    close_gradients(mine, true, (current, v0, *neuron.parameters()), 1e-5)


def test_spikes_are_counted_and_the_last_ends_the_sample() -> None:
    neuron = Neuron()
    current = torch.tensor([1.2, 0.8, 4.0], dtype=D)
    v0 = torch.zeros(3, dtype=D)
    event = Event(neuron.above, direction=1, reset=neuron.fire, max_hits=2)
    sol = odenet.solve(
        neuron, v0, [0.0, 0.1, 3.0], args=(current,), event=event, per_sample=True, rtol=1e-9, atol=1e-9
    )  # fmt: skip
    assert sol.status.tolist() == [Status.EVENT, Status.SUCCESS, Status.EVENT]
    for i in (0, 2):
        true = float(neuron.spikes(v0[i], current[i], 2)[1].detach())
        assert float(sol.event.t[i].detach()) == pytest.approx(true, abs=1e-7)
        assert float(sol.y1[i].detach()) == pytest.approx(1.0, abs=1e-7)  # the hit that ends a solve resets nothing
        assert bool(sol.ys[i, 1].isfinite()) and bool(sol.ys[i, 2].isnan())
    quiet = Event(neuron.above, terminal=False, direction=1, reset=neuron.fire, max_hits=2)
    on = odenet.solve(neuron, v0, [0.0, 3.0], args=(current,), event=quiet, per_sample=True)
    assert (on.hits.which >= 0).sum(1).tolist() == [2, 0, 2] and float(
        on.y1[2].detach()
    ) > 3.0  # and then not looked for


# --- events that only note something down


def turn(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.stack([y[1] * w, -y[0] * w])


@pytest.mark.parametrize("gradient", slow_unless(SETTINGS, "discrete", "gauss"), ids=str)
def test_every_crossing_is_noted_down(gradient: Any) -> None:
    """sin(w t) in steps longer than half a period: two crossings of 0.5 and more in each."""
    (w,) = leaves(2.0)
    y0 = torch.tensor([0.0, 1.0], dtype=D)
    event = [Event(lambda t, y, w: y[0] - 0.5, terminal=False), Event(lambda t, y, w: y[1], terminal=False)]
    sol = odenet.solve(
        turn, y0, [0.0, 10.0], args=(w,), event=event, gradient=gradient, method="dopri8", rtol=1e-9, atol=1e-9
    )  # fmt: skip
    a, pi = math.asin(0.5), math.pi
    angles = sorted(
        [(x + 2 * pi * n, 0) for n in range(4) for x in (a, pi - a)] + [(pi / 2 + pi * n, 1) for n in range(8)]
    )
    angles = [(x, i) for x, i in angles if x < 20.0]
    assert sol.hits.which.tolist() == [i for _, i in angles]
    true = torch.tensor([x for x, _ in angles], dtype=D) / w
    torch.testing.assert_close(sol.hits.t, true, rtol=1e-7, atol=1e-7)
    close_gradients(sol.hits.t, true, (w,), 1e-5)
    plain = odenet.solve(turn, y0, [0.0, 10.0], args=(w,), gradient=gradient, method="dopri8", rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.y1, plain.y1, rtol=1e-7, atol=1e-7)
    close_gradients(sol.y1, plain.y1, (w,), 1e-5)


def test_two_at_the_same_time_both_happen() -> None:
    """Two balls from the same height, in one state, each with its own event; and one event with two values."""
    y0 = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=D)  # heights, speeds

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[2:], torch.full((2,), -G, dtype=D)])

    def ball(i: int) -> Event:
        flip = torch.ones(4, dtype=D)
        flip[2 + i] = -0.5
        return Event(lambda t, y: y[i], reset=lambda t, y: y * flip)

    sol = odenet.solve(f, y0, [0.0, 0.6], event=[ball(0), ball(1)], rtol=1e-9, atol=1e-9)
    assert sorted(sol.hits.which.tolist()) == [0, 1]
    time = math.sqrt(2 / G)
    late = 0.6 - time
    exact = 0.5 * G * time * late - G * late**2 / 2
    torch.testing.assert_close(sol.y1[:2], torch.full((2,), exact, dtype=D), rtol=1e-8, atol=1e-8)
    down = torch.tensor([1.0, 1.0, -0.5, -0.5], dtype=D)
    both = Event(lambda t, y: y[:2], direction=-1, reset=lambda t, y: torch.where((y[2:] < 0).repeat(2), y * down, y))
    once = odenet.solve(f, y0, [0.0, 0.6], event=both, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(once.y1, sol.y1, rtol=1e-8, atol=1e-8)


def test_of_two_at_one_time_the_one_that_ends_comes_first() -> None:
    def crossing(t: Tensor, y: Tensor) -> Tensor:
        return y - 0.5

    events = [Event(crossing, reset=lambda t, y: torch.ones_like(y)), Event(crossing)]
    sol = odenet.solve(lambda t, y: -y, torch.ones(2, dtype=D), [0.0, 9.0], event=events, per_sample=True)
    assert sol.hits.which.tolist() == [[1]] * 2 and sol.status.tolist() == [Status.EVENT] * 2
    later = [events[0], Event(crossing, terminal=False, max_hits=1)]
    sol = odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 1.5], event=later)
    assert sol.hits.which.tolist() == [0, 0] and float(sol.y1) == pytest.approx(math.exp(-1.5) * 4, abs=1e-5)


def test_counts_are_those_of_a_sample_alone() -> None:
    """Also where dense output takes evaluations of its own."""
    rate = torch.linspace(0.5, 3.0, 12, dtype=D)
    event = Event(lambda t, y, r: y - 0.5, reset=lambda t, y, r: torch.ones_like(y))
    options: dict[str, Any] = {"event": event, "per_sample": True, "method": "dopri8"}
    y0 = torch.ones(12, dtype=D)
    together = odenet.solve(lambda t, y, r: -r * y, y0, [0.0, 3.0], args=(rate,), **options)
    for i in range(12):
        alone = odenet.solve(lambda t, y, r: -r * y, y0[:1], [0.0, 3.0], args=(rate[i : i + 1],), **options)
        assert alone.stats.nfe.tolist() == together.stats.nfe[i : i + 1].tolist()


@pytest.mark.parametrize(
    "options", [{}, {"method": "rk4", "step": 0.07}, {"method": "bosh3"}, {"method": "gl4", "step": 0.07}]
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_it_goes_with_other_steps_backwards_and_in_float32(options: dict[str, Any], per_sample: bool) -> None:
    """Against time: a ball that rises from the floor at -t bounces at the times of one that falls."""
    index = (0,) if per_sample else ()
    args = (torch.tensor(G, dtype=D), torch.tensor(0.8, dtype=D))
    y0 = torch.tensor([2.0, 0.0], dtype=D)
    y0 = y0.expand(2, 2) if per_sample else y0
    back = Event(height, direction=-1, reset=bounce)
    more = options | {"per_sample": per_sample, "rtol": 1e-8, "atol": 1e-8, "args": args}
    mirrored = odenet.solve(lambda t, y, g, e: -fall(t, y, g, e), y0, [0.0, -1.0, -3.0], event=back, **more)
    forwards = odenet.solve(fall, y0, [0.0, 1.0, 3.0], event=BALL, **more)
    torch.testing.assert_close(mirrored.hits.t, -forwards.hits.t, rtol=0, atol=1e-7)
    torch.testing.assert_close(mirrored.ys, forwards.ys, rtol=0, atol=1e-6)
    times, end = true_ball(*(torch.tensor(x, dtype=D) for x in (2.0, G, 0.8, 0.0, 3.0)))
    torch.testing.assert_close(forwards.hits.t[index], torch.stack(times), rtol=0, atol=1e-6)
    torch.testing.assert_close(forwards.y1[index], end, rtol=0, atol=1e-5)
    single = more | {"args": tuple(x.float() for x in args), "rtol": 1e-5, "atol": 1e-5}
    if "method" not in options:
        rough = odenet.solve(fall, y0.float(), [0.0, 1.0, 3.0], event=BALL, **single)
        assert rough.y1.dtype == torch.float32 and rough.hits.t.dtype == D
        torch.testing.assert_close(rough.y1[index].double(), end, rtol=0, atol=1e-3)


def test_jumps_of_f_and_events_together() -> None:
    """A force that changes at t=1; the switch at y=2 changes its sign."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        push = torch.where(t < 1.0, 1.0, 3.0).to(y.dtype)
        return torch.stack([push * y[1], torch.zeros_like(y[1])])

    event = Event(lambda t, y: y[0] - 2.0, reset=lambda t, y: torch.stack([y[0], -y[1]]), direction=1)
    y0 = torch.tensor([0.0, 1.0], dtype=D)
    sol = odenet.solve(f, y0, [0.0, 1.5, 2.0], event=event, controller=odenet.PID(jump_ts=[1.0, 1.7]), **TIGHT)
    assert sol.hits.t.tolist() == pytest.approx([4 / 3], abs=1e-9)
    assert sol.ys[:, 0].tolist() == pytest.approx([0.0, 1.5, 0.0], abs=1e-9)
    grid = odenet.Grid(lambda ts: torch.linspace(float(ts[0]), float(ts[-1]), 41, dtype=D)[1:-1], perturb=True)
    on_grid = odenet.solve(f, y0, [0.0, 1.5, 2.0], event=event, controller=grid, method="rk4")
    assert on_grid.ys[:, 0].tolist() == pytest.approx([0.0, 1.5, 0.0], abs=1e-9)


def test_what_events_close_over_has_a_row_for_each_sample() -> None:
    """Thresholds that only the event knows, one a sample; samples that leave the batch do not take them along."""
    rate = torch.linspace(0.5, 4.0, 40, dtype=D)
    level = torch.linspace(0.9, 0.2, 40, dtype=D)
    more: dict[str, Any] = {"per_sample": True, "rtol": 1e-9, "atol": 1e-9}
    exact = -level.log() / rate
    closed = odenet.solve(
        lambda t, y, r: -r * y, torch.ones(40, dtype=D), [0.0, 9.0], args=(rate,),
        event=Event(lambda t, y, r: y - level), **more,
    )  # fmt: skip
    torch.testing.assert_close(closed.event.t, exact, rtol=1e-8, atol=1e-8)
    given = odenet.solve(
        lambda t, y, r, c: -r * y, torch.ones(40, dtype=D), [0.0, 9.0], args=(rate, level),
        event=Event(lambda t, y, r, c: y - c), **more,
    )  # fmt: skip
    torch.testing.assert_close(given.event.t, exact, rtol=1e-8, atol=1e-8)
    assert torch.equal(given.stats.accepted, closed.stats.accepted)


def test_a_value_that_jumps_across_zero() -> None:
    """Without a rate, the time is that of the jump."""
    event = Event(lambda t, y: torch.where(t < 0.7, -0.3, 2.0), terminal=False)
    sol = odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 3.0], event=event)
    assert sol.hits.t.tolist() == pytest.approx([0.7], abs=1e-12)


def test_own_times_and_no_length() -> None:
    ts = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.2, 0.4], [5.0, 5.2, 5.2]], dtype=D)
    decay = Event(lambda t, y: y - 0.5, terminal=False, reset=lambda t, y: torch.ones_like(y))
    sol = odenet.solve(lambda t, y: -y, torch.ones(4, dtype=D), ts, event=decay, per_sample=True, **TIGHT)
    assert (sol.hits.which >= 0).sum(1).tolist() == [2, 0, 0, 0]
    late = [math.exp(-(1.0 - math.log(2))), math.exp(-(2.0 - 2 * math.log(2)))]
    assert sol.ys[0].tolist() == pytest.approx([1.0, *late], abs=1e-8)
    assert sol.ys[1].tolist() == [1.0] * 3
    assert sol.ys[3].tolist() == pytest.approx([1.0, math.exp(-0.2), math.exp(-0.2)], abs=1e-8)


def test_a_failing_sample_leaves_the_events_of_others_alone() -> None:
    """Sample 1 blows up after its first event."""

    def f(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return torch.where(a > 1.5, y * y, a.expand_as(y))

    event = Event(lambda t, y, a: y - 1.0, direction=1, reset=lambda t, y, a: torch.where(a > 1.5, y + 4.0, y - 1.0))
    keep = torch.tensor([0, 2])
    for gradient in SETTINGS:
        a = torch.tensor([0.7, 2.0, 1.1], dtype=D, requires_grad=True)
        y0 = torch.tensor([0.1, 0.2, 0.3], dtype=D, requires_grad=True)
        options: dict[str, Any] = {"event": event, "per_sample": True, "on_failure": "return", "gradient": gradient}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if gradient == "reversible" else "error")  # it tells that sample 1 is off
            sol = odenet.solve(f, y0, [0.0, 6.0], args=(a,), **options)
            mine = torch.autograd.grad(sol.y1[keep].sum() + sol.event.t[keep].sum(), (y0, a), retain_graph=True)
        assert sol.status.tolist() == [Status.SUCCESS, Status.BLOW_UP, Status.SUCCESS]
        others = odenet.solve(f, y0[keep], [0.0, 6.0], args=(a[keep],), **options)
        assert torch.equal(sol.ys[keep], others.ys)
        assert torch.equal(sol.hits.t[keep].nan_to_num(-1.0), others.hits.t.nan_to_num(-1.0))
        true = torch.autograd.grad(others.y1.sum() + others.event.t.sum(), (y0, a))
        for x, y in zip(mine, true, strict=True):
            assert float(x[1]) == 0.0
            # autograd adds up what reaches a narrowed `a` first, and `reversible` takes all steps again where one
            # sample cannot be undone; the other gradients are the same to the last bit
            order = 1e-15 if gradient in ("backprop", "reversible") else 0.0
            torch.testing.assert_close(x[keep], y[keep], rtol=order, atol=order)


def test_max_steps_counts_all_the_way() -> None:
    event = Event(lambda t, y: y - 0.5, reset=lambda t, y: torch.ones_like(y))
    options: dict[str, Any] = {"event": event, "max_steps": 60}
    with pytest.raises(odenet.MaxStepsError, match="max_steps=60") as caught:
        odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 100.0], **options)
    assert "events had happened before" in caught.value.__notes__[0]
    rates = torch.tensor([1.0, 0.01], dtype=D)
    sol = odenet.solve(
        lambda t, y: -rates[: len(y)] * y, torch.ones(2, dtype=D), [0.0, 100.0], per_sample=True, on_failure="return",
        **options,
    )  # fmt: skip
    assert sol.status.tolist() == [Status.MAX_STEPS, Status.SUCCESS]
    assert int(sol.stats.accepted[0] + sol.stats.rejected[0]) == 60


def test_progress_goes_on_and_compile_says_why_not() -> None:
    seen: list[float] = []
    event = Event(lambda t, y: y - 0.5, reset=lambda t, y: torch.ones_like(y))
    y0 = torch.ones(3, dtype=D)
    odenet.solve(
        lambda t, y: -y, y0, [0.0, 4.0], event=event, per_sample=True, progress=lambda part, _: seen.append(part)
    )
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)
    with pytest.warns(UserWarning, match="an event is looked for"):
        sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], event=event, per_sample=True, compile=True)
    assert sol.hits.t.shape == (3, 1)


def test_dense_output_passes_through_resets() -> None:
    event = Event(lambda t, y, *_: y - 0.5, reset=lambda t, y, *_: torch.ones_like(y))
    rate = torch.tensor([1.0, 2.0, 0.1], dtype=D)
    sol = odenet.solve(
        lambda t, y, r: -r * y, torch.ones(3, dtype=D), [0.0, 3.0], args=(rate,), event=event, per_sample=True,
        dense=True, **TIGHT,
    )  # fmt: skip
    t = torch.linspace(0.0, 3.0, 61, dtype=D)
    exact = torch.exp(-rate[:, None] * (t % (math.log(2) / rate[:, None])))
    torch.testing.assert_close(sol(t), exact, rtol=1e-7, atol=1e-7)
    one = odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 3.0], event=event, dense=True, **TIGHT)
    torch.testing.assert_close(one(t.flip(0))[:, 0], exact[0].flip(0), rtol=1e-7, atol=1e-7)


def test_half_precision() -> None:
    sol = odenet.solve(
        lambda t, y: -y, torch.ones(2, 3, dtype=torch.bfloat16), [0.0, 2.0], per_sample=True,
        event=Event(lambda t, y: y.sum(1) - 1.5, reset=lambda t, y: torch.ones_like(y)),
    )  # fmt: skip
    assert sol.y1.dtype == torch.bfloat16 and sol.event.y.dtype == torch.bfloat16
    torch.testing.assert_close(sol.hits.t, math.log(2) * torch.tensor([[1.0, 2.0]] * 2, dtype=D), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"terminal": 1}, TypeError, "terminal of an Event must be True or False; got int 1"),
        ({"direction": True}, ValueError, "direction of an Event must be -1, 0 or 1"),
        ({"reset": 3}, TypeError, "reset of an Event must be callable"),
        ({"max_hits": 0}, ValueError, "max_hits of an Event must lie between 1 and .*; got int 0"),
        ({"direction": torch.zeros(2)}, ValueError, "direction of an Event must be -1, 0 or 1; got Tensor"),
        ({"max_hits": 1.5}, TypeError, "max_hits of an Event must be an int; got float 1.5"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Event(lambda t, y: y[0], **settings)


@pytest.mark.parametrize(
    ("reset", "kind", "says"),
    [
        (lambda t, y: None, TypeError, "reset returned a NoneType"),
        (lambda t, y: (y, y), TypeError, "reset returned the structure"),
        (lambda t, y: y[:1], ValueError, r"reset returned shape \(1,\)"),
        (lambda t, y: y.float(), ValueError, r"reset returned.*float32"),
    ],
)
def test_wrong_resets(reset: Any, kind: type[Exception], says: str) -> None:
    event = Event(lambda t, y: y[0] - 0.5, reset=reset)
    with pytest.raises(kind, match=says):
        odenet.solve(lambda t, y: -y, torch.ones(2, dtype=D), [0.0, 2.0], event=event)


def test_an_event_function_that_is_not_finite_is_named() -> None:
    event = Event(lambda t, y: torch.log(y[0] - 0.5))
    with pytest.raises(ValueError, match=r"value 0 of the event functions is (nan|-inf).*must be defined"):
        odenet.solve(lambda t, y: -y, torch.ones(2, dtype=D), [0.0, 2.0], event=event)


def test_second_derivatives_through_the_time_are_refused() -> None:
    (k,) = leaves(0.7)
    for gradient in ("discrete", "backprop"):
        sol = odenet.solve(
            lambda t, y, k: -k * y, torch.ones(1, dtype=D), [0.0, 5.0], args=(k,), gradient=gradient,
            event=Event(lambda t, y, k: y[0] - 0.5),
        )  # fmt: skip
        (first,) = torch.autograd.grad(sol.event.t, k, create_graph=True)
        assert float(first.detach()) == pytest.approx(-math.log(2.0) / 0.7**2, rel=1e-4)
        with pytest.raises(RuntimeError, match=r"first derivatives only.*constant_time=True"):
            torch.autograd.grad(first, k)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("start", "span"), [(1e6, 2.0), (1.0, 1e-6), (-1e9, 1e-3)])
def test_times_keep_their_digits_far_from_zero(start: float, span: float, per_sample: bool) -> None:
    """A ramp that starts again three times, far from t=0 for its length; and a value of the time alone that jumps."""
    ts = torch.tensor([start, start + span], dtype=D)
    length = float(ts[1] - ts[0])
    ramp = Event(lambda t, y: y - 0.3, reset=lambda t, y: 0 * y)
    step = Event(lambda t, y: torch.where(t - start < 0.5 * length, -1.0, 1.0).expand(y.shape), terminal=False)
    sol = odenet.solve(
        lambda t, y: torch.ones_like(y) / length, torch.zeros(1, dtype=D), ts, event=[ramp, step], per_sample=per_sample
    )  # fmt: skip
    late = ((sol.hits.t - start) / length).flatten()
    expected = torch.tensor([0.3, 0.5, 0.6, 0.9], dtype=D)
    torch.testing.assert_close(late, expected, rtol=0, atol=20 * 2.0**-52 * abs(start) / length)


@pytest.mark.parametrize("gradient", ["discrete", "adjoint"])
def test_a_time_without_a_derivative_is_refused_and_leaves_others_alone(gradient: str) -> None:
    """The value of sample 0 jumps across zero: its time, a constant, has no rate to tell by how much it moves."""
    (p,) = leaves(2.0)
    first = torch.tensor([True, False])

    def value(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(first, torch.where(t < 0.5, -p, p), y - 0.7 * p**2)

    options: dict[str, Any] = {"per_sample": True, "gradient": gradient, **TIGHT}
    y0 = torch.zeros(2, dtype=D)
    sol = odenet.solve(lambda t, y: p.expand_as(y), y0, [0.0, 2.0], event=Event(value), **options)
    torch.testing.assert_close(sol.event.t.detach(), torch.tensor([0.5, 1.4], dtype=D))
    (only,) = torch.autograd.grad(sol.event.t[1], p, retain_graph=True)
    assert float(only) == pytest.approx(0.7, abs=1e-7)
    with pytest.raises(RuntimeError, match=r"no derivative.*constant_time=True"):
        torch.autograd.grad(sol.y1.sum(), p)
    fixed = odenet.solve(
        lambda t, y: p.expand_as(y), y0, [0.0, 2.0], event=Event(value, constant_time=True), **options
    )  # fmt: skip
    (both,) = torch.autograd.grad(fixed.y1.sum(), p)
    assert float(both) == pytest.approx(0.5 + 1.4, abs=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_an_event_at_the_very_end(gradient: Any, per_sample: bool) -> None:
    """Nothing is left after the reset: the state then moves with ts[-1] as one after a short stretch does."""
    (p,) = leaves(0.7)
    ts = torch.tensor([0.0, 1.0, 2.0], dtype=D, requires_grad=True)
    event = Event(lambda t, y: (t - 2.0).expand(y.shape), reset=lambda t, y: 2 * y)
    sol = odenet.solve(
        lambda t, y: p * y, torch.ones(1, dtype=D), ts, event=event, gradient=gradient, per_sample=per_sample, **TIGHT
    )  # fmt: skip
    assert sol.hits.t.flatten().tolist() == [2.0]
    close_gradients(sol.y1, 2 * torch.exp(p * (ts[-1] - ts[0])).reshape(1), (p, ts))


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_reset_may_change_the_state_in_place(per_sample: bool) -> None:
    (p,) = leaves(1.0)

    def to_zero(t: Tensor, y: Tensor) -> Tensor:
        y[..., 0] = 0.0
        return y

    sol = odenet.solve(
        lambda t, y: p.expand_as(y), torch.zeros(1, 2, dtype=D), [0.0, 2.5], per_sample=per_sample, dense=True,
        event=Event(lambda t, y: y[..., 0] - 1.0, reset=to_zero),
    )  # fmt: skip
    torch.testing.assert_close(sol.hits.t.flatten().detach(), torch.tensor([1.0, 2.0], dtype=D))
    torch.testing.assert_close(sol.hits.y.flatten().detach(), torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=D))
    torch.testing.assert_close(sol.y1.flatten().detach(), torch.tensor([0.5, 2.5], dtype=D))
    torch.testing.assert_close(torch.autograd.grad(sol.y1.sum(), p)[0], torch.tensor(5.0, dtype=D))
    with torch.no_grad():
        quiet = odenet.solve(
            lambda t, y: torch.ones_like(y), torch.zeros(1, 2, dtype=D), [0.0, 2.5], per_sample=per_sample, dense=True,
            event=Event(lambda t, y: y[..., 0] - 1.0, reset=to_zero),
        )  # fmt: skip
    assert torch.equal(quiet.hits.y, sol.hits.y.detach())
    before = quiet(quiet.hits.t[0]) if per_sample else quiet(quiet.hits.t)
    torch.testing.assert_close(before.flatten(), quiet.hits.y.flatten())


def test_a_condition_in_place_of_a_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"real numbers; got torch\.bool"):
        odenet.solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 1.0], event=Event(lambda t, y: y < 0.5))


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_event_where_f_jumps(per_sample: bool) -> None:
    """The step that ends there looks at f before the jump, the next one after it: neither has to be small."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1.0, 1.0, -1.0).to(y.dtype).expand(y.shape)

    event = Event(lambda t, y: (t - 1.0).expand(y.shape), terminal=False, reset=lambda t, y: y + 5.0)
    sol = odenet.solve(
        f, torch.zeros(1, dtype=D), [0.0, 2.5], event=event, controller=odenet.PID(jump_ts=[1.0]),
        per_sample=per_sample, **TIGHT,
    )  # fmt: skip
    assert sol.hits.t.flatten().tolist() == [1.0]
    assert float(sol.y1) == pytest.approx(4.5, abs=1e-13)
    assert int(sol.stats.accepted + sol.stats.rejected) < 30


@pytest.mark.parametrize("floor", slow_unless([0.0, 1e-3, 1.0, 100.0], 0.0, 100.0))
@pytest.mark.parametrize("restitution", slow_unless([0.1, 0.5, 0.8, None], 0.5, None))
@pytest.mark.parametrize("per_sample", [False, True])
def test_events_pile_up_wherever_the_floor_is(floor: float, restitution: float | None, per_sample: bool) -> None:
    """Also where each bounce loses another part (None), and with a part of the state that has nothing to do with it."""
    chance = torch.Generator().manual_seed(1)

    def fall(t: Tensor, y: Tensor) -> Tensor:
        one = torch.ones_like(y[..., 0])
        return torch.stack([y[..., 1], -9.81 * one, 0.3 * one], -1)

    def bounce(t: Tensor, y: Tensor) -> Tensor:
        kept = restitution or 0.5 + 0.4 * float(torch.rand((), generator=chance))
        return torch.stack([y[..., 0], -kept * y[..., 1], y[..., 2]], -1)

    y0 = torch.tensor([[2.0 + floor, 0.0, 0.0], [2.5 + floor, 0.0, 0.0]], dtype=torch.float64)
    event = odenet.Event(lambda t, y: y[..., 0] - floor, direction=-1, reset=bounce)
    sol = odenet.solve(
        fall, y0 if per_sample else y0[0], [0.0, 20.0], event=event, per_sample=per_sample, on_failure="return"
    )
    assert bool((torch.as_tensor(sol.status) == Status.PILE_UP).all())
    assert bool((sol.y1[..., 0] > floor - 1e-9).all())
    if restitution is not None:
        rest = (2 * (y0[:, 0] - floor) / 9.81).sqrt() * (1 + restitution) / (1 - restitution)
        last = sol.hits.t.nan_to_num(0.0).amax(-1)
        torch.testing.assert_close(last, rest if per_sample else rest[0], rtol=1e-4, atol=0.0)
