"""Steps that checkpointing takes again, against the fewest possible."""

from __future__ import annotations

import torch
from torch import Tensor

import odenet

from .contenders import checkpointed
from .results import Recomputation, Tell, attempt

STEPS, SLOTS = (50, 200, 1000), (5, 12, 50)
_STAGES = 4  # of rk4


def recomputed(steps: int, slots: int) -> float:
    """Evaluations of the backward pass in units of a step, less one for each step's own VJP."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -torch.sin(y)

    gradient = checkpointed(slots).make()
    sol = odenet.solve(field, y0, [0.0, 1.0], method="rk4", step=1.0 / steps, gradient=gradient)
    sol.y1.sum().backward()
    if sol.stats.accepted != steps:
        raise RuntimeError(f"took {sol.stats.accepted} steps")
    return sol.stats.backward_nfe / _STAGES - steps


def optimum(steps: int, slots: int) -> int:
    """The binomial schedule's count (Griewank & Walther 2000), for a number of steps known beforehand."""
    from ..gradients.checkpoint_schedule import optimal_recomputation

    return optimal_recomputation(steps, slots)


def measure(quick: bool, tell: Tell) -> list[Recomputation]:
    jobs = [(steps, slots) for steps in (STEPS[:1] if quick else STEPS) for slots in SLOTS]
    rows = []
    for done, (steps, slots) in enumerate(jobs):
        tell("recomputation", done, len(jobs))
        found, note = attempt(lambda steps=steps, slots=slots: recomputed(steps, slots))
        best, reason = attempt(lambda steps=steps, slots=slots: optimum(steps, slots))
        rows.append(Recomputation(steps, slots, found, best, note or reason))
    tell("recomputation", len(jobs), len(jobs))
    return rows
