"""A block of iterations as one CUDA graph: one launch in place of one for each kernel.

A graph reads and writes the memory that it was captured with. The tensors of a solve are copied into that memory
before, and the tape is copied out after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .torch_private import foreach_copy

MAX_BYTES = 2**24  # of all inputs: more takes longer to copy, and has kernels that take longer than a launch

Iteration = Callable[[list[Tensor]], list[Tensor]]
"""(carried, invariants) -> carried."""


def worth_capturing(tensors: Sequence[Tensor]) -> bool:
    """Whether iterations on these tensors are launched faster as a graph."""
    on_gpu = all(x.device.type == "cuda" for x in tensors)
    return on_gpu and sum(x.numel() * x.element_size() for x in tensors) <= MAX_BYTES


def capture_cuda_graph(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that repeats the launches of `work` in one launch."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # libraries initialise themselves in their first call
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            work()
    return graph.replay


class GraphedLoop:
    """CUDA graphs by their number of iterations, over shared memory. written: numbers of invariants that change."""

    def __init__(self, body: Iteration, written: Sequence[int]) -> None:
        self.body, self.written = body, written
        self.carried: list[Tensor] = []
        self.invariants: list[Tensor] = []
        self.graphs: dict[int, Callable[[], None]] = {}
        self.lock = threading.Lock()

    @contextmanager
    def loaded(self, carried: Sequence[Tensor], invariants: Sequence[Tensor]) -> Generator[GraphedLoop]:
        """Copy the tensors into the graphs' memory; at the end, copy what was written to `invariants`."""
        with self.lock:
            if not self.carried:
                with torch.inference_mode(False):  # inference tensors cannot be written elsewhere
                    self.carried, self.invariants = ([torch.empty_like(x) for x in xs] for xs in (carried, invariants))
            sources = [*carried, *(x for i, x in enumerate(invariants) if i not in self.written)]
            targets = [*self.carried, *(x for i, x in enumerate(self.invariants) if i not in self.written)]
            foreach_copy(targets, sources)
            yield self
            for i in self.written:
                invariants[i].copy_(self.invariants[i])

    def advance(self, iterations: int) -> None:
        if iterations not in self.graphs:
            before = [x.clone() for x in self.carried]  # a capture runs the iterations, too
            self.graphs[iterations] = capture_cuda_graph(lambda: self._iterate(iterations), self.carried[0].device)
            for target, x in zip(self.carried, before, strict=True):
                target.copy_(x)
        self.graphs[iterations]()

    def results(self) -> list[Tensor]:
        return [x.clone() for x in self.carried]  # the next solve overwrites these

    def _iterate(self, iterations: int) -> None:
        carried = self.carried
        for _ in range(iterations):
            carried = self.body([*carried, *self.invariants])
        for target, x in zip(self.carried, carried, strict=True):
            target.copy_(x)
