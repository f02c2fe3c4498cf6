"""Tape: the accepted steps of a solve, recorded so that a backward pass can replay them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from ..control.controller import Decision
from ..core.leaves import Leaves, as_graph_inputs, constants
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

_PER_SAMPLE = ("t0", "t1", "accept", "hit", "stop", "jumped", "jumps")


@dataclass(slots=True)
class TapeStep:
    """One accepted step: its ends and the decisions made in it. Replayed from the state at its start, it is the same.

    t0, t1, accept, hit, stop, jumped, jumps: see `StepAttempt`; samples that rejected the step have t1 == t0. outputs:
    the outputs within the step. problem: of the samples that were in the batch. rows: those that accepted the step,
    where the others are so many that a replay leaves them out; None: it takes all.
    """

    t0: ScalarLike
    t1: ScalarLike
    accept: MaskLike
    hit: MaskLike
    stop: int | Tensor
    jumped: MaskLike
    jumps: MaskLike
    outputs: OutputIndex | None
    problem: Problem
    random_states: RandomStates
    rows: Tensor | None = None

    def for_rows(self, rows: Tensor) -> TapeStep:
        """The tape step of these samples of the batch alone; all of them accepted the step."""

        def take(x: Any) -> Any:
            return x if x is False else x.index_select(0, rows)

        outputs = self.outputs
        if outputs is not None and outputs.sample is not None:
            outputs = OutputIndex(outputs.rows, torch.searchsorted(rows, outputs.sample))
        taken = {name: take(getattr(self, name)) for name in _PER_SAMPLE}
        return replace(self, **taken, outputs=outputs, rows=None)

    def end_times(self, p: Problem) -> tuple[Tensor, Tensor]:
        """Both ends as detached tensors."""
        t0, t1 = self.t0, self.t1
        if isinstance(t0, Tensor) and isinstance(t1, Tensor):
            return t0.detach(), t1.detach()
        return p.ts.new_tensor(t0), p.ts.new_tensor(t1)

    def field(self, p: Problem, time0: Tensor, time1: Tensor) -> Field:
        """f as the step evaluated it: at a jump by its one-sided limit."""
        return one_sided_field(p, time0, time1, self.jumped, self.jumps)

    def replay(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves) -> StepAttempt:
        """The same step from other (attached) inputs."""
        with p.f.with_random_states(self.random_states.get("step")):
            step = p.method.step(StepInput(self.field(p, time0, time1), time0, time1, y, carry))
        return self.as_attempt(p, time0, time1, y, carry, step)

    def as_attempt(self, p: Problem, time0: Tensor, time1: Tensor, y: Leaves, carry: Leaves, step: Step) -> StepAttempt:
        """The attempt with this `step`, which was replayed already."""
        ends = (self.t0, self.t1, time0, time1)
        decisions = (self.accept, self.hit, self.stop, self.jumped, self.jumps)
        return StepAttempt(p, *ends, y, carry, step, *decisions, random_states=self.random_states)


class StepStore(ABC):
    """Stores of each accepted step what a backward pass needs beside the tape step."""

    @abstractmethod
    def store(self, n: int, attempt: StepAttempt) -> None:
        """Step n was accepted, by all samples or by some. `attempt.graph`: its graph, where one was asked for."""


class GraphStore(StepStore):
    """A store of steps recorded by autograd."""

    @abstractmethod
    def wants_graph(self, p: Problem) -> bool:
        """Whether autograd is to record the next step."""

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        """The context in which a step is recorded."""
        return nullcontext()

    def recovers_from(self, error: RuntimeError) -> bool:
        """True if the step failed because of how it was recorded, and the store records it in another way now."""
        return False

    def graph_inputs(self, s: State) -> tuple[Leaves, Leaves]:
        """y and carry that the step from s is attached to: new leaves of a graph."""
        return as_graph_inputs(s.y), as_graph_inputs(s.carry)


@final
class Tape(Observer):
    """Records every accepted step as a `TapeStep`, and shows it to the stores. Observes after its recorder.

    store, graphs: what else is stored of each step. leaf_times: recorded steps are differentiable with respect to their
    ends too. graph_dropped: the last graph was discarded, as a rejected sample had non-finite values in it.
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
        """`try_step` of the loop, recorded by autograd where a graph is wanted."""
        states, calls = p.f.random_states() if p.f.random else None, p.f.calls
        try:
            attempt, decision = self._try_step(p, tracker, s)
        except RuntimeError as error:
            if self.graphs is None or not self.graphs.recovers_from(error):
                raise
            p.f.calls = calls
            p.f.set_random_states(states)
            attempt, decision = self._try_step(p, tracker, s)
        if p.f.random:
            attempt.random_states["step"] = states or p.f.initial_random_states
        return attempt, decision

    def _try_step(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
        if self.graphs is None or not self.graphs.wants_graph(p):
            return try_step(p, tracker, s)
        tracker.leaf_times = self.leaf_times
        with torch.enable_grad(), self.graphs.recording(p):
            # where the ends of steps are leaves, each belongs to the graph of one step, so steps cannot be chained
            alone = self.leaf_times
            y, carry = (as_graph_inputs(s.y), as_graph_inputs(s.carry)) if alone else self.graphs.graph_inputs(s)
            time = s.time.detach().requires_grad_() if alone else s.time
            attempt, decision = try_step(p, tracker, s._replace(y=y, carry=carry, time=time))
        tracker.leaf_times = False
        graph = attempt.step
        y1, carry1 = constants(graph.y), constants(graph.carry)
        attempt.graph, attempt.step = graph, graph._replace(y=y1, carry=carry1)
        return attempt, decision

    def observe(self, attempt: StepAttempt) -> None:
        p, accept, graph = attempt.problem, attempt.accept, attempt.graph
        if not any_true(accept):
            return
        t1, jumps = where(accept, attempt.t1, attempt.t0), attempt.jumps is not False and attempt.jumps & accept
        # the graph of a rejected sample gets a cotangent of zero, which is NaN where a value is not finite
        self.graph_dropped = (
            graph is not None
            and isinstance(accept, Tensor)
            and has_nonfinite(attempt, ~accept & (attempt.t1 != attempt.t0))
        )
        if self.graph_dropped:
            attempt.graph = None
        for store in self.stores:
            store.store(len(self.steps), attempt)
        decisions = (accept, attempt.hit, attempt.stop, attempt.jumped, jumps)
        step = TapeStep(attempt.t0, t1, *decisions, self.recorder.last_outputs, p, attempt.random_states)
        if isinstance(accept, Tensor) and p.batched and attempt.graph is None and p.compact:
            rows = accept.nonzero()[:, 0]
            if should_compact(len(accept), len(rows), p.compaction_threshold) and p.f.supports_subset():
                step.rows = rows
        self.steps.append(step)
