"""The initial states of steps for a backward pass: all of them, or K checkpoints with replay in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

from torch import Tensor

from ..core.capture import CapturedTensors, NodeSet, graph_marker
from ..core.leaf_function import bypasses_autograd
from ..core.leaves import Leaves, constants
from ..engine.batch_index import ALL
from ..engine.one_sided import initial_carry
from ..engine.problem import Problem
from ..engine.step_attempt import State, StepAttempt
from ..engine.tape import GraphStore, StepStore, TapeStep
from .batch_segments import Start, take_start
from .checkpoint_schedule import OnlineSchedule, first_checkpoint
from .graph_size import GraphSize, saved_tensors
from .memory_budget import nbytes
from .step_graph import StepGraph

AdvanceStep = Callable[[int, Start], Start]  # (n, start of step n) -> start of step n + 1, without a graph
RestartCarry = Callable[[int, Leaves], Leaves]  # (n, y before step n) -> carry before step n

# PyTorch frees a chain of graphs recursively, and the C stack is finite.
MAX_CHAIN = 64
# Total bytes of stored step graphs.
GRAPH_BYTES = 256 * 2**20
BLOCK_BYTES = 32 * 2**20  # bytes of states allocated as one block


class StateStore(StepStore):
    """Stores the initial states of steps and returns them in reverse order."""

    @abstractmethod
    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        """The initial state of step n."""


@final
class StepGraphs(GraphStore):
    """Stores the graphs of the first steps, up to GRAPH_BYTES; these steps need no replay.

    Consecutive steps of a joint solve stay attached to one another, so one call of autograd differentiates a chain of
    them. Per-sample steps, which some samples may reject, and steps whose end is a leaf have separate graphs. A graph
    is used once and freed: a second backward pass over the same solution replays all steps.

    marker: graph marker from before the first step; all nodes of the graphs are later.
    """

    def __init__(self) -> None:
        self.bytes_left = GRAPH_BYTES
        self.marker = graph_marker()
        self.attempts: dict[int, StepAttempt] = {}
        self.attached_to_previous: set[int] = set()  # numbers of steps attached to the previous step
        self.chain_length = 0  # length of the current chain
        self.last: StepAttempt | None = None  # the last step, if its graph is stored
        self.step_bytes: int | None = None
        self.grad_needed = True
        self.measuring: GraphSize | None = None
        self.use_hooks = True  # measure a step by saved-tensor hooks
        self.first_evaluation: tuple[Tensor, Leaves, Leaves] | None = (
            None  # t, y, and the carry at ts[0] if that is a slope
        )

    def record_first_evaluation(self, p: Problem, by_time: bool, grad_needed: bool) -> None:
        """Also store the graph of f at ts[0], if the initial carry is that slope.

        by_time: True if the time needs a gradient.
        grad_needed: True if y0, ts or an arg requires a gradient.
        """
        self.grad_needed = grad_needed

        def keep(t: Tensor, y: Leaves, slope: Leaves) -> None:
            self.first_evaluation = t, y, slope

        if p.method.carry_is_slope:
            p.f.on_first_call, p.f.needs_time_derivative = keep, by_time

    def wants_graph(self, p: Problem) -> bool:
        captured = p.f.captured
        if (
            not self.grad_needed
            and p.f.checked
            and captured is not None
            and not (captured.watching or captured.tensors)
        ):
            return False  # nothing that the solve uses requires a gradient
        return self.bytes_left > 0 if self.step_bytes is None else self.step_bytes <= self.bytes_left

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        if self.step_bytes is not None:
            return nullcontext()
        self.measuring = GraphSize()
        return self.measuring if self.use_hooks else nullcontext()

    def recovers_from(self, error: RuntimeError) -> bool:
        if bypasses_autograd(error) and not self.grad_needed:
            self.bytes_left, self.step_bytes = 0, None  # f leaves PyTorch, and no gradient through it is needed
            return True
        if self.measuring is None or not self.use_hooks or "saved tensor hooks" not in str(error):
            return False
        self.use_hooks = False
        return True

    def graph_inputs(self, s: State) -> Start:
        last = self.last if self.chain_length < MAX_CHAIN else None
        if last is None or last.graph is None or s.y is not last.step.y or s.carry is not last.step.carry:
            return super().graph_inputs(s)
        return last.graph.y, last.graph.carry

    def store(self, n: int, attempt: StepAttempt) -> None:
        previous, self.last = self.last, None
        if attempt.graph is None:
            return
        if self.measuring is not None:
            for leaves in (attempt.y + attempt.carry + attempt.graph.y + attempt.graph.carry, *attempt.graph.stages):
                self.measuring.add(leaves)
            if not self.use_hooks:
                self.measuring.add(saved_tensors((*attempt.graph.y, *attempt.graph.carry), self.marker))
            f = attempt.problem.f
            known = (*f.differentiable_args, *(f.captured.tensors if f.captured else ()))
            self.step_bytes, self.measuring = self.measuring.bytes_without(known), None
            if self.step_bytes > self.bytes_left:
                self.first_evaluation = None
        assert self.step_bytes is not None
        if self.step_bytes <= self.bytes_left:
            self.bytes_left -= self.step_bytes
            attempt.step_input = None  # the method's cache is not needed again
            self.attempts[n] = self.last = attempt
            attached = previous is not None and previous.graph is not None and attempt.y is previous.graph.y
            self.chain_length = self.chain_length + 1 if attached else 1
            if attached:
                self.attached_to_previous.add(n)

    def pop_chain(self, n: int) -> list[StepGraph]:
        """The graphs of step n and of the earlier steps attached to it, last step first; [] if step n has none."""
        chain: list[StepGraph] = []
        self.last = None
        while (attempt := self.attempts.pop(n, None)) is not None and attempt.graph is not None:
            attempt.step, attempt.graph = attempt.graph, None
            chain.append(StepGraph(attempt, attempt.step.carry))
            if n not in self.attached_to_previous:
                break
            n -= 1
        return chain

    def check_captured(
        self, captured: CapturedTensors | None, chain: Sequence[StepGraph], args: Leaves, seen: NodeSet
    ) -> None:
        """Check the captured tensors of stored steps, whose nodes belong to the thread of the forward pass."""
        if captured is None:
            return
        outputs: list[Tensor] = []
        inputs = list(args)
        for graph in chain:
            attempt, step = graph.attempt, graph.attempt.step
            inputs += (*attempt.y, *attempt.carry, attempt.time0, attempt.time1)
            outputs += (x for leaves in (step.y, graph.carry1, *step.stages, *attempt.known_polynomial) for x in leaves)
        captured.collect(outputs, inputs, self.marker, seen)


@final
class AllStates(StateStore):
    """Stores the initial state of every step."""

    def __init__(self) -> None:
        self.starts: list[Start] = []

    def store(self, n: int, attempt: StepAttempt) -> None:
        self.starts.append((constants(attempt.y), constants(attempt.carry)))

    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        return self.starts[n]


class StateBuffer:
    """Memory for at most `capacity` copies of a state, allocated in large blocks.

    Blocks avoid fragmentation: long-lived states between short-lived ones would leave holes too small to use.
    """

    def __init__(self, capacity: int) -> None:
        self.unallocated = capacity
        self.free: list[Leaves] = []

    def store(self, leaves: Leaves) -> tuple[Leaves, Leaves]:
        """Copy the leaves; returns the copy and its slot.

        With fewer samples than at first, the copy is a part of the slot.
        """
        if not self.free:
            # an interrupted backward pass may have lost a slot: allocate one more then
            count = max(1, min(self.unallocated, BLOCK_BYTES // max(1, nbytes(leaves))))
            blocks = [x.new_empty((count, *x.shape)) for x in leaves]
            self.free = [tuple(block[i] for block in blocks) for i in range(count)]
            self.unallocated -= count
        slot = self.free.pop()
        copy = tuple(
            target if target.shape == x.shape else target[: len(x)] for target, x in zip(slot, leaves, strict=True)
        )
        for target, x in zip(copy, leaves, strict=True):
            target.copy_(x.detach())  # an f that enables grad returns a slope with a graph
        return copy, slot


@final
class Checkpoints(StateStore):
    """Stores at most `slots` states, the initial one included; replays steps to reach any other state.

    stores_carry: store the carry too; else it is recomputed from y.
    """

    def __init__(self, slots: int, stores_carry: bool) -> None:
        self.slots, self.stores_carry = slots, stores_carry
        self.buffer = StateBuffer(slots)
        self.schedule = OnlineSchedule(slots)
        self.stored: dict[int, tuple[Start, Leaves]] = {}  # by step: the state, and its slot in the buffer

    @staticmethod
    def initial_state_only(slots: int, p: Problem, entries: list[TapeStep]) -> Checkpoints:
        """Checkpoints with the initial state alone, for a method whose initial carry does not depend on f."""
        states = Checkpoints(slots, stores_carry=True)
        start = p.y0, initial_carry(p, p.ts[..., 0], p.y0)
        states._store_copy(0, *take_start(start, ALL, entries[0].problem.samples))
        return states

    def store(self, n: int, attempt: StepAttempt) -> None:
        store, discarded = self.schedule.offer(n)
        if discarded is not None:
            self._discard(discarded)
        # f would draw different numbers when evaluated again
        self.stores_carry = self.stores_carry or attempt.problem.f.random
        if store:
            self._store_copy(n, attempt.y, attempt.carry)

    def _store_copy(self, n: int, y: Leaves, carry: Leaves) -> None:
        copies, slot = self.buffer.store((*y, *(carry if self.stores_carry else ())))
        self.stored[n] = (copies[: len(y)], copies[len(y) :]), slot

    def _discard(self, n: int) -> None:
        self.buffer.free.append(self.stored.pop(n)[1])

    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        stack = sorted(self.stored)  # sorted anew, as an earlier pass may have been interrupted
        while stack[-1] > n:
            self._discard(stack.pop())
        position = stack[-1]
        y, carry = self.stored[position][0]
        carry = carry if self.stores_carry else restart(position, y)
        while position < n:
            # steps position..n are still to be reversed; `position` uses one of their slots
            slots = self.slots - len(stack) + 1
            target = n if slots == 1 else position + first_checkpoint(n + 1 - position, slots)
            for k in range(position, target):
                y, carry = advance(k, (y, carry))
            position = target
            if position < n:
                self._store_copy(position, y, carry)
                stack.append(position)
        return y, carry
