"""One step of a solve, differentiable by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.leaves import Leaves, new_leaves
from ..engine.advance import Move, after_step
from ..engine.problem import Problem
from ..engine.tape import Entry


@dataclass
class Local:
    """One step, differentiable: `move` and the carry after it, attached to leaves (y, carry, time0, time1).

    ends_bar: cotangents of time0 and time1 that do not come through `move`.
    """

    move: Move
    y: Leaves
    carry: Leaves
    carry1: Leaves
    ends_bar: tuple[Tensor | None, Tensor | None] = (None, None)


def attached_step(q: Problem, e: Entry, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves) -> Local:
    """The step taken again, from leaves."""
    y, carry = new_leaves(y), new_leaves(carry)
    move = e.again(q, time0, time1, y, carry)
    return Local(move, y, carry, after_step(q, time1, move.step, e.jumps))
