"""Steps of `step_size` are at torchdiffeq's times, t[0] + n * step_size rounded once, in every kind of solve."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from odenet.compat import torchcde
from odenet.compat.torchdiffeq import odeint, odeint_adjoint


class Recorder(nn.Module):
    """y' = w y up to t = 2, -y behind; keeps the times at which it is evaluated."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=dtype))
        self.times: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t.detach()))
        return torch.where(t <= 2.0, self.w * y, -y)


class OfTuple(Recorder):
    def forward(self, t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(super(OfTuple, self).forward(t, x) for x in y)


def starts(first: float, last: float, size: float, dtype: torch.dtype) -> list[float]:
    """The starts of the steps from first to last, in the dtype of t."""
    count, sign = round(abs(last - first) / size), 1.0 if last > first else -1.0
    return (torch.tensor(first, dtype=dtype) + sign * size * torch.arange(count, dtype=dtype)).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.0), (0.7, 2.7)])
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("kind", [Recorder, OfTuple])
def test_of_a_solve(kind: type[Recorder], solve: object, ends: tuple[float, float], dtype: torch.dtype) -> None:
    func, y0, t = kind(dtype), torch.ones(1, dtype=dtype), torch.tensor(ends, dtype=dtype)
    out = solve(func, (y0,) if kind is OfTuple else y0, t, method="euler", options={"step_size": 0.1})  # pyright: ignore[reportCallIssue]
    expected = starts(*ends, 0.1, dtype)
    assert func.times == expected
    y = 1.0
    for time in expected:
        y += (0.1 if ends[1] > ends[0] else -0.1) * (y if time <= 2.0 else -y)
    found = out[0] if isinstance(out, tuple) else out
    assert float(found[-1].detach()) == pytest.approx(y, rel=1e-12 if dtype == torch.float64 else 1e-5)


def test_of_the_solve_back() -> None:
    """torchdiffeq's adjoint begins anew at each output."""
    func, t = Recorder(torch.float64), torch.tensor([0.0, 1.3, 3.0], dtype=torch.float64)
    out = odeint_adjoint(func, torch.ones(1, dtype=torch.float64), t, method="euler", options={"step_size": 0.1})
    func.times.clear()
    out.sum().backward()
    expected = [*starts(3.0, 1.3, 0.1, torch.float64), *starts(1.3, 0.0, 0.1, torch.float64)]
    assert [x for x in expected if x not in func.times] == []


def test_until_an_event_each_step_begins_where_the_last_one_ended() -> None:
    """So torchdiffeq does where it looks for an event, whose time is not known."""
    func, y0 = Recorder(torch.float64), torch.ones(1, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    odeint(func, y0, t, method="euler", options={"step_size": 0.1}, event_fn=lambda t, y: t - 0.95)
    time = 0.0
    for _ in range(9):
        assert time in func.times
        time += 0.1


@pytest.mark.parametrize("adjoint", [False, True])
def test_of_a_controlled_equation_on_a_straight_path(adjoint: bool) -> None:
    """dX jumps at the times of the rows, which are ends of steps. rk4: the exact factors, of each step in its piece."""
    x = torch.tensor([[0.0], [1.0], [0.0], [2.0], [0.0], [3.0]], dtype=torch.float64)
    X = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(x))

    class Linear(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return z[..., None]

    y0, options = torch.ones(1, dtype=torch.float64), {"step_size": 0.2}
    z = torchcde.cdeint(X, Linear(), y0, X.interval, adjoint=adjoint, method="rk4", options=options)
    expected, ends = 1.0, [*starts(0.0, 5.0, 0.2, torch.float64), 5.0]
    for start, end in pairwise(ends):
        h = end - start
        times = torch.tensor([start, start + h / 3, start + 2 * h / 3, end], dtype=torch.float64)
        a, b, c, d = (float(X.derivative(s)) for s in times)  # by the rule of 3/8, which torchdiffeq calls rk4
        k1 = a * expected
        k2 = b * (expected + h * k1 / 3)
        k3 = c * (expected + h * (k2 - k1 / 3))
        k4 = d * (expected + h * (k1 - k2 + k3))
        expected += h * (k1 + 3 * (k2 + k3) + k4) / 8
    assert float(z[-1].detach()) == pytest.approx(expected, rel=1e-12)
