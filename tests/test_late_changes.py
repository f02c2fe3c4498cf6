"""What f may not do, done late or in inference mode, and solves of very many steps."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet

D = torch.float64
EXACT = torch.exp(torch.tensor(-1.0, dtype=D))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("options", [{"rtol": 1e-8}, {"method": "rk4", "step": 0.05}, {"method": "esdirk54"}], ids=str)
def test_one_buffer_for_all_results_from_a_time_on(options: dict[str, Any], per_sample: bool, grad: bool) -> None:
    buffer = torch.zeros(2, 1, dtype=D)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.neg(y.detach(), out=buffer) if bool((t > 0.5).any()) else -y

    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="f changed what it had returned before"):
        odenet.solve(f, torch.ones(2, 1, dtype=D), [0.0, 1.0], per_sample=per_sample, **options)


def test_one_buffer_in_a_dict() -> None:
    buffer = torch.zeros(2, dtype=D)

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": torch.neg(y["a"].detach(), out=buffer) if t > 0.5 else -y["a"], "b": -y["b"]}

    start = {"a": torch.ones(2, dtype=D), "b": torch.ones(2, dtype=D)}
    with pytest.raises(ValueError, match="f changed what it had returned before"):
        odenet.solve(f, start, [0.0, 1.0])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("what", ["t", "y"])
def test_changes_in_place_in_inference_mode_are_of_a_copy(what: str, late: bool) -> None:
    """There is no version counter in that mode: f gets tensors of its own."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        out = -y
        if bool(t > 0.5) or not late:
            (t if what == "t" else y).add_(1.0)
        return out

    with torch.inference_mode():
        y1 = odenet.solve(f, torch.ones(2, dtype=D), [0.0, 1.0], rtol=1e-9, atol=1e-11).y1
    assert bool((y1 - EXACT).abs().max() < 1e-8)


@pytest.mark.parametrize("method", ["tsit5", "esdirk54"])
def test_times_in_float32_in_inference_mode(method: str) -> None:
    """And gradients afterwards, by what is kept of the same times."""
    ts, y0 = torch.linspace(0, 1, 3), torch.ones(2, dtype=D)
    solver = odenet.Solver(lambda t, y: -y, method=method, rtol=1e-8)
    for _ in range(2):
        with torch.inference_mode():
            inside = solver(y0, ts).y1
        y = y0.clone().requires_grad_()
        (grad,) = torch.autograd.grad(solver(y, ts).y1.sum(), y)
        assert torch.equal(inside, solver(y0, ts).y1) and bool((grad - EXACT).abs().max() < 1e-6)


def test_results_written_by_out() -> None:
    """Autograd does not follow it, and need not where nobody asks for a gradient."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.mul(y, -1.0, out=torch.empty_like(y))

    y1 = odenet.solve(f, torch.ones(2, dtype=D), [0.0, 1.0], rtol=1e-9, atol=1e-11).y1
    assert bool((y1 - EXACT).abs().max() < 1e-8)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        odenet.solve(f, torch.ones(2, dtype=D, requires_grad=True), [0.0, 1.0])


def test_messages() -> None:
    with pytest.raises(ValueError, match="f changes its t or y in place"):
        odenet.solve(lambda t, y: y.neg_(), torch.ones(2), [0.0, 1.0])
    with pytest.raises(RuntimeError, match="numpy") as found:
        odenet.solve(lambda t, y: torch.from_numpy(-y.numpy()), torch.ones(2), [0.0, 1.0], method="esdirk54")
    assert any("jacobian=" in note for note in found.value.__notes__)
    with pytest.raises(TypeError, match="args belong to each call"):
        odenet.Solver(lambda t, y: -y, args=(1,))


def test_times_of_a_solution_are_its_own() -> None:
    ts = torch.tensor([0.0, 1.0], dtype=D)
    sol = odenet.solve(lambda t, y: -y, torch.ones(2, dtype=D), ts)
    sol.ts.mul_(3.0)
    assert ts.tolist() == [0.0, 1.0]


LONG = """
import threading, torch, odenet
w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

def run():
    sol = odenet.solve(lambda t, y: -w * y, torch.ones(2, dtype=torch.float64), [0.0, 1.0], method="rk4", step=1 / 3000)
    (grad,) = torch.autograd.grad(sol.y1.sum(), w)
    print(abs(float(grad) + 0.7357588823428847) < 1e-10, flush=True)

threading.stack_size(512 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_thousands_of_steps_on_a_small_stack() -> None:
    """Kept graphs are freed by recursion; a whole process ends where the stack does."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("method", ["radauIIA5", "esdirk54", "dopri8", "gl6"])
def test_training_after_inference_mode(method: str) -> None:
    """What is kept for later solves is made outside that mode: in a fresh process, as other tests have made it."""
    code = f"""
import torch, odenet
lin = torch.nn.Linear(2, 2).double()
step = {{"step": 0.1}} if {method!r} == "gl6" else {{}}
def run():
    y0 = torch.ones(3, 2, dtype=torch.float64)
    return odenet.solve(lambda t, y: torch.tanh(lin(y)), y0, [0.0, 1.0], method={method!r}, **step).y1
with torch.inference_mode():
    run()
run().sum().backward()
assert torch.isfinite(lin.weight.grad).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_event_function_that_is_not_finite_is_told_with_its_sample() -> None:
    """Also where samples have left the batch before."""
    y0 = torch.tensor([[0.5], [0.5], [0.5], [0.5], [0.5], [5.0]], dtype=D)
    ts = torch.tensor([0.0, 1.0], dtype=D).repeat(6, 1)
    ts[-1, 1] = 3.0

    def fn(t: Tensor, y: Tensor) -> Tensor:
        return torch.where((y > 4.0) & (t[:, None] > 2.0), torch.nan, y - 0.2)

    with pytest.raises(ValueError, match="sample 5"):
        odenet.solve(lambda t, y: -0.01 * y, y0, ts, event=odenet.Event(fn), per_sample=True)


def test_times_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        ts = torch.linspace(0, 1, 5)
    w = torch.ones(1, requires_grad=True)
    odenet.solve(lambda t, y: -w * y, torch.ones(1), ts).y1.sum().backward()
    assert w.grad is not None and float(w.grad) == pytest.approx(-math.exp(-1), rel=1e-3)


def test_no_times_of_a_solution_with_events() -> None:
    sol = odenet.solve(
        lambda t, y: -y, torch.ones(2), [0.0, 5.0], dense=True, event=odenet.Event(lambda t, y: y[0] - 0.5)
    )
    assert sol(torch.empty(0)).shape == (0, 2)
