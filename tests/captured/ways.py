"""The ways to solve that each case is put to: every gradient, joint and per sample, eager, compiled, drop-in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import SETTINGS
from odenet.compat.torchdiffeq import odeint, odeint_adjoint

D = torch.float64
Field = Callable[..., Any]
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Way:
    """solve(f, y0) -> the state at 1 from y0 at 0."""

    name: str
    solve: Callable[[Field, Any], Any]

    def __str__(self) -> str:
        return self.name


def native(gradient: Any, per_sample: bool = False, compile: bool = False) -> Way:
    def solve(f: Field, y0: Any) -> Any:
        return odenet.solve(
            f, y0, [0.0, 1.0], gradient=gradient, per_sample=per_sample, compile=compile, **TIGHT
        ).y1  # fmt: skip

    words = [str(gradient), "per sample" if per_sample else "joint", *(["compiled"] if compile else [])]
    return Way(", ".join(words), solve)


class Module(nn.Module):
    """f as a module, which `odeint_adjoint` asks for; what it closes over is no parameter of it."""

    def __init__(self, f: Field) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.f(t, y)


def dropped_in(function: Callable[..., Any]) -> Way:
    def solve(f: Field, y0: Any) -> Any:
        whole = function(Module(f), y0, torch.tensor([0.0, 1.0], dtype=D), **TIGHT)
        return tuple(x[-1] for x in whole) if isinstance(whole, tuple) else whole[-1]

    return Way(function.__name__, solve)


JOINT = [native(g) for g in SETTINGS]
EAGER = [*JOINT, *(native(g, per_sample=True) for g in SETTINGS)]
DROPPED_IN = [dropped_in(odeint), dropped_in(odeint_adjoint)]
COMPILED = [
    pytest.param(
        native("discrete", per_sample, compile=True),
        marks=[
            pytest.mark.skipif(shutil.which("g++") is None, reason="compile=True needs a C++ compiler"),
            pytest.mark.slow,  # seconds of compiling each
        ],
    )
    for per_sample in (False, True)
]
WAYS = [*EAGER, *DROPPED_IN, *COMPILED]
WITHOUT_COMPILING = [*EAGER, *DROPPED_IN]


def number(x: float) -> Tensor:
    """A leaf of one number."""
    return torch.tensor(x, dtype=D, requires_grad=True)


def ones() -> Tensor:
    """Two samples of one number each."""
    return torch.ones(2, 1, dtype=D)


def column(t: Tensor) -> Tensor:
    """t so that it goes with a state of two samples, be it one time or one a sample."""
    return t.reshape(-1, 1)
