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
from .checkpoint_schedule import OnlineSchedule, split
from .graph_size import GraphSize, saved
from .memory_budget import nbytes
from .step_graph import StepGraph

Forwards = Callable[[int, Start], Start]  # step n from its start, no graph
Restart = Callable[[int, Leaves], Leaves]  # the carry of step n from its y

# Steps attached to one another, at most: PyTorch frees a chain of graphs by recursion, and a stack is not endless.
LONGEST_CHAIN = 64
# Graphs of steps are kept up to this many bytes in all.
GRAPH_BYTES = 256 * 2**20
BLOCK_BYTES = 32 * 2**20  # of states that are put side by side


class StateStore(StepStore):
    """Gives the starts of the steps back in reverse order."""

    @abstractmethod
    def start(self, n: int, forwards: Forwards, restart: Restart) -> Start:
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
        self.left = GRAPH_BYTES
        self.marker = graph_marker()
        self.attempts: dict[int, StepAttempt] = {}
        self.joined: set[int] = set()  # steps attached to the one before
        self.length = 0  # of the last steps that are attached to one another
        self.last: StepAttempt | None = None  # the last step, where its graph is kept
        self.size: int | None = None
        self.asked = True
        self.weighed: GraphSize | None = None
        self.hooks = True  # a step is weighed by hooks for what autograd saves
        self.first: tuple[Tensor, Leaves, Leaves] | None = None  # t, y, and the carry at ts[0] where f gives it

    def keep_first(self, p: Problem, by_time: bool, asked: bool) -> None:
        """Keep the graph of the evaluation at ts[0] as well, where that is the carry there.

        asked: for a gradient with respect to something that f is given.
        """
        self.asked = asked

        def keep(t: Tensor, y: Leaves, slope: Leaves) -> None:
            self.first = t, y, slope

        if p.method.carry_is_slope:
            p.f.on_first_call, p.f.by_time = keep, by_time

    def wants_graph(self, p: Problem) -> bool:
        captured = p.f.captured
        if not self.asked and p.f.checked and captured is not None and not (captured.watching or captured.tensors):
            return False  # nothing that the solve uses asks for a gradient
        return self.left > 0 if self.size is None else self.size <= self.left

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        if self.size is not None:
            return nullcontext()
        self.weighed = GraphSize()
        return self.weighed if self.hooks else nullcontext()

    def recovers_from(self, error: RuntimeError) -> bool:
        if leaves_autograd(error) and not self.asked:
            self.left, self.size = 0, None  # f leaves PyTorch, and nobody asks for a gradient through it
            return True
        if self.weighed is None or not self.hooks or "saved tensor hooks" not in str(error):
            return False
        self.hooks = False
        return True

    def graph_inputs(self, s: State) -> Start:
        last = self.last if self.length < LONGEST_CHAIN else None
        if last is None or last.graph is None or s.y is not last.step.y or s.carry is not last.step.carry:
            return super().graph_inputs(s)
        return last.graph.y, last.graph.carry

    def store(self, n: int, attempt: StepAttempt) -> None:
        before, self.last = self.last, None
        if attempt.graph is None:
            return
        if self.weighed is not None:
            for leaves in (attempt.y + attempt.carry + attempt.graph.y + attempt.graph.carry, *attempt.graph.stages):
                self.weighed.add(leaves)
            if not self.hooks:
                self.weighed.add(saved((*attempt.graph.y, *attempt.graph.carry), self.marker))
            f = attempt.problem.f
            known = (*f.differentiable_args, *(f.captured.tensors if f.captured else ()))
            self.size, self.weighed = self.weighed.bytes_beside(known), None
            if self.size > self.left:
                self.first = None
        assert self.size is not None
        if self.size <= self.left:
            self.left -= self.size
            attempt.step_input = None  # its cache is not to be kept
            self.attempts[n] = self.last = attempt
            attached = before is not None and before.graph is not None and attempt.y is before.graph.y
            self.length = self.length + 1 if attached else 1
            if attached:
                self.joined.add(n)

    def take(self, n: int) -> list[StepGraph]:
        """Step n, and the steps before it that it is attached to, the last first; empty where it has no graph."""
        chain: list[StepGraph] = []
        self.last = None
        while (attempt := self.attempts.pop(n, None)) is not None and attempt.graph is not None:
            attempt.step, attempt.graph = attempt.graph, None
            chain.append(StepGraph(attempt, attempt.step.carry))
            if n not in self.joined:
                break
            n -= 1
        return chain

    def seen_by(self, captured: CapturedTensors | None, chain: Sequence[StepGraph], args: Leaves, seen: Nodes) -> None:
        """The check of what f closes over, for kept steps: their nodes are of the thread of the forward pass."""
        if captured is None:
            return
        made: list[Tensor] = []
        inputs = list(args)
        for local in chain:
            attempt, step = local.attempt, local.attempt.step
            inputs += (*attempt.y, *attempt.carry, attempt.time0, attempt.time1)
            made += (x for leaves in (step.y, local.carry1, *step.stages, *attempt.known_polynomial) for x in leaves)
        captured.collect(made, inputs, self.marker, seen)


@final
class AllStates(StateStore):
    """The start of every step."""

    def __init__(self) -> None:
        self.starts: list[Start] = []

    def store(self, n: int, attempt: StepAttempt) -> None:
        self.starts.append((constants(attempt.y), constants(attempt.carry)))

    def start(self, n: int, forwards: Forwards, restart: Restart) -> Start:
        return self.starts[n]


class StateBuffer:
    """Room for at most `places` copies of a state, side by side in large blocks.

    Side by side, since what is kept for long among what comes and goes would leave holes that nothing fits into.
    """

    def __init__(self, places: int) -> None:
        self.left = places
        self.free: list[Leaves] = []

    def put(self, leaves: Leaves) -> tuple[Leaves, Leaves]:
        """The copy, and its place; of fewer samples than the first ones it is a part of that."""
        if not self.free:
            # a pass that was interrupted may have lost a place: there is one more then
            more = max(1, min(self.left, BLOCK_BYTES // max(1, nbytes(leaves))))
            blocks = [x.new_empty((more, *x.shape)) for x in leaves]
            self.free = [tuple(block[i] for block in blocks) for i in range(more)]
            self.left -= more
        place = self.free.pop()
        copy = tuple(to if to.shape == x.shape else to[: len(x)] for to, x in zip(place, leaves, strict=True))
        for to, x in zip(copy, leaves, strict=True):
            to.copy_(x.detach())  # a slope of an f that turns gradients on has a graph
        return copy, place


@final
class Checkpoints(StateStore):
    """At most `slots` states (that at ts[0] is one); a start between two of them comes from taking the steps again."""

    def __init__(self, slots: int, method_carries: bool) -> None:
        self.slots, self.method_carries = slots, method_carries
        self.shelf = StateBuffer(slots)
        self.schedule = OnlineSchedule(slots)
        self.held: dict[int, tuple[Start, Leaves]] = {}  # and their places on the shelf

    @staticmethod
    def at_start(slots: int, p: Problem, entries: list[TapeStep]) -> Checkpoints:
        """With the initial state alone, for a method whose carry does not depend on f."""
        states = Checkpoints(slots, method_carries=True)
        start = p.y0, p.method.init(p.f, p.ts[..., 0], p.y0)
        states._hold(0, *take_start(start, ALL, entries[0].problem.samples))
        return states

    def store(self, n: int, attempt: StepAttempt) -> None:
        wanted, dropped = self.schedule.offer(n)
        if dropped is not None:
            self._drop(dropped)
        self.method_carries = self.method_carries or attempt.problem.f.random  # it would be evaluated to other numbers
        if wanted:
            self._hold(n, attempt.y, attempt.carry)

    def _hold(self, n: int, y: Leaves, carry: Leaves) -> None:
        kept, place = self.shelf.put((*y, *(carry if self.method_carries else ())))
        self.held[n] = (kept[: len(y)], kept[len(y) :]), place

    def _drop(self, n: int) -> None:
        self.shelf.free.append(self.held.pop(n)[1])

    def start(self, n: int, forwards: Forwards, restart: Restart) -> Start:
        stack = sorted(self.held)  # few, and right whatever pass was interrupted before
        while stack[-1] > n:
            self._drop(stack.pop())
        at = stack[-1]
        y, carry = self.held[at][0]
        carry = carry if self.method_carries else restart(at, y)
        while at < n:
            # steps at..n are still to be reversed; `at` has one of the slots that are left to them
            slots = self.slots - len(stack) + 1
            target = n if slots == 1 else at + split(n + 1 - at, slots)
            for k in range(at, target):
                y, carry = forwards(k, (y, carry))
            at = target
            if at < n:
                self._hold(at, y, carry)
                stack.append(at)
        return y, carry
