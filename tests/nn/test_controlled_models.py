"""Controlled equations: closed forms, one another, and finite differences as witnesses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nn.series_model_suite import SeriesModelSuite
from odenet.nn import LinearCDE, LogODE, NeuralCDE

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
# the same steps for all samples and all nearby inputs: results do not depend on the batch, and differences are exact
FIXED: dict[str, Any] = {"method": "rk4", "step": 0.25}
FINE: dict[str, Any] = {"method": "dopri8", "step": 0.25}


class SmoothField(nn.Module):
    """f(s, z), (B, hidden, channels), smooth."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(hidden, hidden * channels), (hidden, channels)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.layer(z)).unflatten(-1, self.shape)


class ControlledSuite(SeriesModelSuite):
    batch_tol = 1e-9
    nondet_tol = 1e-12  # the first backward pass of a solve sums in another order than the next


class TestNeuralCDEHermite(ControlledSuite):
    causal = False
    control = "hermite"
    online = False

    def make(self, channels: int, out: int | None, static: int) -> NeuralCDE:
        field = SmoothField(4, 1 + channels) if isinstance(channels, int) and channels > 0 else None
        return NeuralCDE(channels, 4, out, field, control=self.control, online=self.online, static=static, **FIXED)


class TestNeuralCDENatural(TestNeuralCDEHermite):
    control = "natural"


class TestNeuralCDELinear(TestNeuralCDEHermite):
    control = "linear"


class TestNeuralCDERectilinear(TestNeuralCDEHermite):
    causal = True
    control = "rectilinear"


class TestNeuralCDEHermiteOnline(TestNeuralCDEHermite):
    causal = True
    online = True


class TestNeuralCDELinearOnline(TestNeuralCDEHermiteOnline):
    control = "linear"


class TestLinearCDE(SeriesModelSuite):
    causal = False

    def make(self, channels: int, out: int | None, static: int) -> LinearCDE:
        return LinearCDE(channels, 4, out, block=2, static=static)


class TestLinearCDERectilinear(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> LinearCDE:
        return LinearCDE(channels, 4, out, block=2, static=static, control="rectilinear")


class TestLogODE(ControlledSuite):
    causal = False
    batch_tol = 1e-7  # rows end steps within a window

    def make(self, channels: int, out: int | None, static: int) -> LogODE:
        return LogODE(channels, 4, out, window=2, static=static, **FINE)


class TestLogODEBrackets(ControlledSuite):
    causal = False
    batch_tol = 1e-7

    def make(self, channels: int, out: int | None, static: int) -> LogODE:
        field = SmoothField(4, 1 + channels) if isinstance(channels, int) and channels > 0 else None
        return LogODE(channels, 4, out, window=2, brackets=True, field=field, static=static, **FINE)
