"""Tape: the accepted steps of a solve, so that a backward pass can take them again, and how one is taken again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from ..control.controller import Decision
from ..core.leaves import Leaves, constants, new_leaves
from ..core.scalars import Flag, Number, some, where
from ..methods.method import Field, Step, StepInput
from .advance import Clock, Draws, Move, State, attempt, poisons
from .batch_index import worthwhile
from .observer import Observer
from .one_sided import nudged
from .problem import Problem
from .recorders import Given, Record


@dataclass(slots=True)
class Entry:
    """One accepted step: its ends and the choices made in it. With the state at its start they give the step again.

    Lanes that did not accept it have t1 == t0 and stand still. given: the outputs within it. problem: that of the
    samples that were in the batch. rows: those that accepted it, where the others are many and better left out.
    """

    t0: Number
    t1: Number
    accept: Flag
    hit: Flag
    stop: Number
    jumped: Flag
    jumps: Flag
    given: Given | None
    problem: Problem
    draws: Draws
    rows: Tensor | None = None

    def among(self, rows: Tensor) -> Entry:
        """The entry of the lanes that accepted the step, without the others."""

        def of(x: Flag) -> Flag:
            return x if x is False else x.index_select(0, rows)

        given, names = self.given, ("t0", "t1", "accept", "hit", "stop", "jumped", "jumps")
        if given is not None and given.lane is not None:
            given = Given(given.rows, torch.searchsorted(rows, given.lane))
        return replace(self, **{name: of(getattr(self, name)) for name in names}, given=given, rows=None)

    def ends(self, p: Problem) -> tuple[Tensor, Tensor]:
        """Both ends as tensors that belong to no graph."""
        if p.on_host:
            return p.ts.new_tensor(self.t0), p.ts.new_tensor(self.t1)
        return self.t0.detach(), self.t1.detach()

    def field(self, p: Problem, time0: Tensor, time1: Tensor) -> Field:
        """f as the step saw it, jumps at its ends included."""
        return nudged(p, time0, time1, self.jumped, self.jumps)

    def again(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves) -> Move:
        """The same step from other (attached) inputs."""
        with p.f.drawing_from(self.draws.get("step")):
            step = p.method.step(StepInput(self.field(p, time0, time1), time0, time1, y, carry))
        return self.move(p, time0, time1, y, carry, step)

    def move(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves, step: Step) -> Move:
        """The move of a step that was taken by other means."""
        ends = (self.t0, self.t1, time0, time1)
        chosen = (self.accept, self.hit, self.stop, self.jumped, self.jumps)
        return Move(p, *ends, y, carry, step, *chosen, draws=self.draws)


class Keeper(ABC):
    """Keeps of each accepted step what a backward pass will want of it."""

    @abstractmethod
    def keep(self, n: int, move: Move) -> None:
        """Step n was accepted by all its lanes, or by some. `move.graph` is there where it was wanted and is whole."""


class GraphKeeper(Keeper):
    """A keeper that wants steps recorded by autograd."""

    @abstractmethod
    def wants_graph(self, p: Problem) -> bool:
        """Whether the next step is to be recorded."""

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        """Entered while a step is recorded."""
        return nullcontext()

    def goes_on_after(self, error: RuntimeError) -> bool:
        """Whether a step failed for the way it was recorded, which is another one from now on."""
        return False

    def start(self, s: State) -> tuple[Leaves, Leaves]:
        """What a step from s is attached to: leaves of its own for y and the carry."""
        return new_leaves(s.y), new_leaves(s.carry)


@final
class Tape(Observer):
    """Keeps an entry for every accepted step and shows the step to the keepers. Comes after the Record.

    leaf_times: recorded steps are differentiable with respect to their ends too. dropped: the last step's graph was of
    no use, for what some lanes that rejected it had come upon.
    """

    dropped = False

    def __init__(
        self,
        record: Record,
        keeper: Keeper | None = None,
        graphs: GraphKeeper | None = None,
        leaf_times: bool = False,
    ) -> None:
        self.record, self.graphs, self.leaf_times = record, graphs, leaf_times
        self.keepers = [k for k in (keeper, graphs) if k is not None]
        self.entries: list[Entry] = []

    def attempt(self, p: Problem, clock: Clock, s: State) -> tuple[Move, Decision]:
        """An attempt, recorded by autograd where that is wanted: from leaves, or on from the step before it."""
        states, calls = p.f.states() if p.f.random else None, p.f.calls
        try:
            move, decision = self._attempt(p, clock, s)
        except RuntimeError as error:
            if self.graphs is None or not self.graphs.goes_on_after(error):
                raise
            p.f.calls = calls
            p.f.draw_from(states)
            move, decision = self._attempt(p, clock, s)
        if p.f.random:
            move.draws["step"] = states or p.f.start_states
        return move, decision

    def _attempt(self, p: Problem, clock: Clock, s: State) -> tuple[Move, Decision]:
        if self.graphs is None or not self.graphs.wants_graph(p):
            return attempt(p, clock, s)
        clock.leaves = self.leaf_times
        with torch.enable_grad(), self.graphs.recording(p):
            own = self.leaf_times  # an end of a step that is a leaf belongs to the graph of one step
            y, carry = (new_leaves(s.y), new_leaves(s.carry)) if own else self.graphs.start(s)
            time = s.time.detach().requires_grad_() if own else s.time
            move, decision = attempt(p, clock, s._replace(y=y, carry=carry, time=time))
        clock.leaves = False
        graph = move.step
        y1, carry1 = constants(graph.y), constants(graph.carry)
        move.graph, move.step = graph, graph._replace(y=y1, carry=carry1)
        return move, decision

    def see(self, move: Move) -> None:
        p, accept = move.problem, move.accept
        if not some(accept):
            return
        t1, jumps = where(accept, move.t1, move.t0), move.jumps is not False and move.jumps & accept
        # a rejected lane of a recorded step has a graph of its own: zeros are pulled through it
        whole = p.on_host or (move.graph is not None and not poisons(move, (move.t1 != move.t0) & ~accept))
        self.dropped = move.graph is not None and not whole
        if not whole or some(jumps):
            move.graph = None  # the slope after a jump is evaluated outside the step
        for keeper in self.keepers:
            keeper.keep(len(self.entries), move)
        choices = (accept, move.hit, move.stop, move.jumped, jumps)
        entry = Entry(move.t0, t1, *choices, self.record.last, p, move.draws)
        if p.batched and move.graph is None and p.compact:
            rows = accept.nonzero()[:, 0]
            if worthwhile(len(accept), len(rows), p.spare) and p.f.divisible():
                entry.rows = rows
        self.entries.append(entry)
