"""Runs a loop in blocks of iterations, on a device with a queue of kernels: no block waits for the device.

PyTorch's loop operator asks the host before every iteration whether to go on, and a GPU then waits for the host. Here
the body is compiled by itself and queued for several iterations at a time; an iteration after the end changes nothing.
A block is replayed as one CUDA graph, which saves the launches of small kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .cuda_graphs import GraphedLoop, Iteration, worth_capturing
from .graph_recording import RecordedLoop, input_fakes, output_nodes
from .passes.graph_editor import GraphEditor

aten = torch.ops.aten

ITERATIONS = 8  # of a block; fewer than this are queued after the end

Compiler = Callable[[GraphModule, Sequence[Tensor], Any], Iteration]


class LoopBlocks:
    """A recorded loop with its three graphs compiled separately: before the loop, an iteration, after the loop.

    The first tensor that the loop carries tells whether it goes on, unless the number of iterations is known.
    """

    def __init__(self, recorded: RecordedLoop, compiler: Compiler) -> None:
        body, self.carried = recorded.body, recorded.carried
        invariants = body.graph.find_nodes(op="placeholder")[self.carried :]
        for place in invariants:
            place.meta["val"] = torch.empty_like(place.meta["val"])  # contiguous
        body = body if recorded.counted else guard_body(body, recorded.mode)
        puts = body.graph.find_nodes(op="call_function", target=aten.index_put_.default)
        written = [invariants.index(cast(Node, n.args[0])) for n in puts]

        def compiled(part: GraphModule) -> Iteration:
            return compiler(part, input_fakes(part), recorded.mode)

        self.strides = [x.stride() for x in input_fakes(body)]
        self.before, self.body = compiled(recorded.begin), compiled(body)
        self.after = None if recorded.end is None else compiled(recorded.end)
        self.graphed = GraphedLoop(self.body, written)

    def run(self, tensors: list[Tensor], iterations: int | None = None) -> list[Tensor]:
        """iterations: if None, the host reads the go-on flag once a block."""
        begun = self.before(list(tensors))
        carried, given = begun[: self.carried], begun[self.carried :]
        carried, invariants = with_strides(carried, self.strides), with_strides(given, self.strides[self.carried :])
        for i in self.graphed.written:
            invariants[i] = given[i]  # the caller reads what is written there
        graphed = worth_capturing([*carried, *invariants])
        runner = self.graphed.loaded(carried, invariants) if graphed else nullcontext(_Queue(self, carried, invariants))
        with runner as block:
            if iterations is None:
                block.advance(ITERATIONS)
                while bool(block.carried[0]):
                    block.advance(ITERATIONS)
            else:
                for count in [ITERATIONS] * (iterations // ITERATIONS) + [1] * (iterations % ITERATIONS):
                    block.advance(count)
            return block.results() if self.after is None else self.after([*block.results(), *tensors])


class _Queue:
    """Queues one iteration after another."""

    def __init__(self, blocks: LoopBlocks, carried: list[Tensor], invariants: list[Tensor]) -> None:
        self.blocks, self.carried, self.invariants = blocks, carried, invariants

    def advance(self, iterations: int) -> None:
        for _ in range(iterations):
            self.carried = with_strides(self.blocks.body([*self.carried, *self.invariants]), self.blocks.strides)

    def results(self) -> list[Tensor]:
        return self.carried


def with_strides(tensors: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors with the strides that the body was compiled for; Inductor chooses those of its outputs."""
    return [
        x if x.stride() == s else torch.empty_strided(x.shape, s, dtype=x.dtype, device=x.device).copy_(x)
        for x, s in zip(tensors, strides, strict=False)
    ]


def guard_body(body: GraphModule, mode: Any) -> GraphModule:
    """Make an iteration change neither the carried tensors nor a row of a tape if its first input is false."""
    graph, edit = body.graph, GraphEditor(body.graph, mode)
    places, output = graph.find_nodes(op="placeholder"), graph.output_node()
    for node in graph.find_nodes(op="call_function", target=aten.index_put_.default):
        tape, (row,), value = node.args
        with graph.inserting_before(node):
            inside = edit(aten.mul.Tensor, row, places[0])  # a full tape has no next row
            old = edit(aten.index.Tensor, tape, [inside])
            value = edit(aten.where.self, places[0], value, old)
        node.args = (tape, [inside], value)
    with graph.inserting_before(output):
        kept = [
            edit(aten.where.self, places[0], new, old) for new, old in zip(output_nodes(body), places, strict=False)
        ]
    output.args = (tuple(kept),)
    body.recompile()
    return body
