"""Steps on a grid, interpolation between them, perturbed ends, callbacks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet.methods import METHODS

D = torch.float64
ONE = torch.ones(1, dtype=D)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def test_one_step_from_output_to_output() -> None:
    ts = [0.0, 0.5, 0.7]
    sol = odenet.solve(decay, ONE, ts, method="euler", controller=odenet.Grid())
    assert sol.ys[:, 0].tolist() == pytest.approx([1.0, 0.5, 0.4]) and sol.stats.accepted == 2


@pytest.mark.parametrize(
    "times", [[0.25, 0.5, 0.75], torch.tensor([0.25, 0.5, 0.75]), lambda ts: ts[0] + ts.new_tensor([0.25, 0.5, 0.75])]
)
def test_a_grid_and_lines_between(times: Any) -> None:
    method = METHODS["euler"].with_dense_output("linear")
    sol = odenet.solve(decay, ONE, [0.0, 0.3, 0.6, 1.0], method=method, controller=odenet.Grid(times))
    corners = [0.75**n for n in range(5)]
    want = [1.0, corners[1] + 0.2 * (corners[2] - corners[1]), corners[2] + 0.4 * (corners[3] - corners[2]), corners[4]]
    assert sol.ys[:, 0].tolist() == pytest.approx(want) and sol.stats.accepted == 4


def test_constant_steps_that_do_not_end_at_outputs() -> None:
    control = odenet.ConstantStep(0.3, every_output=False)
    sol = odenet.solve(decay, ONE, [0.0, 0.45, 1.0], method="rk4", controller=control)
    assert sol.stats.accepted == 4  # 0.3, 0.3, 0.3, 0.1
    assert float(sol.ys[1, 0]) == pytest.approx(math.exp(-0.45), abs=2e-4)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "forward", odenet.Discrete(checkpoints=2), "reversible"])
def test_a_grid_gets_its_gradient(gradient: Any) -> None:
    """Against central differences of the same numerical solution."""

    def value(grid: Tensor, how: Any = gradient) -> Tensor:
        control = odenet.Grid(grid)
        sol = odenet.solve(
            lambda t, y: -y * y * torch.cos(t), ONE, [0.0, 0.3, 1.0], method="heun3", controller=control, gradient=how
        )
        return sol.ys[1:].sum()

    grid = torch.tensor([0.2, 0.5, 0.8], dtype=D, requires_grad=True)
    (mine,) = torch.autograd.grad(value(grid), grid)
    for i in range(3):
        bump = torch.zeros(3, dtype=D)
        bump[i] = 1e-5
        rate = float(value(grid.detach() + bump) - value(grid.detach() - bump)) / 2e-5
        assert float(mine[i]) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize("name", ["euler", "rk4", "gl4", "dopri5"])
def test_interpolation(name: str) -> None:
    """Both pass through the ends; the cubic's error falls like dt^4, the line's like dt^2."""
    for by, order in (("linear", 2), ("cubic", 4)):
        errors = []
        for step in (0.2, 0.1):
            method = METHODS[name].with_dense_output(by)
            sol = odenet.solve(decay, ONE, [0.0, 1.0], method=method, step=step, dense=True)
            own = odenet.solve(decay, ONE, [0.0, 1.0], method=name, step=step / 2)
            torch.testing.assert_close(sol(1.0), sol.y1, rtol=1e-14, atol=1e-14)
            middle = sol(1.0 - step / 2) - math.exp(-1.0 + step / 2)
            errors.append(float(middle.abs().max()))
            assert own.y1.shape == (1,)
        if METHODS[name].order >= order:
            assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.6)
    with pytest.raises(ValueError, match=r"interpolation='cubik'.*Did you mean 'cubic'"):
        METHODS[name].with_dense_output("cubik")


@pytest.mark.parametrize("control", [odenet.Grid(perturb=True), odenet.ConstantStep(0.5, perturb=True)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_perturbed_ends(control: Any, sign: float) -> None:
    """f is never asked at the ends of a step, but just inside of it."""
    times: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        times.append(sign * float(t))
        return -y

    odenet.solve(f, ONE, [0.0, sign * 0.5, sign * 1.0], method="heun", controller=control)
    for n, (low, high) in enumerate(((0.0, 0.5), (0.5, 1.0))):
        first, last = times[2 * n], times[2 * n + 1]
        assert low < first < low + 1e-12 and high - 1e-12 < last < high


@pytest.mark.parametrize("per_sample", [False, True])
def test_callbacks(per_sample: bool) -> None:
    seen: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def note(name: str) -> Any:
        return lambda t, y, dt: seen.append((name, t, y, dt))

    calls = odenet.Callbacks(note("step"), note("accept"), note("reject"))
    control = odenet.PID(first_step=1.0)
    sol = odenet.solve(
        lambda t, y: -y * torch.cos(9 * (t[:, None] if per_sample else t)), torch.ones(2, 3, dtype=D), [1.0, 0.0],
        controller=control, per_sample=per_sample, callbacks=calls,
    )  # fmt: skip
    names = [name for name, *_ in seen]
    shape = (2,) if per_sample else ()
    assert all(t.shape == shape and dt.shape == shape and y.shape == (2, 3) for _, t, y, dt in seen)
    attempts = sol.stats.accepted + sol.stats.rejected
    assert names.count("step") == int(attempts.max() if per_sample else attempts)
    assert names[:2] == ["step", "reject"] and float(seen[0][3].max()) == 1.0
    with pytest.raises(TypeError, match="callbacks must be a Callbacks instance; got function"):
        odenet.solve(decay, ONE, [0.0, 1.0], callbacks=lambda t, y, dt: None)  # type: ignore[arg-type]


def test_steps_that_go_on_through_nan() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return y * (math.nan if t > 0.4 else 1.0)

    sol = odenet.solve(f, ONE, [0.0, 0.25, 1.0], method="euler", controller=odenet.ConstantStep(0.25, finite=False))
    assert float(sol.ys[1, 0]) == 1.25 and bool(sol.ys[2].isnan().all())
