"""What a sweep over the accepted steps starts each of them from: every state, or K of them and the steps between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

from torch import Tensor

from ..core.capture import CapturedTensors, Nodes, graph_marker
from ..core.leaf_function import leaves_autograd
from ..core.leaves import Leaves, constants
from ..engine.batch_index import ALL
from ..engine.problem import Problem
from ..engine.step_attempt import State, StepAttempt
from ..engine.tape import GraphStore, StepStore, TapeStep
from .batch_segments import Start, take_start
from .checkpoint_schedule import OnlineSchedule, first_checkpoint
from .graph_size import GraphSize, saved_tensors
from .memory_budget import nbytes
from .step_graph import StepGraph

AdvanceStep = Callable[[int, Start], Start]  # step n from its start, no graph
RestartCarry = Callable[[int, Leaves], Leaves]  # the carry of step n from its y

# Steps attached to one another, at most: PyTorch frees a chain of graphs by recursion, and a stack is not endless.
MAX_CHAIN = 64
# Graphs of steps are kept up to this many bytes in all.
GRAPH_BYTES = 256 * 2**20
BLOCK_BYTES = 32 * 2**20  # of states that are put side by side


class StateStore(StepStore):
    """Gives the starts of the steps back in reverse order."""

    @abstractmethod
    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        """The start of step n."""


@final
class StepGraphs(GraphStore):
    """Keeps the graphs of the first steps up to GRAPH_BYTES; such a step need not be taken again.

    Steps of a joint solve that follow one another stay attached: one call of autograd then pulls through all of them.
    With lanes, some of which may not have taken a step, and where a step's end is a leaf, each is attached to its own.
    marker: taken before the first step, so that nodes of the graphs come after it. A graph is used once and dropped: a
    second backward pass over the same solution takes all steps again.
    """

    def __init__(self) -> None:
        self.bytes_left = GRAPH_BYTES
        self.marker = graph_marker()
        self.attempts: dict[int, StepAttempt] = {}
        self.attached_to_previous: set[int] = set()  # steps attached to the one before
        self.chain_length = 0  # of the last steps that are attached to one another
        self.last: StepAttempt | None = None  # the last step, where its graph is kept
        self.step_bytes: int | None = None
        self.grad_needed = True
        self.measuring: GraphSize | None = None
        self.use_hooks = True  # a step is weighed by hooks for what autograd saves
        self.first_evaluation: tuple[Tensor, Leaves, Leaves] | None = (
            None  # t, y, and the carry at ts[0] where f gives it
        )

    def record_first_evaluation(self, p: Problem, by_time: bool, grad_needed: bool) -> None:
        """Keep the graph of the evaluation at ts[0] as well, where that is the carry there.

        asked: for a gradient with respect to something that f is given.
        """
        self.grad_needed = grad_needed

        def keep(t: Tensor, y: Leaves, slope: Leaves) -> None:
            self.first_evaluation = t, y, slope

        if p.method.carry_is_slope:
            p.f.on_first_call, p.f.by_time = keep, by_time

    def wants_graph(self, p: Problem) -> bool:
        captured = p.f.captured
        if (
            not self.grad_needed
            and p.f.checked
            and captured is not None
            and not (captured.watching or captured.tensors)
        ):
            return False  # nothing that the solve uses asks for a gradient
        return self.bytes_left > 0 if self.step_bytes is None else self.step_bytes <= self.bytes_left

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        if self.step_bytes is not None:
            return nullcontext()
        self.measuring = GraphSize()
        return self.measuring if self.use_hooks else nullcontext()

    def goes_on_after(self, error: RuntimeError) -> bool:
        if leaves_autograd(error) and not self.grad_needed:
            self.bytes_left, self.step_bytes = 0, None  # f leaves PyTorch, and nobody asks for a gradient through it
            return True
        if self.measuring is None or not self.use_hooks or "saved tensor hooks" not in str(error):
            return False
        self.use_hooks = False
        return True

    def start(self, s: State) -> Start:
        last = self.last if self.chain_length < MAX_CHAIN else None
        if last is None or last.graph is None or s.y is not last.step.y or s.carry is not last.step.carry:
            return super().start(s)
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
            attempt.step_input = None  # its cache is not to be kept
            self.attempts[n] = self.last = attempt
            attached = previous is not None and previous.graph is not None and attempt.y is previous.graph.y
            self.chain_length = self.chain_length + 1 if attached else 1
            if attached:
                self.attached_to_previous.add(n)

    def pop_chain(self, n: int) -> list[StepGraph]:
        """Step n, and the steps before it that it is attached to, the last first; empty where it has no graph."""
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
        self, captured: CapturedTensors | None, chain: Sequence[StepGraph], args: Leaves, seen: Nodes
    ) -> None:
        """The check of what f closes over, for kept steps: their nodes are of the thread of the forward pass."""
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
    """The start of every step."""

    def __init__(self) -> None:
        self.starts: list[Start] = []

    def store(self, n: int, attempt: StepAttempt) -> None:
        self.starts.append((constants(attempt.y), constants(attempt.carry)))

    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        return self.starts[n]


class StateBuffer:
    """Room for at most `capacity` copies of a state, side by side in large blocks.

    Side by side, since what is kept for long among what comes and goes would leave holes that nothing fits into.
    """

    def __init__(self, capacity: int) -> None:
        self.unallocated = capacity
        self.free: list[Leaves] = []

    def store(self, leaves: Leaves) -> tuple[Leaves, Leaves]:
        """The copy, and its place; of fewer samples than the first ones it is a part of that."""
        if not self.free:
            # a pass that was interrupted may have lost a place: there is one more then
            count = max(1, min(self.unallocated, BLOCK_BYTES // max(1, nbytes(leaves))))
            blocks = [x.new_empty((count, *x.shape)) for x in leaves]
            self.free = [tuple(block[i] for block in blocks) for i in range(count)]
            self.unallocated -= count
        slot = self.free.pop()
        copy = tuple(
            target if target.shape == x.shape else target[: len(x)] for target, x in zip(slot, leaves, strict=True)
        )
        for target, x in zip(copy, leaves, strict=True):
            target.copy_(x.detach())  # a slope of an f that turns gradients on has a graph
        return copy, slot


@final
class Checkpoints(StateStore):
    """At most `slots` states (that at ts[0] is one); a start between two of them comes from taking the steps again."""

    def __init__(self, slots: int, stores_carry: bool) -> None:
        self.slots, self.stores_carry = slots, stores_carry
        self.buffer = StateBuffer(slots)
        self.schedule = OnlineSchedule(slots)
        self.stored: dict[int, tuple[Start, Leaves]] = {}  # and their places on the shelf

    @staticmethod
    def initial_state_only(slots: int, p: Problem, entries: list[TapeStep]) -> Checkpoints:
        """With the initial state alone, for a method whose carry does not depend on f."""
        states = Checkpoints(slots, stores_carry=True)
        start = p.y0, p.method.init(p.f, p.ts[..., 0], p.y0)
        states._store_copy(0, *take_start(start, ALL, entries[0].problem.samples))
        return states

    def store(self, n: int, attempt: StepAttempt) -> None:
        wanted, discarded = self.schedule.offer(n)
        if discarded is not None:
            self._discard(discarded)
        self.stores_carry = self.stores_carry or attempt.problem.f.random  # it would be evaluated to other numbers
        if wanted:
            self._store_copy(n, attempt.y, attempt.carry)

    def _store_copy(self, n: int, y: Leaves, carry: Leaves) -> None:
        copies, slot = self.buffer.store((*y, *(carry if self.stores_carry else ())))
        self.stored[n] = (copies[: len(y)], copies[len(y) :]), slot

    def _discard(self, n: int) -> None:
        self.buffer.free.append(self.stored.pop(n)[1])

    def step_start(self, n: int, advance: AdvanceStep, restart: RestartCarry) -> Start:
        stack = sorted(self.stored)  # few, and right whatever pass was interrupted before
        while stack[-1] > n:
            self._discard(stack.pop())
        position = stack[-1]
        y, carry = self.stored[position][0]
        carry = carry if self.stores_carry else restart(position, y)
        while position < n:
            # steps at..n are still to be reversed; `position` has one of the slots that are left to them
            slots = self.slots - len(stack) + 1
            target = n if slots == 1 else position + first_checkpoint(n + 1 - position, slots)
            for k in range(position, target):
                y, carry = advance(k, (y, carry))
            position = target
            if position < n:
                self._store_copy(position, y, carry)
                stack.append(position)
        return y, carry
