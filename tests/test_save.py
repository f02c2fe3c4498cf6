"""What a solve keeps: a function of the state in place of the state, and the steps themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import SETTINGS
from odenet import Event
from torch_versions import needs_tracing

D = torch.float64

EXACT = ("backprop", "discrete", "forward", "Discrete(checkpoints=2)")


def setting() -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    w, v = torch.randn(3, 3, dtype=D), torch.randn(3, dtype=D)
    y0 = torch.tensor([[1.0], [0.5]], dtype=D) * torch.ones(2, 3, dtype=D)
    ts = torch.tensor([0.0, 0.3, 0.3, 0.7, 1.0], dtype=D)
    return tuple(x.requires_grad_() for x in (y0, ts, w, v, torch.tensor(1.2, dtype=D)))


def column(t: Tensor) -> Tensor:
    return t.view(-1, 1) if t.ndim else t


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_function_of_the_state(gradient: Any, per_sample: bool) -> None:
    """Values and gradients (to y0, ts, args, what f and `save` close over) are those of the function put on states."""
    y0, ts, w, v, k = setting()

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(y @ w) * k * (1 + 0.1 * column(t))

    def save(t: Tensor, y: Tensor, k: Tensor) -> dict[str, Tensor]:
        return {"a": (y @ v) * torch.sin(t) * k, "b": (y * column(t)).sum(-1, keepdim=True)}

    def loss(kept: Any, y1: Tensor) -> Tensor:
        return kept["a"].square().sum() + kept["b"].sin().sum() + y1.sum()

    options: dict[str, Any] = {"args": (k,), "per_sample": per_sample, "rtol": 1e-9, "atol": 1e-11}
    sol = odenet.solve(f, y0, ts, gradient=gradient, save=save, **options)
    whole = odenet.solve(f, y0, ts, gradient="backprop", **options)
    axis = int(per_sample)
    times = [t.expand(2) if per_sample else t for t in ts]
    kept = [save(t, y, k) for t, y in zip(times, whole.ys.unbind(axis), strict=True)]
    expected = {name: torch.stack([x[name] for x in kept], axis) for name in "ab"}
    close = 1e-12 if str(gradient) in EXACT else 1e-6
    for name in "ab":
        torch.testing.assert_close(sol.ys[name], expected[name], rtol=close, atol=close)
    inputs = (y0, ts, w, v, k)
    mine = torch.autograd.grad(loss(sol.ys, sol.y1), inputs)
    for a, b in zip(mine, torch.autograd.grad(loss(expected, whole.y1), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.slow
@needs_tracing
def test_compiled_and_traced_solves() -> None:
    y0 = torch.ones(4, 2, dtype=D, requires_grad=True)
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    ts = [0.0, 0.5, 2.0]

    def run(y0: Tensor, rate: Tensor, compile: bool = False) -> Tensor:
        return odenet.solve(
            lambda t, y, r: -r * y, y0, ts, args=(rate,), compile=compile, save=lambda t, y, r: y.sum() * r, rtol=1e-8,
            method="bosh3",
        ).ys  # fmt: skip

    expected = 8 * rate * torch.exp(-rate * torch.tensor(ts, dtype=D))
    wanted = torch.autograd.grad(expected.sum(), rate)[0]
    for found in (run(y0, rate, compile=True), torch.compile(run, fullgraph=True, backend="aot_eager")(y0, rate)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), rate)[0], wanted, rtol=1e-6, atol=0.0)


def test_memory_is_that_of_what_is_kept() -> None:
    y0, count = torch.ones(120_000), 85
    sol = odenet.solve(lambda t, y: -y, y0, torch.linspace(0.0, 1.0, count), save=lambda t, y: y[0], gradient="adjoint")
    assert sol.ys.shape == (count,)
    assert sol.ys.untyped_storage().nbytes() <= count * 8


@pytest.mark.parametrize("per_sample", [False, True])
def test_failures_leave_nan(per_sample: bool) -> None:
    y0 = torch.tensor([[1.0], [2.0]], dtype=D)
    sol = odenet.solve(
        lambda t, y: y * y,
        y0,
        [0.0, 0.25, 0.75, 2.0],
        per_sample=per_sample,
        on_failure="return",
        save=lambda t, y: 2 * y,
    )
    expected = 2 / (1 / y0 - torch.tensor([0.0, 0.25, 0.75, 2.0], dtype=D))  # (2, 4)
    good = torch.tensor([[True, True, per_sample, False], [True, True, False, False]])
    found = sol.ys[..., 0] if per_sample else sol.ys[..., 0].T
    torch.testing.assert_close(found[good], expected[good], rtol=1e-4, atol=0.0)
    assert bool(torch.isnan(found[~good]).all())


@pytest.mark.parametrize("wrong", ["number", "integers", "structure", "batch"])
def test_what_save_must_return(wrong: str) -> None:
    calls = []

    def save(t: Tensor, y: Tensor) -> Any:
        calls.append(t)
        if wrong == "structure":
            return (y,) * len(calls)
        return {"number": 1.0, "integers": y.long(), "batch": y.sum()}[wrong]

    with pytest.raises((TypeError, ValueError), match=r"^save returned|^save must return"):
        odenet.solve(lambda t, y: -y, torch.ones(3, 2), [0.0, 1.0], save=save, per_sample=wrong == "batch")
    with pytest.raises(TypeError, match=r"^save must be callable"):
        odenet.solve(lambda t, y: -y, torch.ones(3), [0.0, 1.0], save=[0.5])  # pyright: ignore[reportArgumentType]


def test_steps_of_samples() -> None:
    """y' = -y: each sample's own steps, in its order, padded by its last one."""
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=D)
    ts = torch.tensor([[0.0, 1.0], [0.0, 3.0], [1.0, 1.0]], dtype=D)
    sol = odenet.solve(lambda t, y: -y, y0, ts, per_sample=True, save_steps=True)
    steps = sol.steps
    assert steps is not None and isinstance(steps.count, Tensor)
    assert steps.count.tolist() == sol.stats.accepted.tolist() and steps.count[2] == 0
    assert steps.t.shape == (3, int(steps.count.max())) and steps.y.shape == (*steps.t.shape, 1)
    torch.testing.assert_close(steps.y[..., 0], y0 * torch.exp(-(steps.t - ts[:, :1])), rtol=1e-5, atol=0.0)
    assert steps.t[:, -1].tolist() == [1.0, 3.0, 1.0]
    torch.testing.assert_close(steps.h.sum(1), ts[:, 1] - ts[:, 0], rtol=1e-12, atol=0.0)
    assert bool((steps.h[0, steps.count[0] :] == 0).all()) and bool((steps.h[1] > 0).all())


def test_steps_with_events_and_save() -> None:
    """y' = -1 from 1, set back to 1 at zero: all steps of the solve, with what `save` makes of each."""
    event = Event(lambda t, y: y[0], terminal=False, reset=lambda t, y: y + 1)
    sol = odenet.solve(
        lambda t, y: -torch.ones_like(y), torch.ones(1, dtype=D), [0.0, 2.5], event=event, save=lambda t, y: 2 * y,
        save_steps=True,
    )  # fmt: skip
    steps = sol.steps
    assert steps is not None and steps.count == sol.stats.accepted == len(steps.t)
    assert bool((steps.t.diff() > 0).all()) and float(steps.t[-1]) == 2.5
    torch.testing.assert_close(steps.h.sum(), torch.tensor(2.5, dtype=D))
    torch.testing.assert_close(steps.y[-1], torch.ones(1, dtype=D))


def test_no_steps_unless_asked() -> None:
    assert odenet.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0]).steps is None


@pytest.mark.filterwarnings("ignore:compile=True:UserWarning")
def test_steps_with_compile() -> None:
    """Solved eagerly, with a warning."""
    mine, eager = (
        odenet.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], save_steps=True, compile=c).steps
        for c in (True, False)
    )
    assert mine is not None and eager is not None and len(mine.t) > 2
    torch.testing.assert_close(mine.t, eager.t)
