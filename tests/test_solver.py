"""`Solver`, and what repeated solves keep: the same values as a solve that has kept nothing, whatever is changed."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from odenet.api.options import Options

D = torch.float64


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def exact(y0: Tensor, length: float) -> Tensor:
    return y0 * torch.exp(torch.tensor(-length, dtype=y0.dtype))


def same(a: Tensor, b: Tensor, digits: float = 1e-6) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a - b).abs().max() < digits)


def test_values_and_options() -> None:
    solver = odenet.Solver(lambda t, y, k: -k * y, method="dopri5", rtol=1e-8, atol=1e-10)
    y0 = torch.tensor([1.0, 2.0], dtype=D)
    for k in (1.0, 2.0):
        sol = solver(y0, [0.0, 1.0], args=(k,))
        assert same(sol.y1, exact(y0, k))
        assert torch.equal(sol.y1, odenet.solve(solver.f, y0, [0.0, 1.0], args=(k,), **solver.options).y1)
    assert "dopri5" in repr(solver)


def test_wrong_options_at_once() -> None:
    with pytest.raises(TypeError, match=r"metod.*Did you mean 'method'"):
        odenet.Solver(decay, metod="dopri5")
    with pytest.raises(ValueError, match="rtol must be zero or positive"):
        odenet.Solver(decay, rtol=-1.0)
    with pytest.raises(ValueError, match="step is required"):
        odenet.Solver(decay, method="rk4")
    with pytest.raises(TypeError, match="f must be callable"):
        odenet.Solver(3.0)  # pyright: ignore[reportArgumentType]


def test_copies_and_pickles() -> None:
    solver, y0 = odenet.Solver(decay, rtol=1e-8), torch.ones(2, dtype=D)
    for other in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert torch.equal(other(y0, [0.0, 1.0]).y1, solver(y0, [0.0, 1.0]).y1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_other_shapes_dtypes_and_structures(per_sample: bool) -> None:
    """In any order, again and again: each is what it is."""
    solver = odenet.Solver(
        lambda t, y: {k: -v for k, v in y.items()} if isinstance(y, dict) else -y, rtol=1e-8, atol=1e-9,
        per_sample=per_sample,
    )  # fmt: skip
    states: list[Any] = [
        torch.rand(3, dtype=D) + 1, torch.rand(4, dtype=D) + 1, torch.rand(3, 1, dtype=D) + 1, torch.rand(3) + 1,
        {"a": torch.rand(2, dtype=D) + 1}, {"b": torch.rand(2, dtype=D) + 1}, nn.Parameter(torch.rand(3, dtype=D) + 1),
    ]  # fmt: skip
    for _ in range(3):
        for y0 in states:
            sol = solver(y0, [0.0, 1.0])
            assert type(sol.y1) is (dict if isinstance(y0, dict) else Tensor)
            pairs = [(sol.y1[k], y0[k]) for k in y0] if isinstance(y0, dict) else [(sol.y1, y0)]
            for y1, start in pairs:
                assert same(y1.detach(), exact(start.detach(), 1.0), 1e-5)


def test_times_that_change() -> None:
    """Lists of other numbers, and a tensor that is changed in place between two solves."""
    solver, y0 = odenet.Solver(decay, rtol=1e-9, atol=1e-11), torch.ones(2, dtype=D)
    for end in (1.0, 2.0, 1.0, -1.0, 2):
        assert same(solver(y0, [0.0, end]).y1, exact(y0, float(end)))
        assert same(solver(y0, (0.0, end)).y1, exact(y0, float(end)))
    ts = torch.tensor([0.0, 1.0], dtype=D)
    assert same(solver(y0, ts).y1, exact(y0, 1.0))
    ts[1] = 2.0
    assert same(solver(y0, ts).y1, exact(y0, 2.0))
    del ts
    for end in (1.0, 3.0):  # it may come to lie where the last one lay
        assert same(solver(y0, torch.tensor([0.0, end], dtype=D)).y1, exact(y0, end))


def test_what_a_solution_holds_is_the_callers() -> None:
    solver, y0 = odenet.Solver(decay, rtol=1e-9, atol=1e-11), torch.ones(2, dtype=D)
    first = solver(y0, [0.0, 1.0])
    first.ts[1] = 7.0
    second = solver(y0, [0.0, 1.0])
    assert second.ts.tolist() == [0.0, 1.0] and same(second.y1, exact(y0, 1.0))


def test_times_that_f_changes() -> None:
    """f keeps the t that it was given, and changes it after the solve."""
    kept: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        kept.append(t)
        return -y

    solver, y0 = odenet.Solver(f, method="euler", step=0.25), torch.ones(2, dtype=D)
    expected = solver(y0, [0.0, 1.0]).y1
    with torch.no_grad():
        for t in kept:
            t += 5.0
    assert torch.equal(solver(y0, [0.0, 1.0]).y1, expected)


def test_times_that_ask_for_a_gradient() -> None:
    solver, y0 = odenet.Solver(decay, rtol=1e-9, atol=1e-11), torch.ones(1, dtype=D)
    for _ in range(2):
        ts = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
        solver(y0, [0.0, 1.0])
        (grad,) = torch.autograd.grad(solver(y0, ts).y1.sum(), ts)
        assert same(grad, torch.tensor([1.0, -1.0], dtype=D) * exact(y0, 1.0))


def test_wrong_times_every_time() -> None:
    solver, y0 = odenet.Solver(decay), torch.ones(2)
    for _ in range(2):
        with pytest.raises(ValueError, match="ts must be finite"):
            solver(y0, [0.0, float("nan")])
        with pytest.raises(ValueError, match="ts must increase or decrease"):
            solver(y0, [0.0, 1.0, 0.5])
        with pytest.raises(TypeError, match="real or complex floating point"):
            solver(torch.ones(2, dtype=torch.int64), [0.0, 1.0])


def test_a_controller_that_is_changed() -> None:
    controller = odenet.PID()
    solver, y0 = odenet.Solver(decay, controller=controller, save_steps=True), torch.ones(2, dtype=D)
    solver(y0, [0.0, 1.0])
    controller.step_ts = [0.3]
    steps = solver(y0, [0.0, 1.0]).steps
    assert steps is not None and 0.3 in steps.t.tolist()


def test_inference_mode_and_back() -> None:
    solver, y0, ts = odenet.Solver(decay, rtol=1e-8), torch.ones(2, dtype=D), torch.tensor([0.0, 1.0], dtype=D)
    for times in ([0.0, 1.0], ts):
        with torch.inference_mode():
            inside = solver(torch.ones(2, dtype=D), times).y1
        y = y0.clone().requires_grad_()
        (grad,) = torch.autograd.grad(solver(y, times).y1.sum(), y)
        assert torch.equal(inside, solver(y0, times).y1) and same(grad, exact(y0, 1.0), 1e-5)


def test_inside_transforms() -> None:
    solver = odenet.Solver(decay, rtol=1e-8, atol=1e-10)
    y0 = torch.rand(3, 2, dtype=D)
    plain = solver(y0[0], [0.0, 1.0]).y1
    mapped = torch.func.vmap(lambda y: solver(y, [0.0, 1.0]).y1)(y0)
    assert same(mapped[0], plain) and same(solver(y0[0], [0.0, 1.0]).y1, plain)
    assert same(torch.func.grad(lambda y: solver(y, [0.0, 1.0]).y1.sum())(y0[0]), exact(torch.ones(2, dtype=D), 1.0))


def test_what_is_kept_is_bounded_and_holds_no_f() -> None:
    options = Options.from_keywords()
    for n in range(1, 20):
        odenet.Solver(decay)(torch.ones(n), [0.0, 1.0])
        options.layout(torch.ones(n), [0.0, 1.0])
    assert len(options.layouts) <= 4


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.eye(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight)


def python_calls(run: Callable[[], Any]) -> tuple[int, Any]:
    """Python calls inside the package, and what `run` gives."""
    root, count = os.path.dirname(odenet.__file__), 0

    def see(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        found = run()
    finally:
        sys.setprofile(before)
    return count, found


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer is at work")
@pytest.mark.parametrize("grad", [False, True])
def test_python_calls_of_a_repeated_solve(grad: bool) -> None:
    """They cost more than the operations on a small state: at most 24 for each of some 40 evaluations of f."""
    field, y0 = Field(), torch.ones(32, 2)

    def run() -> Any:
        with torch.set_grad_enabled(grad):
            return odenet.solve(lambda t, y: torch.tanh(y @ field.weight), y0, [0.0, 20.0], method="dopri5")

    run()
    calls, sol = python_calls(run)
    assert sol.stats.nfe > 40 and calls <= 24 * sol.stats.nfe, (calls, sol.stats.nfe)


def test_wrong_states_after_right_ones() -> None:
    """Of the shape, dtype and device of a state that was solved before."""
    solver, y0 = odenet.Solver(decay), torch.eye(3)
    for _ in range(2):
        solver(y0, [0.0, 1.0])
        with pytest.raises(TypeError, match="must be a dense tensor"):
            solver(y0.to_sparse(), [0.0, 1.0])
        with pytest.raises(TypeError, match="must be a dense tensor"):
            solver(y0.to("meta"), [0.0, 1.0])
