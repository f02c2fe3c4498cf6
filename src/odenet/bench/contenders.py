"""The gradients that are measured, by label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import odenet

from ..gradients import Gradient

BASE = "discrete"  # what the times are put in relation to: it keeps graphs, and takes no step again where they fit
AGAIN = "discrete, checkpoints=N"  # the same, where every step is taken again once


@dataclass(frozen=True)
class Contender:
    """A gradient and its label in the tables.

    make: builds it, when its turn comes. target: what its number should not exceed, in the unit of the part that
    measures it; None where there is no target.
    """

    label: str
    make: Callable[[], str | Gradient]
    target: float | None = None


def named(name: str, target: float | None = None) -> Contender:
    """A gradient by its name, as it is without options."""
    return Contender(name, lambda: name, target)


def checkpointed(slots: int, target: float | None = None, called: str = "") -> Contender:
    """called: the number of checkpoints in the label, where it is not to be the number itself."""
    return Contender(f"discrete, checkpoints={called or slots}", lambda: odenet.Discrete(checkpoints=slots), target)


def memory_contenders() -> list[Contender]:
    """Target: growth of the peak in MiB. Without one: there for contrast."""
    budget = Contender('discrete, memory="32MiB"', lambda: odenet.Discrete(memory="32MiB"), 60)
    return [
        named("adjoint", 60),
        named("reversible", 60),
        checkpointed(12, 60),
        budget,
        named("gauss"),
        named("discrete"),
        named("backprop"),
    ]


def exact_contenders() -> list[Contender]:
    """Target: relative error."""
    return [named(name, 1e-7) for name in ("discrete", "reversible", "backprop", "forward")] + [checkpointed(3, 1e-7)]


def continuous_contenders() -> list[Contender]:
    """Target: relative error in units of the tolerance. Discrete, which errs as the solution does, is for contrast."""
    return [named("adjoint", 10), named("gauss", 10), named("discrete")]


def cost_contenders(steps: int) -> list[Contender]:
    """Target: time in units of BASE's, which has to be among them.

    With as many checkpoints as steps, every state is there and every step is taken again, once.
    """
    return [
        named(BASE),
        named("reversible", 2.2),
        Contender(AGAIN, lambda: odenet.Discrete(checkpoints=steps)),
        checkpointed(max(1, steps // 10), 1.7, called="N/10"),
        named("adjoint"),
        named("gauss"),
        named("backprop"),
    ]
