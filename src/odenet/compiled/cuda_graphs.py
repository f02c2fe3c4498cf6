"""A block of turns as one CUDA graph: one launch in place of one for each kernel of each turn.

A graph reads and writes the memory that it was captured with. So it has memory of its own for all that a turn reads
and writes; what a solve hands in is copied there before, and what it has taken down is copied out after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

BYTES = 2**24  # of all that is handed in: more takes longer to copy, and has kernels that are longer than a launch

Turn = Callable[[list[Tensor]], list[Tensor]]


def pays(tensors: Sequence[Tensor]) -> bool:
    """Whether turns on these are launched faster as a graph."""
    on_gpu = all(x.device.type == "cuda" for x in tensors)
    return on_gpu and sum(x.numel() * x.element_size() for x in tensors) <= BYTES


def captured(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Does the work's launches again, in one."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # once before: libraries set themselves up at their first call
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            work()
    return graph.replay


class Replays:
    """Graphs of a turn by their number of turns, over memory that they share."""

    def __init__(self, turn: Turn, written: Sequence[int]) -> None:
        self.turn, self.written = turn, written
        self.carried: list[Tensor] = []
        self.others: list[Tensor] = []
        self.graphs: dict[int, Callable[[], None]] = {}
        self.lock = threading.Lock()

    @contextmanager
    def held(self, carried: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[Replays]:
        """With these in the graphs' memory; at the end, what was written into `others` is in the caller's."""
        with self.lock:
            if not self.carried:
                with torch.inference_mode(False):  # what is made there cannot be written elsewhere
                    self.carried, self.others = ([torch.empty_like(x) for x in xs] for xs in (carried, others))
            given = [*carried, *(x for i, x in enumerate(others) if i not in self.written)]
            mine = [*self.carried, *(x for i, x in enumerate(self.others) if i not in self.written)]
            torch._foreach_copy_(mine, given)  # pyright: ignore  # one launch for all of a kind
            yield self
            for i in self.written:
                others[i].copy_(self.others[i])

    def take(self, turns: int) -> None:
        if turns not in self.graphs:
            before = [x.clone() for x in self.carried]  # capturing takes the turns, too
            self.graphs[turns] = captured(lambda: self._work(turns), self.carried[0].device)
            for mine, x in zip(self.carried, before, strict=True):
                mine.copy_(x)
        self.graphs[turns]()

    def results(self) -> list[Tensor]:
        return [x.clone() for x in self.carried]  # the next solve writes into these

    def _work(self, turns: int) -> None:
        carried = self.carried
        for _ in range(turns):
            carried = self.turn([*carried, *self.others])
        for mine, x in zip(self.carried, carried, strict=True):
            mine.copy_(x)
