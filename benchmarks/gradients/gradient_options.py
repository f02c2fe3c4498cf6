"""The gradients that are measured, with their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import odenet

BASE = "discrete"  # the unit of times: keeps graphs, and takes no step again where they fit into memory
AGAIN = "discrete, checkpoints=N"  # takes every step again once


@dataclass(frozen=True)
class GradientOption:
    """A value of `solve(gradient=)` and its label in the tables.

    make: returns the value. target: the bound of the measured number, in its unit; None without a target.
    """

    label: str
    make: Callable[[], Any]
    target: float | None = None


def named(name: str, target: float | None = None) -> GradientOption:
    return GradientOption(name, lambda: name, target)


def checkpointed(slots: int, target: float | None = None, text: str = "") -> GradientOption:
    """Return `discrete` with checkpoints. text: their number in the label."""
    return GradientOption(f"discrete, checkpoints={text or slots}", lambda: odenet.Discrete(checkpoints=slots), target)


def memory_options() -> list[GradientOption]:
    """Return the options whose memory is measured. Target: growth of the peak in MiB."""
    bounded = GradientOption('discrete, memory="32MiB"', lambda: odenet.Discrete(memory="32MiB"), 60)
    first = [named("adjoint", 60), named("reversible", 60), checkpointed(12, 60), bounded]
    return [*first, named("gauss"), named("discrete"), named("backprop")]


def exact_options() -> list[GradientOption]:
    """Return the options that are exact for the numerical solution. Target: relative error."""
    return [named(name, 1e-7) for name in ("discrete", "reversible", "backprop", "forward")] + [checkpointed(3, 1e-7)]


def continuous_options() -> list[GradientOption]:
    """Return the options that solve the adjoint ODE, and `discrete` beside them. Target: error in tolerances."""
    return [named("adjoint", 10), named("gauss", 10), named("discrete")]


def cost_options(steps: int) -> list[GradientOption]:
    """Return the options whose time is measured. Target: time in units of that of BASE."""
    return [
        named(BASE),
        named("reversible", 2.2),
        checkpointed(steps, text="N"),
        checkpointed(max(1, steps // 10), 1.7, text="N/10"),
        named("adjoint"),
        named("gauss"),
        named("backprop"),
    ]
