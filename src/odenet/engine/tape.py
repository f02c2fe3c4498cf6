"""Tape: what a backward pass needs to take the accepted steps again, and how to take one again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from ..core.lanes import Flag, Number
from ..core.leaves import Leaves
from .advance import Move, after_step, nudged
from .observe import Observer
from .problem import Problem
from .record import Record, Rows


@dataclass
class Entry:
    """One accepted step: its inputs and the choices made in it. No stage is kept."""

    time0: Tensor
    time1: Tensor
    y: Leaves
    carry: Leaves
    accept: Flag
    hit: Flag
    stop: Number
    jumped: Flag
    jumps: Flag
    rows: Rows | None

    def again(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves) -> tuple[Move, Leaves]:
        """The same step from other (attached) inputs: its move, and the carry after it.

        Lanes that did not accept it are given time1 == time0 and stand still.
        """
        f = nudged(p, time0, time1, self.jumped, self.jumps)
        step = p.method.step(f, time0, time1, y, carry)
        move = Move(
            p, 0.0, 0.0, time0, time1, y, carry, step, self.accept, self.hit, self.stop, self.jumped, self.jumps
        )
        return move, after_step(p, time1, step, self.jumps)


@final
class Tape(Observer):
    """Keeps the inputs of every accepted step. Comes after the Record, which knows the outputs within the step."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.entries: list[Entry] = []

    def see(self, move: Move) -> None:
        accept = move.accept
        if isinstance(accept, Tensor):
            if not bool(accept.any()):
                return
            time1 = move.time1.where(accept, move.time0)
            jumps = move.jumps & accept if isinstance(move.jumps, Tensor) else move.jumps
        elif accept:
            time1, jumps = move.time1, move.jumps
        else:
            return
        rows = self.record.rows_of_last
        self.entries.append(
            Entry(move.time0, time1, move.y, move.carry, accept, move.hit, move.stop, move.jumped, jumps, rows)
        )


def on_fresh_field(p: Problem, args: Leaves) -> Problem:
    """The problem with its own evaluation count and other differentiable args."""
    return replace(p, f=p.f.with_args(args))
