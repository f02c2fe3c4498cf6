"""Steps that a backward pass with checkpoints takes again, and the fewest possible."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import comb

import torch
from torch import Tensor
from tqdm import tqdm

import odenet

from ..shared.errors import value_or_error

STEPS, SLOTS = (50, 200, 1000), (5, 12, 50)
_STAGES = 4  # of rk4


@dataclass(frozen=True)
class Recomputation:
    """Steps that a backward pass with `slots` checkpoints takes again to come to a state, and their minimum."""

    steps: int
    slots: int
    recomputed: float | None
    optimum: int
    note: str = ""


def recomputed(steps: int, slots: int) -> float:
    """Return the evaluations of the backward pass in units of a step, minus those of the vector-Jacobian products."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -torch.sin(y)

    gradient = odenet.Discrete(checkpoints=slots)
    sol = odenet.solve(field, y0, [0.0, 1.0], method="rk4", step=1.0 / steps, gradient=gradient)
    sol.y1.sum().backward()
    if sol.stats.accepted != steps:
        raise RuntimeError(f"took {sol.stats.accepted} steps")
    return sol.stats.backward_nfe / _STAGES - steps


def optimum(steps: int, slots: int) -> int:
    """Return the count of the binomial schedule (Griewank & Walther 2000) for a known number of steps.

    Reversing l steps with s checkpoints takes r l - C(s + r, s + 1) forward steps, for the least r with
    l <= C(s + r, s). Here l = steps + 1, and the forward sweep of `steps` steps does not count.
    """
    length = steps + 1
    r = next(r for r in count() if comb(slots + r, slots) >= length)
    return r * length - comb(slots + r, slots + 1) - steps


def measure(quick: bool) -> list[Recomputation]:
    rows = []
    jobs = [(steps, slots) for steps in (STEPS[:1] if quick else STEPS) for slots in SLOTS]
    for steps, slots in tqdm(jobs, "recomputation", disable=None):
        found, note = value_or_error(lambda steps=steps, slots=slots: recomputed(steps, slots))
        rows.append(Recomputation(steps, slots, found, optimum(steps, slots), note))
    return rows
