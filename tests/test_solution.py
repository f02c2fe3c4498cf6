"""What a Solution tells: the time reached, with its derivatives, and a summary in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import SETTINGS
from odenet import Status
from torch_versions import needs_tracing

D = torch.float64


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def times(y: Tensor, t: Tensor) -> Tensor:
    return t * y if t.ndim == 0 else t.unsqueeze(-1) * y


# --- t1


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "step": 0.03}], ids=str)
def test_t1_of_a_whole_solve(options: dict[str, Any], per_sample: bool, dtype: torch.dtype) -> None:
    for last in (0.7, -0.7, 0.0):
        ts = torch.tensor([0.0, last / 3, last], dtype=dtype)
        sol = odenet.solve(decay, torch.ones(2, 1, dtype=D), ts, per_sample=per_sample, **options)
        assert sol.t1.dtype == dtype and sol.t1.shape == ((2,) if per_sample else ())
        assert bool((sol.t1 == ts[-1]).all())


def test_t1_of_own_times() -> None:
    ts = torch.tensor([[0.0, 1.0], [0.5, 3.0]], dtype=D)
    assert torch.equal(odenet.solve(decay, torch.ones(2, 1, dtype=D), ts, per_sample=True).t1, ts[:, 1])


def test_t1_inside_transforms_and_graphs() -> None:
    def f(y0: Tensor, end: Tensor) -> Tensor:
        return odenet.solve(decay, y0, torch.stack([end * 0, end])).t1

    ends = torch.tensor([0.5, 2.0], dtype=D)
    assert torch.equal(torch.func.vmap(f)(torch.ones(2, 1, dtype=D), ends), ends)
    assert float(torch.func.jvp(f, (torch.ones(1, dtype=D), ends[0]), (torch.ones(1, dtype=D), ends[1]))[1]) == 2.0
    assert float(torch.func.grad(lambda end: f(torch.ones(1, dtype=D), end))(ends[0])) == 1.0


@needs_tracing
def test_t1_inside_the_callers_graph() -> None:
    def f(y0: Tensor, most: int) -> tuple[Tensor, Tensor]:
        sol = odenet.solve(decay, y0, [0.0, 2.0], max_steps=most)
        return sol.t1, sol.status

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    y0 = torch.ones(1, dtype=D)
    t1, status = compiled(y0, 100)
    assert float(t1) == 2.0 and int(status) == Status.SUCCESS
    t1, status = compiled(y0, 3)
    with pytest.raises(odenet.MaxStepsError) as caught:
        odenet.solve(decay, y0, [0.0, 2.0], max_steps=3)
    assert float(t1) == pytest.approx(caught.value.t, rel=1e-12) and int(status) == Status.MAX_STEPS


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "per_sample"),
    [
        ({}, False),
        ({}, True),
        ({"method": "rk4", "step": 0.03}, False),
        ({"method": "rk4", "step": 0.03}, True),
        pytest.param({"compile": True}, False, marks=SLOW),
        pytest.param({"compile": True}, True, marks=SLOW),
    ],
    ids=str,
)
def test_going_on(options: dict[str, Any], per_sample: bool) -> None:
    """Some steps at a time come to the end of a whole solve."""
    rate = torch.tensor([[1.0], [5.0]], dtype=D)
    y, t = torch.ones(2, 1, dtype=D), torch.zeros(2, dtype=D)
    pieces = 0
    while not bool((t == 2.0).all()):
        ts = torch.stack([t, torch.full_like(t, 2.0)], -1) if per_sample else [float(t[0]), 2.0]
        sol = odenet.solve(
            lambda t, y, rate: -rate * y, y, ts, args=(rate,), max_steps=5, on_failure="return", per_sample=per_sample,
            **options,
        )  # fmt: skip
        pieces += 1
        assert pieces < 100
        y, t = sol.y1, sol.t1.expand(2)
    assert pieces > 2
    torch.testing.assert_close(y, torch.exp(-2.0 * rate), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
@pytest.mark.parametrize("most", [3, 8])
def test_going_on_has_the_gradient_of_a_whole_solve(most: int, gradient: Any, per_sample: bool) -> None:
    """To y0, a rate and both times, of y' = -w t y: the first solve breaks off before and after an output time."""
    y0 = torch.tensor([[1.0], [2.0]], dtype=D, requires_grad=True)
    w, ts = torch.tensor(0.8, dtype=D, requires_grad=True), torch.tensor([0.3, 0.6, 2.0], dtype=D, requires_grad=True)
    options: dict[str, Any] = {"gradient": gradient, "per_sample": per_sample, "rtol": 1e-9, "atol": 1e-11}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -w * times(y, t)

    control = odenet.PID(first_step=0.02, max_step=0.1)
    half = odenet.solve(f, y0, ts, max_steps=most, on_failure="return", controller=control, **options)
    assert bool((torch.as_tensor(half.status) == Status.MAX_STEPS).all())
    reached = half.t1 if per_sample else half.t1.expand(2)
    assert bool((reached.detach() < 2.0).all() and (reached.detach() > 0.3).all())
    if per_sample:  # a sample that failed is a constant, and so is its time
        assert not torch.autograd.grad(half.t1.sum() + half.y1.sum(), ts, allow_unused=True)[0].any()
        return
    whole = odenet.solve(f, half.y1, torch.stack([half.t1, ts[-1]]), **options)
    found = torch.autograd.grad(whole.y1.sum(), (y0, w, ts))
    exact = (y0 * torch.exp(-w * (ts[-1] ** 2 - ts[0] ** 2) / 2)).sum()
    for a, b in zip(found, torch.autograd.grad(exact, (y0, w, ts), allow_unused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_going_on_from_an_event(gradient: Any, per_sample: bool) -> None:
    """The time of the event moves with y0 and w, and t1 with it."""
    y0 = torch.tensor([[1.0], [2.0]], dtype=D)[: 2 if per_sample else 1].requires_grad_()
    w = torch.tensor(0.8, dtype=D, requires_grad=True)
    options: dict[str, Any] = {"gradient": gradient, "per_sample": per_sample, "rtol": 1e-9, "atol": 1e-11}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -w * y

    event = odenet.Event(lambda t, y: y[..., 0] - 0.5)
    half = odenet.solve(f, y0, [0.0, 3.0], event=event, **options)
    exact = torch.log(y0[:, 0] / 0.5) / w
    torch.testing.assert_close(half.t1.reshape(-1), exact, rtol=1e-7, atol=0.0)
    assert torch.equal(half.t1, half.event.t)
    for a, b in zip(
        torch.autograd.grad(half.t1.sum(), (y0, w), retain_graph=True),
        torch.autograd.grad(exact.sum(), (y0, w)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    end = torch.full_like(half.t1, 3.0)
    whole = odenet.solve(f, half.y1, torch.stack([half.t1, end], -1), **options)
    found = torch.autograd.grad(whole.y1.sum(), (y0, w))
    for a, b in zip(found, torch.autograd.grad((y0 * torch.exp(-3 * w)).sum(), (y0, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_t1_of_samples_that_end_each_in_its_way() -> None:
    """An event, the last time, a blow-up; after a reset the time is that of the last leg."""

    def f(t: Tensor, y: Tensor, kind: Tensor) -> Tensor:
        return torch.where(kind == 2, y * y, -y)

    kind = torch.tensor([[0], [1], [2]])
    y0 = torch.tensor([[1.0], [0.4], [1.0]], dtype=D)
    event = odenet.Event(lambda t, y, kind: y[:, 0] - 0.5, direction=-1)
    sol = odenet.solve(f, y0, [0.0, 2.0], args=(kind,), event=event, per_sample=True, on_failure="return")
    assert sol.status.tolist() == [Status.EVENT, Status.SUCCESS, Status.BLOW_UP]
    torch.testing.assert_close(sol.t1, torch.tensor([0.6931472, 2.0, 1.0], dtype=D), rtol=0.0, atol=1e-4)
    again = odenet.Event(lambda t, y: y - 0.5, direction=-1, reset=lambda t, y: y + 1)
    assert float(odenet.solve(decay, torch.ones(1, dtype=D), [0.0, 2.0], event=again).t1) == 2.0
    half = odenet.solve(decay, torch.ones(1, dtype=D), [0.0, 9.0], event=again, max_steps=22, on_failure="return")
    assert half.hits.which.shape[0] > 0 and float(half.hits.t[-1]) < float(half.t1) < 9.0


# --- in words


def test_a_joint_solution_in_words() -> None:
    sol = odenet.solve(decay, torch.ones(100, 100), [0.0, 0.5, 1.0], method="dopri5")
    text = str(sol)
    for part in (
        "y' = decay(t, y) by dopri5",
        "y (100, 100) float32",
        "from 0 to 1; 3 output times",
        "status: SUCCESS",
    ):
        assert part in text
    assert f"{sol.stats.accepted} accepted" in text and str(sol.stats.nfe) in text
    assert text.count("\n") < 8 and len(text) < 400
    assert "\n" not in repr(sol) and len(repr(sol)) < 120 and "SUCCESS" in repr(sol)


def test_samples_in_words() -> None:
    y0 = {"x": torch.tensor([[0.1], [1.0], [0.2]], dtype=D)}
    sol = odenet.solve(
        lambda t, y: {"x": y["x"] ** 2}, y0, [0.0, 2.0], per_sample=True, on_failure="return", dense=True
    )
    text, counts = str(sol), sol.stats.accepted
    assert "for 3 samples" in text and "y['x'] (3, 1) float64" in text
    assert "from 0 to 1.00001 to 2 of 2" in text and "2 SUCCESS, 1 BLOW_UP" in text
    assert f"{int(counts.min())} to {int(counts.max())} accepted" in text


def test_ends_in_words() -> None:
    event = odenet.Event(lambda t, y: y - 0.5)
    text = str(odenet.solve(decay, torch.ones(1), [0.0, 2.0], event=event))
    assert "status: EVENT" in text and "of 2;" in text and "events: 1" in text
    text = str(odenet.solve(decay, torch.ones(1), [0.0, 2.0], max_steps=3, on_failure="return"))
    assert "status: MAX_STEPS" in text and "of 2;" in text


def test_many_leaves_in_words() -> None:
    y0 = [torch.ones(1, dtype=D) for _ in range(50)]
    assert "and 46 more" in str(odenet.solve(lambda t, y: y, y0, [0.0, 1.0]))


def test_words_inside_vmap() -> None:
    texts = []

    def f(y0: Tensor) -> Tensor:
        sol = odenet.solve(decay, y0, [0.0, 1.0])
        texts.extend([str(sol), repr(sol)])
        return sol.y1

    torch.func.vmap(f)(torch.ones(4, 2, dtype=D))
    assert "from 0 to 1" in texts[0] and "SUCCESS" in texts[1]


def test_settings_in_words() -> None:
    given = {
        "Adjoint()": odenet.Adjoint(),
        "Adjoint(rtol=0.001, method='rk4')": odenet.Adjoint(rtol=1e-3, method="rk4"),
        "GaussAdjoint(interpolate='checkpoints', checkpoints=5)": odenet.GaussAdjoint(
            interpolate="checkpoints", checkpoints=5
        ),
        "Backprop()": odenet.Backprop(),
        "Forward()": odenet.Forward(),
        "ConstantStep(0.1, every_output=False)": odenet.ConstantStep(0.1, every_output=False),
        "Grid([0.1, 0.2], perturb=True)": odenet.Grid([0.1, 0.2], perturb=True),
        "Grid(<tensor (50,)>)": odenet.Grid(torch.linspace(0, 1, 50)),
        "PID(norm=decay)": odenet.PID(norm=decay),  # pyright: ignore[reportArgumentType]
        "Adjoint(controller=ConstantStep(0.5))": odenet.Adjoint(controller=odenet.ConstantStep(0.5)),
    }
    for text, x in given.items():
        assert repr(x) == text
