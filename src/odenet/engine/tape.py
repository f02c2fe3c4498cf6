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
from ..core.scalars import MaskLike, ScalarLike, any_true, where
from ..methods.method import Field, Step, StepInput
from .advance import try_step
from .batch_index import should_compact
from .observer import Observer
from .one_sided import one_sided_field
from .output_recorder import OutputIndex, OutputRecorder
from .problem import Problem
from .step_attempt import RandomStates, State, StepAttempt, has_nonfinite
from .stop_tracker import StopTracker


@dataclass(slots=True)
class TapeStep:
    """One accepted step: its ends and the choices made in it. With the state at its start they give the step again.

    Lanes that did not accept it have t1 == t0 and stand still. given: the outputs within it. problem: that of the
    samples that were in the batch. rows: those that accepted it, where the others are many and better left out.
    """

    t0: ScalarLike
    t1: ScalarLike
    accept: MaskLike
    hit: MaskLike
    stop: ScalarLike
    jumped: MaskLike
    jumps: MaskLike
    outputs: OutputIndex | None
    problem: Problem
    random_states: RandomStates
    rows: Tensor | None = None

    def for_rows(self, rows: Tensor) -> TapeStep:
        """The entry of the lanes that accepted the step, without the others."""

        def of(x: MaskLike) -> MaskLike:
            return x if x is False else x.index_select(0, rows)

        given, names = self.outputs, ("t0", "t1", "accept", "hit", "stop", "jumped", "jumps")
        if given is not None and given.sample is not None:
            given = OutputIndex(given.rows, torch.searchsorted(rows, given.sample))
        return replace(self, **{name: of(getattr(self, name)) for name in names}, outputs=given, rows=None)

    def end_times(self, p: Problem) -> tuple[Tensor, Tensor]:
        """Both ends as tensors that belong to no graph."""
        if p.on_host:
            return p.ts.new_tensor(self.t0), p.ts.new_tensor(self.t1)
        return self.t0.detach(), self.t1.detach()

    def field(self, p: Problem, time0: Tensor, time1: Tensor) -> Field:
        """f as the step saw it, jumps at its ends included."""
        return one_sided_field(p, time0, time1, self.jumped, self.jumps)

    def replay(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves) -> StepAttempt:
        """The same step from other (attached) inputs."""
        with p.f.with_random_states(self.random_states.get("step")):
            step = p.method.step(StepInput(self.field(p, time0, time1), time0, time1, y, carry))
        return self.as_attempt(p, time0, time1, y, carry, step)

    def as_attempt(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves, step: Step) -> StepAttempt:
        """The move of a step that was taken by other means."""
        ends = (self.t0, self.t1, time0, time1)
        chosen = (self.accept, self.hit, self.stop, self.jumped, self.jumps)
        return StepAttempt(p, *ends, y, carry, step, *chosen, random_states=self.random_states)


class StepStore(ABC):
    """Keeps of each accepted step what a backward pass will want of it."""

    @abstractmethod
    def store(self, n: int, attempt: StepAttempt) -> None:
        """Step n was accepted by all its lanes, or by some. `attempt.graph` is there where it was wanted and is whole."""


class GraphStore(StepStore):
    """A keeper that wants steps recorded by autograd."""

    @abstractmethod
    def wants_graph(self, p: Problem) -> bool:
        """Whether the next step is to be recorded."""

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        """Entered while a step is recorded."""
        return nullcontext()

    def recovers_from(self, error: RuntimeError) -> bool:
        """Whether a step failed for the way it was recorded, which is another one from now on."""
        return False

    def graph_inputs(self, s: State) -> tuple[Leaves, Leaves]:
        """What a step from s is attached to: leaves of its own for y and the carry."""
        return new_leaves(s.y), new_leaves(s.carry)


@final
class Tape(Observer):
    """Keeps an entry for every accepted step and shows the step to the keepers. Comes after the Record.

    leaf_times: recorded steps are differentiable with respect to their ends too. dropped: the last step's graph was of
    no use, for what some lanes that rejected it had come upon.
    """

    graph_dropped = False

    def __init__(
        self,
        recorder: OutputRecorder,
        store: StepStore | None = None,
        graphs: GraphStore | None = None,
        leaf_times: bool = False,
    ) -> None:
        self.recorder, self.graphs, self.leaf_times = recorder, graphs, leaf_times
        self.stores = [k for k in (store, graphs) if k is not None]
        self.steps: list[TapeStep] = []

    def try_step(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
        """An attempt, recorded by autograd where that is wanted: from leaves, or on from the step before it."""
        states, calls = p.f.random_states() if p.f.random else None, p.f.calls
        try:
            attempt, decision = self._attempt(p, tracker, s)
        except RuntimeError as error:
            if self.graphs is None or not self.graphs.recovers_from(error):
                raise
            p.f.calls = calls
            p.f.set_random_states(states)
            attempt, decision = self._attempt(p, tracker, s)
        if p.f.random:
            attempt.random_states["step"] = states or p.f.initial_random_states
        return attempt, decision

    def _attempt(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
        if self.graphs is None or not self.graphs.wants_graph(p):
            return try_step(p, tracker, s)
        tracker.leaf_times = self.leaf_times
        with torch.enable_grad(), self.graphs.recording(p):
            own = self.leaf_times  # an end of a step that is a leaf belongs to the graph of one step
            y, carry = (new_leaves(s.y), new_leaves(s.carry)) if own else self.graphs.graph_inputs(s)
            time = s.time.detach().requires_grad_() if own else s.time
            attempt, decision = try_step(p, tracker, s._replace(y=y, carry=carry, time=time))
        tracker.leaf_times = False
        graph = attempt.step
        y1, carry1 = constants(graph.y), constants(graph.carry)
        attempt.graph, attempt.step = graph, graph._replace(y=y1, carry=carry1)
        return attempt, decision

    def observe(self, attempt: StepAttempt) -> None:
        p, accept = attempt.problem, attempt.accept
        if not any_true(accept):
            return
        t1, jumps = where(accept, attempt.t1, attempt.t0), attempt.jumps is not False and attempt.jumps & accept
        # a rejected lane of a recorded step has a graph of its own: zeros are pulled through it
        whole = p.on_host or (
            attempt.graph is not None and not has_nonfinite(attempt, (attempt.t1 != attempt.t0) & ~accept)
        )
        self.graph_dropped = attempt.graph is not None and not whole
        if not whole or any_true(jumps):
            attempt.graph = None  # the slope after a jump is evaluated outside the step
        for keeper in self.stores:
            keeper.store(len(self.steps), attempt)
        choices = (accept, attempt.hit, attempt.stop, attempt.jumped, jumps)
        entry = TapeStep(attempt.t0, t1, *choices, self.recorder.last_outputs, p, attempt.random_states)
        if p.batched and attempt.graph is None and p.compact:
            rows = accept.nonzero()[:, 0]
            if should_compact(len(accept), len(rows), p.compaction_threshold) and p.f.supports_subset():
                entry.rows = rows
        self.steps.append(entry)
