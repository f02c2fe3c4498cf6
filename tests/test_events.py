"""Events of `solve`: closed forms of their times, of the states there and of their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import SETTINGS
from odenet import Event
from odenet.events.chebyshev import nodes
from odenet.events.roots import RootQuery, first_roots
from slow_cases import slow_unless

D = torch.float64


def fall(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return torch.stack([y[1], -g])


def inputs() -> tuple[Tensor, ...]:
    """Height, gravity, level of the floor."""
    return tuple(torch.tensor(x, dtype=D, requires_grad=True) for x in (2.0, 9.8, 0.3))


@pytest.mark.parametrize("method", ["tsit5", "dopri8", "rk4", "gl4", "implicit_adams"])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_landing_moves_with_everything(gradient: Any, method: str) -> None:
    if gradient == "reversible" and method == "implicit_adams":
        pytest.skip("a reversible method needs a one-step method")
    height, g, floor = inputs()
    options = {} if method in ("tsit5", "dopri8") else {"step": 0.05}
    y0 = torch.stack([height, torch.zeros((), dtype=D)])
    sol = odenet.solve(
        fall, y0, [0.0, 0.2, 9.0], args=(g,), event=Event(lambda t, y, g: y[0] - floor), gradient=gradient,
        method=method, rtol=1e-9, atol=1e-9, **options,
    )  # fmt: skip
    time = ((height - floor) * 2 / g).sqrt()
    assert sol.status == odenet.Status.EVENT and sol.event.which == 0
    assert float(sol.event.t.detach()) == pytest.approx(float(time.detach()), abs=1e-9)
    torch.testing.assert_close(sol.y1.detach(), torch.stack([floor, -g * time]).detach(), rtol=1e-9, atol=1e-9)
    assert bool(sol.ys[:2].isfinite().all()) and bool(sol.ys[2].isnan().all())
    value, exact = 2 * sol.event.t + sol.y1[1], 2 * time - g * time
    for mine, true in zip(
        torch.autograd.grad(value, (height, g, floor), retain_graph=True),
        torch.autograd.grad(exact, (height, g, floor)),
        strict=True,
    ):
        assert float(mine) == pytest.approx(float(true), abs=1e-6)
    (by_output,) = torch.autograd.grad(sol.ys[1, 0], g)
    assert float(by_output) == pytest.approx(-(0.2**2) / 2, abs=1e-6)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "forward"])
def test_constant_time_is_fixed_also_against_ts(gradient: str) -> None:
    """The state at a fixed time moves with ts[0] like the closed form, and not with ts[-1]."""
    height, g, _ = inputs()
    ts = torch.tensor([0.1, 5.0], dtype=D, requires_grad=True)
    y0 = torch.stack([height, torch.ones((), dtype=D)])
    event = Event(lambda t, y, g: y[0] - 0.5, constant_time=True)
    sol = odenet.solve(fall, y0, ts, args=(g,), event=event, gradient=gradient, rtol=1e-9, atol=1e-9)
    assert not sol.event.t.requires_grad
    late = float(sol.event.t) - ts[0]
    exact = torch.stack([height + late - g * late**2 / 2, 1 - g * late])
    weights = torch.tensor([1.0, 3.0], dtype=D)
    mine = torch.autograd.grad((sol.y1 * weights).sum(), (height, g, ts))
    true = torch.autograd.grad((exact * weights).sum(), (height, g, ts))
    for a, b in zip(mine, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_first_of_several_and_directions() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0]])  # (sin t, cos t)

    y0 = torch.tensor([0.0, 1.0], dtype=D)
    high, low = Event(lambda t, y: y[0] - 0.9), Event(lambda t, y: y[0] + 0.5)
    for events, which, time in (
        ([low, high], 1, math.asin(0.9)),
        ([low], 0, math.pi + math.asin(0.5)),
        ([Event(high.fn, direction=-1)], 0, math.pi - math.asin(0.9)),
        ([Event(low.fn, direction=1)], 0, 2 * math.pi - math.asin(0.5)),
        ([Event(lambda t, y: torch.stack([y[0] + 0.5, y[1] + 0.5]))], 0, math.acos(-0.5)),
        ([Event(lambda t, y: y[0])], 0, math.pi),  # a zero at the start is none
    ):
        sol = odenet.solve(f, y0, [0.0, 20.0], event=events, rtol=1e-10, atol=1e-10)
        assert sol.event.which == which and float(sol.event.t) == pytest.approx(time, abs=1e-8)
    back = odenet.solve(f, y0, [0.0, -20.0], event=high, rtol=1e-10, atol=1e-10)
    assert float(back.event.t) == pytest.approx(-math.pi - math.asin(0.9), abs=1e-8)
    none = odenet.solve(f, y0, [0.0, 20.0], event=Event(lambda t, y: y[0] - 1.1))
    assert none.event is None and none.status == odenet.Status.SUCCESS


def test_a_dip_within_a_step_is_found() -> None:
    """sin dips below -1 + 1e-6 for 0.0028, in steps of 1."""
    control = odenet.Grid([float(i) for i in range(1, 10)])
    sol = odenet.solve(
        lambda t, y: torch.cos(t).expand(1), torch.zeros(1, dtype=D), [0.0, 9.5], method="gl6", controller=control,
        event=Event(lambda t, y: torch.sin(t) + 1 - 1e-6),
    )  # fmt: skip
    assert float(sol.event.t) == pytest.approx(1.5 * math.pi - math.acos(1 - 1e-6), abs=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    ("method", "rtol", "rate", "level"),
    [
        ("tsit5", 0.273, 1.9583, -1.12966), ("bosh3", 0.8963, 5.1405, -0.818), ("dopri5", 0.62, 26.238, -1.0958),
        ("dopri8", 0.0421, 10.2094, -0.56545), ("radauIIA5", 0.0429, 6.914, 0.3509), ("trbdf2", 0.1417, 7.842, 0.2762),
    ],
)  # fmt: skip
def test_what_dense_output_alone_crosses(method: str, rtol: float, rate: float, level: float, per_sample: bool) -> None:
    """At a loose tolerance dense output crosses where no step does; what is found is the same wherever time begins."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -(rate**2) * y[..., 0], torch.sin(rate * y[..., 0])], -1)

    def hits(start: float) -> tuple[Tensor, Any]:
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D)
        event = Event(lambda t, y: y[..., 0] - level, terminal=False)
        sol = odenet.solve(
            f, y0.expand(2, 3) if per_sample else y0, [start, start + 4.0], method=method, rtol=rtol, atol=rtol,
            event=event, per_sample=per_sample,
        )  # fmt: skip
        return (y0[:0] if sol.hits is None else sol.hits.t - start), sol

    (here, one), (there, other) = hits(0.0), hits(5.0)
    torch.testing.assert_close(there, here, rtol=0.0, atol=1e-12)
    assert torch.equal(torch.as_tensor(other.stats.nfe), torch.as_tensor(one.stats.nfe))
    if here.numel():
        assert float((other.hits.y[..., 0] - level).abs().max()) < 1e-8


@pytest.mark.parametrize("method", slow_unless(["bosh3", "dopri8"], "dopri8"))
def test_searches_side_by_side(method: str) -> None:
    """While one sample begins to look for an event, others are in the middle of it: each finds what it finds alone."""
    generator = torch.Generator().manual_seed(7)
    rate, level = (torch.rand(12, generator=generator, dtype=D) for _ in range(2))

    def hits(rows: slice) -> Any:
        def f(t: Tensor, y: Tensor, rate: Tensor, level: Tensor) -> Tensor:
            return torch.stack([y[:, 1], -(rate**2) * y[:, 0], torch.sin(y[:, 0])], -1)

        events = [
            Event(lambda t, y, rate, level: y[:, 0] - level, terminal=False),
            Event(lambda t, y, rate, level: (y[:, 2] - level).sign(), terminal=False),
        ]
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D).expand(12, 3)
        args = (2.0 + 20.0 * rate[rows], 2.2 * level[rows] - 1.1)
        return odenet.solve(
            f, y0[rows], [0.0, 4.0], args=args, method=method, rtol=0.2, atol=0.2, event=events, per_sample=True
        )

    whole = hits(slice(0, 12))
    for i in range(12):
        alone = hits(slice(i, i + 1))
        found = torch.isfinite(whole.hits.t[i])
        if alone.hits is None:
            assert not bool(found.any())
            continue
        assert torch.equal(whole.hits.t[i][found], alone.hits.t[0]) and torch.equal(
            whole.hits.y[i][found], alone.hits.y[0]
        )
        assert int(whole.stats.nfe[i]) == int(alone.stats.nfe[0])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_function_is_zero_at_the_event(dtype: torch.dtype, per_sample: bool) -> None:
    """To far more than a step's polynomial is worth: the step is taken again to end there, and once more corrected."""
    y0 = torch.tensor([[1.0, 0.0], [0.8, 0.1], [1.2, -0.3]], dtype=dtype)
    y0 = y0 if per_sample else y0[0]

    def turn(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)

    def value(t: Tensor, y: Tensor) -> Tensor:
        return y[..., 0] ** 3 - 0.2 * torch.cos(t).to(y.dtype)

    ts = torch.tensor([0.0, 9.0], dtype=dtype)
    sol = odenet.solve(turn, y0, ts, event=Event(value), per_sample=per_sample, method="dopri8", rtol=1e-5, atol=1e-5)
    assert bool((torch.as_tensor(sol.status) == odenet.Status.EVENT).all())
    left = value(sol.event.t, sol.event.y).abs().max()
    assert float(left) < max(1e-10, 20 * torch.finfo(dtype).eps), left


def test_it_works_with_dense_output_pytrees_and_callbacks() -> None:
    seen: list[float] = []
    sol = odenet.solve(
        lambda t, y: {"x": -y["x"]}, {"x": torch.ones(2, 2)}, [0.0, 5.0], dense=True,
        event=Event(lambda t, y: y["x"].sum() - 2.0), callbacks=odenet.Callbacks(accept=lambda t, *_: seen.append(t)),
    )  # fmt: skip
    assert float(sol.event.t) == pytest.approx(math.log(2), abs=1e-5)
    torch.testing.assert_close(sol(0.3)["x"], torch.full((2, 2), math.exp(-0.3)), rtol=1e-4, atol=1e-5)
    assert len(seen) == sol.stats.accepted and sol.event.y["x"].shape == (2, 2)
    with pytest.raises(ValueError, match="time reached"):
        sol(2.0)


def test_second_derivatives_up_to_a_fixed_time() -> None:
    k = torch.tensor(0.7, dtype=D, requires_grad=True)
    event = Event(lambda t, y, k: y[0] - 0.5, constant_time=True)
    for gradient in ("discrete", "backprop", "adjoint"):
        sol = odenet.solve(
            lambda t, y, k: -k * y, torch.ones(1, dtype=D), [0.0, 5.0], args=(k,), event=event, gradient=gradient,
            rtol=1e-10, atol=1e-10,
        )  # fmt: skip
        (first,) = torch.autograd.grad(sol.y1.sum(), k, create_graph=True)
        (second,) = torch.autograd.grad(first, k)
        assert float(second) == pytest.approx(float(sol.event.t) ** 2 / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("event", "more", "kind", "says"),
    [
        (lambda t, y: y[0], {}, TypeError, "event must be an Event.*event=Event"),
        (Event(lambda t, y: 1.0), {}, TypeError, "must return a tensor of real numbers; got float"),
        (Event(lambda t, y: y[0] > 0.5), {}, TypeError, r"got torch.bool: return what crosses zero, such as y\[0\] - "),
        (
            Event(lambda t, y: y.sum()),
            {"per_sample": True},
            ValueError,
            r"a row for each sample.*shape \(2,\).*got \(\)",
        ),
    ],
)
def test_wrong_events(event: Any, more: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        odenet.solve(lambda t, y: -y, torch.ones(2, 2), [0.0, 1.0], event=event, **more)


def test_wrong_event_settings() -> None:
    with pytest.raises(TypeError, match="fn of an Event must be callable"):
        Event(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="direction of an Event must be -1, 0 or 1; got int 2"):
        Event(lambda t, y: y, direction=2)


def test_first_roots() -> None:
    """Of random sines and of narrow dips, against a fine search."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.linspace(0, 1, 20001, dtype=D)
    cases: list[tuple[Any, float]] = []
    samples: list[list[float]] = []
    for i in range(300):
        a, p, o, r = torch.rand(4, dtype=D, generator=generator).tolist()
        dip = 10 ** (-1 - 2 * p)
        if i % 2:

            def g(x: Any, a: float = 1 + 11 * a, p: float = 6.3 * p, o: float = 2.4 * o - 1.2) -> Any:
                return torch.sin(torch.as_tensor(a * x + p, dtype=D)) + o
        else:

            def g(x: Any, r: float = 0.02 + 0.96 * r, dip: float = dip) -> Any:
                return (torch.as_tensor(x, dtype=D) - r) ** 2 - dip**2

        values = g(fine)
        if float(values[0]) == 0.0:
            continue
        changes = (values[:-1] * values[1:] < 0).nonzero()
        cases.append((g, float(fine[changes[0, 0]]) if len(changes) else math.inf))
        samples.append([float(g(x)) for x in nodes()])

    def all_of_them(x: Tensor, live: Tensor) -> Tensor:
        return torch.stack([g(a) for (g, _), a in zip(cases, x, strict=True)])

    first = torch.tensor(samples, dtype=D)
    zero = torch.zeros(len(cases), dtype=D)
    found = first_roots(all_of_them, first, RootQuery(zero, first[:, 0].sign(), zero, zero))
    for (g, true), where in zip(cases, found.where.tolist(), strict=True):
        assert where == pytest.approx(true, abs=6e-5) or (math.isinf(true) and abs(float(g(where))) < 1e-12)
        assert math.isinf(where) or abs(float(g(where))) < 1e-12
    one_way = first_roots(all_of_them, first, RootQuery(zero + 1, first[:, 0].sign(), zero, zero))
    both = torch.isfinite(found.where) & found.rising
    assert torch.equal(one_way.where[both], found.where[both]) and bool(one_way.rising[both].all())
    others = torch.isfinite(one_way.where) & ~both
    assert bool((one_way.where[others] > found.where[others]).all()) and bool(others.any())
