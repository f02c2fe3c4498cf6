"""Shared by the comparisons with torchdiffeq: problems with closed forms, as an independent reference, and spies.

A test takes the fixtures of conftest.py: `theirs` and `ours` to compare the two, `ode` to run on each in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

THEIRS = "torchdiffeq"
OURS = "odenet.compat.torchdiffeq"

FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
# The main branch of torchdiffeq has these, its release 0.2.5 does not; the orders are the textbooks'.
ONLY_OURS = {
    **{"implicit_euler": 1, "implicit_midpoint": 2, "trapezoid": 2, "sdirk2": 2, "trbdf2": 2},
    **{"radauIIA3": 3, "gl4": 4, "radauIIA5": 5, "gl6": 6, "tsit5": 5},
}
DTYPES = (torch.float64, torch.float32, torch.complex128, torch.complex64)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def real(dtype: torch.dtype) -> torch.dtype:
    return torch.zeros((), dtype=dtype).abs().dtype


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    """An initial value for `Riccati`, far from the poles of its solution on [0, 1] in either direction."""
    y0 = torch.tensor([0.3, 0.5, -0.4], dtype=torch.float64)
    return (y0 + 0.2j).to(dtype) if dtype.is_complex else y0.to(dtype)


class Riccati(nn.Module):
    """y' = -rate y² cos t: nonlinear and time-dependent, with a closed form that also holds for complex y."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.7, 0.4, 1.1], dtype=real(dtype)))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y * y * torch.cos(t)

    def exact(self, y0: Tensor, t: Tensor) -> Tensor:
        """The solution at t, differentiable in everything: autograd through it is the witness for gradients."""
        return 1 / (1 / y0 + self.rate * (torch.sin(t) - torch.sin(t[0]))[:, None])


class Rotation(nn.Module):
    """A tuple state of different shapes: q and p rotate about each other, and s' = -s cos t."""

    def __init__(self) -> None:
        super().__init__()
        self.speed = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert isinstance(state, tuple)
        q, p, s = state
        return self.speed * p, -self.speed * q, -s * torch.cos(t)

    def exact(self, state: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        q, p, s = state
        angle = (self.speed * (t - t[0]))[:, None, None]
        cos, sin = torch.cos(angle), torch.sin(angle)
        return q * cos + p * sin, p * cos - q * sin, s * torch.exp(torch.sin(t[0]) - torch.sin(t))


def rotation_start() -> tuple[Tensor, ...]:
    return double(0.3, -0.8).reshape(2, 1), double(1.1, 0.4).reshape(2, 1), torch.tensor(0.9, dtype=torch.float64)


class Fall(nn.Module):
    """y = (height, speed), y' = (speed, -g): a polynomial in t, so only the event has an error above rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(9.81, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -self.g])

    def lands(self, y0: Tensor, level: Tensor | float = 0.0, forwards: bool = True) -> Tensor:
        """How long after (before) t0 the height is `level`."""
        root = torch.sqrt(y0[1] ** 2 + 2 * self.g * (y0[0] - level))
        return (y0[1] + (root if forwards else -root)) / self.g


class JumpingField:
    """y' = 1 before t = 0.5 and 10 after it; records the times of its evaluations."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t))
        return torch.where(t < 0.5, 1.0, 10.0).to(y.dtype) * torch.ones_like(y)


class RecordingFunc:
    """A right-hand side with all three callbacks, which record their arguments."""

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f = f
        self.calls: list[tuple[str, Any, Any, Any]] = []
        self.times: list[float] = []

    def __call__(self, t: Tensor, y: Any) -> Any:
        self.times.append(float(t))
        return self.f(t, y)

    def callback_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.calls.append(("step", t0, y0, dt))

    def callback_accept_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.calls.append(("accept", t0, y0, dt))

    def callback_reject_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.calls.append(("reject", t0, y0, dt))

    def steps(self, kind: str = "step") -> list[tuple[float, float]]:
        """(t0, dt) of the calls of one kind."""
        return [(float(t0), float(dt)) for name, t0, _, dt in self.calls if name == kind]


def close(got: Any, want: Any, tol: float) -> None:
    """Tensors, or tuples of them, that differ by at most tol relative to max(1, their size)."""
    if isinstance(want, tuple):
        assert isinstance(got, tuple) and len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            close(a, b, tol)
        return
    assert got.shape == want.shape and got.dtype == want.dtype
    scale = max(1.0, float(want.detach().abs().max()))
    torch.testing.assert_close(got, want, rtol=0.0, atol=tol * scale)


def rounding(dtype: torch.dtype) -> float:
    """The change by summing the same terms in another order, over a few dozen steps."""
    return 64 * torch.finfo(real(dtype)).eps
