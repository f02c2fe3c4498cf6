"""Runs a loop in blocks of turns, on a device that works through a queue: nothing is waited for inside a block.

The loop operator asks the host before every turn whether to go on, and a GPU then waits for the host. Here the body is
compiled by itself and put into the queue for several turns at a time; a turn after the end changes nothing. What small
kernels cost to launch is saved by replaying a block as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .cuda_graphs import Replays, Turn, pays
from .graph_recording import Recorded, looks, outputs_of
from .passes.graph_editor import Editor

aten = torch.ops.aten

TURNS = 8  # in a block: what is put into the queue past the end is less than this

Compiler = Callable[[GraphModule, Sequence[Tensor], Any], Turn]


class Blocks:
    """A recorded loop, its three graphs compiled apart: before the loop, a turn, after it.

    The first of what the loop carries says whether it goes on, unless the number of turns is known beforehand.
    """

    def __init__(self, recorded: Recorded, compiler: Compiler) -> None:
        turn, self.at = recorded.turn, recorded.carried
        given = turn.graph.find_nodes(op="placeholder")[self.at :]
        for place in given:
            place.meta["val"] = torch.empty_like(place.meta["val"])  # without gaps
        turn = turn if recorded.counted else guarded(turn, recorded.mode)
        puts = turn.graph.find_nodes(op="call_function", target=aten.index_put_.default)
        written = [given.index(n.args[0]) for n in puts]  # numbers of what the turn writes into

        def made(part: GraphModule) -> Turn:
            return compiler(part, looks(part), recorded.mode)

        self.strides = [x.stride() for x in looks(turn)]
        self.before, self.turn = made(recorded.begin), made(turn)
        self.after = None if recorded.end is None else made(recorded.end)
        self.replays = Replays(self.turn, written)

    def run(self, tensors: list[Tensor], turns: int | None = None) -> list[Tensor]:
        """turns: how many, where that is known; else there is one look at a value a block."""
        made = self.before(list(tensors))
        carried, given = made[: self.at], made[self.at :]
        carried, others = laid_out(carried, self.strides), laid_out(given, self.strides[self.at :])
        for i in self.replays.written:
            others[i] = given[i]  # what is written there is for the caller
        replayed = pays([*carried, *others])
        with self.replays.held(carried, others) if replayed else nullcontext(_Plain(self, carried, others)) as block:
            if turns is None:
                block.take(TURNS)
                while bool(block.carried[0]):
                    block.take(TURNS)
            else:
                for count in [TURNS] * (turns // TURNS) + [1] * (turns % TURNS):
                    block.take(count)
            return block.results() if self.after is None else self.after([*block.results(), *tensors])


class _Plain:
    """Turns put into the queue one after another."""

    def __init__(self, blocks: Blocks, carried: list[Tensor], others: list[Tensor]) -> None:
        self.blocks, self.carried, self.others = blocks, carried, others

    def take(self, turns: int) -> None:
        for _ in range(turns):
            self.carried = laid_out(self.blocks.turn([*self.carried, *self.others]), self.blocks.strides)

    def results(self) -> list[Tensor]:
        return self.carried


def laid_out(tensors: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors as a turn was compiled for them: Inductor gives what it computes the strides that it likes."""
    return [
        x if x.stride() == s else torch.empty_strided(x.shape, s, dtype=x.dtype, device=x.device).copy_(x)
        for x, s in zip(tensors, strides, strict=False)
    ]


def guarded(turn: GraphModule, mode: Any) -> GraphModule:
    """A turn that changes nothing, neither what is carried nor a row of a tape, where the first of it says no."""
    graph, edit = turn.graph, Editor(turn.graph, mode)
    places, output = graph.find_nodes(op="placeholder"), graph.output_node()
    for node in graph.find_nodes(op="call_function", target=aten.index_put_.default):
        tape, (row,), value = node.args
        with graph.inserting_before(node):
            inside = edit(aten.mul.Tensor, row, places[0])  # a full tape has no row where the next would be
            old = edit(aten.index.Tensor, tape, [inside])
            value = edit(aten.where.self, places[0], value, old)
        node.args = (tape, [inside], value)
    with graph.inserting_before(output):
        kept = [edit(aten.where.self, places[0], new, old) for new, old in zip(outputs_of(turn), places, strict=False)]
    output.args = (tuple(kept),)
    turn.recompile()
    return turn
