"""Runs a loop in blocks of turns, on a device that works through a queue: nothing is waited for inside a block.

The loop operator asks the host before every turn whether to go on, and a GPU then waits for the host. Here the body is
compiled by itself and put into the queue for several turns at a time; a turn after the end changes nothing. What small
kernels cost to launch is saved by replaying a block as one CUDA graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .edit import Editor
from .plan import Recorded, outputs_of
from .replay import Replays, pays

aten = torch.ops.aten

TURNS = 8  # in a block: what is put into the queue past the end is less than this

Run = Callable[[list[Tensor]], list[Tensor]]
Compiler = Callable[[GraphModule, Sequence[Tensor], Any], Run]


class Blocks:
    """A recorded graph with one loop in it, as three compiled ones: before the loop, a turn, after it.

    The first of what the loop carries says whether it goes on, unless the number of turns is known beforehand.
    """

    def __init__(self, recorded: Recorded, compiler: Compiler) -> None:
        before, go, body, after, carried, others = parted(recorded.module)
        self.others, self.at = others, len(carried)
        turn = body if recorded.counted else guarded(body, go, recorded.mode)
        written = tuple(i - self.at for i in written_inputs(turn))
        looks = [[n.meta["val"] for n in part.graph.nodes if n.op == "placeholder"] for part in (before, turn, after)]
        self.strides = [x.stride() for x in looks[1]]
        self.before, self.turn, self.after = (
            compiler(part, fakes, recorded.mode) for part, fakes in zip((before, turn, after), looks, strict=True)
        )
        self.replays = Replays(self.turn, written)

    def run(self, tensors: list[Tensor], turns: int | None = None) -> list[Tensor]:
        """turns: how many, where that is known; else there is one look at a value a block."""
        made = self.before(list(tensors))
        carried, rest = made[: self.at], made[self.at :]
        given = [tensors[i] if i >= 0 else rest[-1 - i] for i in self.others]
        carried, others = laid_out(carried, self.strides), laid_out(given, self.strides[self.at :])
        for i in self.replays.written:
            others[i] = given[i]  # what is written there is for the caller
        replayed = pays([*carried, *others])
        with self.replays.held(carried, others) if replayed else _Plain(self, carried, others) as block:
            if turns is None:
                block.take(TURNS)
                while bool(block.carried[0]):
                    block.take(TURNS)
            else:
                for _ in range(turns // TURNS):
                    block.take(TURNS)
                for _ in range(turns % TURNS):
                    block.take(1)
            return self.after([*tensors, *block.results()])


class _Plain:
    """Turns put into the queue one after another."""

    def __init__(self, blocks: Blocks, carried: list[Tensor], others: list[Tensor]) -> None:
        self.blocks, self.carried, self.others = blocks, carried, others

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None:
        pass

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


def parted(
    whole: GraphModule,
) -> tuple[GraphModule, GraphModule, GraphModule, GraphModule, list[Node], list[int]]:
    """The graphs before the loop, of its condition, of its body and after it; what it carries; where others come from.

    The first one gives what is carried and those of the others that it computes. An other is the input i, or, from -1
    downwards, one of these.
    """
    (loop,) = (n for n in whole.graph.nodes if n.target is torch.ops.higher_order.while_loop)
    go, body = (getattr(whole, str(n.target)) for n in loop.args[:2])
    carried, others = list(loop.args[2]), list(loop.args[3])
    for place, given in zip((n for n in body.graph.nodes if n.op == "placeholder"), (*carried, *others), strict=True):
        # in the order of its axes, as columns may have been made since
        place.meta["val"] = torch.empty_like(given.meta["val"])
    inputs = [n for n in whole.graph.nodes if n.op == "placeholder"]
    computed = [n for n in dict.fromkeys(others) if n.op != "placeholder"]
    where = [inputs.index(n) if n.op == "placeholder" else -1 - computed.index(n) for n in others]
    before = _piece(whole, inputs, [*carried, *computed])
    results = [n for n in loop.users if n.target is operator.getitem]
    results.sort(key=lambda n: n.args[1])
    after = _piece(whole, [*inputs, *results], outputs_of(whole))
    return before, go, body, after, carried, where


def _piece(whole: GraphModule, inputs: Sequence[Node], outputs: Sequence[Node]) -> GraphModule:
    """What computes `outputs` from `inputs`."""
    needed, waiting = set(inputs), list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    graph, known = Graph(), {}
    for i, node in enumerate(inputs):
        known[node] = graph.placeholder(f"x{i}")
        known[node].meta["val"] = node.meta["val"]
    for node in whole.graph.nodes:
        if node in needed and node not in known:
            known[node] = graph.node_copy(node, lambda n: known[n])
    graph.output(tuple(known[n] for n in outputs))
    return GraphModule(whole, graph)


def written_inputs(module: GraphModule) -> list[int]:
    """Numbers of the inputs that the graph writes into."""
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    puts = (n for n in module.graph.nodes if n.target is aten.index_put_.default)
    return [inputs.index(n.args[0]) for n in puts]


def guarded(body: GraphModule, go: GraphModule, mode: Any) -> GraphModule:
    """The body of a loop that changes nothing, neither what is carried nor a row of a tape, where `go` says no."""
    graph, edit = body.graph, Editor(body.graph, mode)
    places = [n for n in graph.nodes if n.op == "placeholder"]
    known = dict(zip((n for n in go.graph.nodes if n.op == "placeholder"), places, strict=True))
    (asked,) = (n for n in go.graph.nodes if n.op == "output")
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        for node in go.graph.nodes:
            if node.op not in ("placeholder", "output"):
                known[node] = graph.node_copy(node, lambda n: known[n])
    flag = known[asked.args[0]]
    for node in list(graph.nodes):
        if node.target is aten.index_put_.default:
            tape, (row,), value = node.args
            with graph.inserting_before(node):
                inside = edit(aten.mul.Tensor, row, flag)  # a full tape has no row where the next would be
                old = edit(aten.index.Tensor, tape, [inside])
                value = edit(aten.where.self, flag, value, old)
            node.args = (tape, [inside], value)
    (output,) = (n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):
        kept = [edit(aten.where.self, flag, new, old) for new, old in zip(output.args[0], places, strict=False)]
    output.args = (tuple(kept),)
    body.recompile()
    return body
