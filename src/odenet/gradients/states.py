"""What a sweep over the accepted steps starts each of them from: every state, or K of them and the steps between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import final

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..core.capture import graph_marker
from ..core.leaves import Leaves
from ..engine.advance import Move
from ..engine.problem import Problem
from ..engine.schedule import OnlineSchedule, split
from ..engine.tape import Keeper

Start = tuple[Leaves, Leaves]  # y and the carry
Forwards = Callable[[int, Start], Start]  # step n from its start, no graph
Restart = Callable[[int, Leaves], Leaves]  # the carry of step n from its y

# Graphs of steps are kept up to this many bytes in all; a step whose graph is there need not be taken again.
GRAPH_BYTES = 64 * 2**20


class States(Keeper):
    """Gives the starts of the steps back in reverse order.

    marker: taken before the first step, so that nodes of the graphs that are kept come after it.
    """

    def __init__(self) -> None:
        self.marker = graph_marker()

    @abstractmethod
    def start(self, n: int, forwards: Forwards, restart: Restart) -> tuple[Start, Move | None]:
        """The start of step n, and its move where its graph was kept."""


@final
class EveryState(States):
    """The start of every step, and the graphs of the first ones, as long as they are few bytes.

    A graph that is there saves taking the step again; it is used once and dropped. A second backward pass over the same
    solution takes all steps again.
    """

    def __init__(self, budget: int | None = None) -> None:
        super().__init__()
        self.starts: list[Start] = []
        self.moves: list[Move | None] = []
        self.left = GRAPH_BYTES if budget is None else budget
        self.size: int | None = None
        self.weighed: Weighed | None = None

    def wants_graph(self) -> bool:
        return self.left > 0 and (self.size is None or self.size <= self.left)

    def recording(self, p: Problem) -> AbstractContextManager[object]:
        if self.size is not None:
            return nullcontext()
        captured = p.f.captured.tensors.values() if p.f.captured else ()
        self.weighed = Weighed((*p.f.differentiable_args, *captured))
        return self.weighed

    def keep(self, n: int, move: Move) -> None:
        self.starts.append((tuple(x.detach() for x in move.y), tuple(x.detach() for x in move.carry)))
        if move.graph is None:
            self.moves.append(None)
            return
        if self.weighed is not None:
            self.size, self.weighed = max(1, self.weighed.bytes), None
        assert self.size is not None
        self.left -= self.size
        self.moves.append(move if self.left >= 0 else None)

    def start(self, n: int, forwards: Forwards, restart: Restart) -> tuple[Start, Move | None]:
        move, self.moves[n] = self.moves[n], None
        return self.starts[n], move


class Weighed(saved_tensors_hooks):
    """Adds up the bytes that autograd saves inside, but for tensors that are there anyway."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.bytes = 0
        self._seen = {x.untyped_storage().data_ptr() for x in known}
        super().__init__(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return x


@final
class Checkpoints(States):
    """At most `slots` states (that at ts[0] is one); a start between two of them comes from taking the steps again."""

    def __init__(self, slots: int, method_carries: bool) -> None:
        super().__init__()
        self.slots, self.method_carries = slots, method_carries
        self.schedule = OnlineSchedule(slots)
        self.held: dict[int, Start] = {}
        self.stack: list[int] | None = None  # the positions held, once the reversal has begun

    def keep(self, n: int, move: Move) -> None:
        wanted, dropped = self.schedule.offer(n)
        if dropped is not None:
            del self.held[dropped]
        if wanted:
            self.held[n] = self._kept(move.y, move.carry)

    def _kept(self, y: Leaves, carry: Leaves) -> Start:
        return y, carry if self.method_carries else ()

    def start(self, n: int, forwards: Forwards, restart: Restart) -> tuple[Start, Move | None]:
        stack = self.stack = sorted(self.held) if self.stack is None else self.stack
        while stack[-1] > n:
            del self.held[stack.pop()]
        at = stack[-1]
        y, carry = self.held[at]
        carry = carry if self.method_carries else restart(at, y)
        while at < n:
            # steps at..n are still to be reversed; `at` has one of the slots that are left to them
            slots = self.slots - len(stack) + 1
            target = n if slots == 1 else at + split(n + 1 - at, slots)
            for k in range(at, target):
                y, carry = forwards(k, (y, carry))
            at = target
            if at < n:
                self.held[at] = self._kept(y, carry)
                stack.append(at)
        return (y, carry), None
