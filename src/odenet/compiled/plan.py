"""What is compiled, and what the graphs of both directions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..control.base import Controller
from ..core.field import VectorField
from ..core.leaves import Leaves, flatten
from ..methods.base import Method, StepInput
from .capture import FieldGraph


@dataclass(frozen=True)
class Plan:
    """What is compiled: all of a solve that is not a tensor handed to it, and how those look.

    settings: of method and controller, as values. dtypes, time_dtype: of what f sees. y, others: shape, strides, dtype
    and whether a gradient is wanted, for each leaf and for each tensor that f uses beside t and y. stops: how many
    times end a step. slots: rows of a tape, 0 without one. keeps: a tape holds large products too. starts: the states
    at the starts of the steps have cotangents of their own. dense: a tape holds each step's polynomial too, which has
    cotangents. columns: states are held column by column.
    """

    method: Method = field(compare=False)
    controller: Controller = field(compare=False)
    settings: tuple[Any, ...]
    batched: bool
    dtypes: tuple[torch.dtype, ...]
    time_dtype: torch.dtype
    y: tuple[Look, ...]
    others: tuple[Look, ...]
    rtol: tuple[Look, ...]
    atol: tuple[Look, ...]
    stops: int
    slots: int
    keeps: bool
    starts: bool
    dense: bool
    columns: bool

    @property
    def carries(self) -> bool:
        """Whether the method carries a slope from step to step."""
        return self.settings[0].fsal

    @property
    def lane(self) -> tuple[int, ...]:
        return (self.y[0].shape[0],) if self.batched else ()

    @property
    def device(self) -> torch.device:
        return self.y[0].device


@dataclass(frozen=True)
class Look:
    """How a tensor looks. needed: its gradient is wanted."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    needed: bool = False

    @staticmethod
    def of(x: Tensor, needed: bool = False) -> Look:
        return Look(tuple(x.shape), x.stride(), x.dtype, x.device, needed)

    def fake(self, mode: Any) -> Tensor:
        with mode:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass
class Recorded:
    """A graph ready to be compiled.

    calls: evaluations of f at the start (or end), and in each turn of the loop. kept: how a row of what the tape keeps
    beside states and polynomials looks. counted: the caller knows how often the loop turns.
    """

    module: GraphModule
    fakes: list[Tensor]
    mode: Any
    calls: tuple[int, int]
    kept: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()
    counted: bool = False


class Values:
    """Takes groups of values off a flat list, in order."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values, self.at = tuple(values), 0

    def take(self, count: int) -> tuple[Any, ...]:
        self.at += count
        return self.values[self.at - count : self.at]

    def one(self) -> Any:
        return self.take(1)[0]


def field_of(plan: Plan, graph: FieldGraph, others: Sequence[Tensor]) -> VectorField:
    spec = flatten((0,) * len(plan.y))[1]
    names = [""] * len(plan.y)
    field = VectorField(lambda t, y: graph(t, y, others), spec, names, plan.dtypes, plan.time_dtype)
    field.checked = True
    return field


def as_if_pulled(plan: Plan, graph: FieldGraph) -> FieldGraph:
    """f, evaluated as where its VJP is wanted: PyTorch takes some products apart in another way there."""
    wanted = [i for i, look in enumerate(plan.others) if look.needed]

    def call(t: Tensor, y: Sequence[Tensor], others: Sequence[Tensor]) -> Leaves:
        def f(*inputs: Tensor) -> Leaves:
            every = list(others)
            for i, x in zip(wanted, inputs[len(y) :], strict=True):
                every[i] = x
            return graph(t, inputs[: len(y)], every)

        return torch.func.vjp(f, *y, *(others[i] for i in wanted))[0]

    return cast(FieldGraph, call)


def carry_of(plan: Plan, mode: Any) -> Leaves:
    """What the method carries from step to step, for its looks."""
    with mode, torch.no_grad():
        y = tuple(look.fake(mode) for look in plan.y)
        t = torch.empty(plan.lane, dtype=torch.float64, device=plan.device)
        return tuple(torch.empty_like(x) for x in plan.method.init(lambda t, y: y, t, y))


def powers_of(method: Method) -> int:
    """How many coefficients the method's polynomial has."""
    with torch.no_grad():
        y, t0, t1 = (torch.zeros(1),), torch.zeros(()), torch.ones(())
        at = StepInput(lambda t, y: y, t0, t1, y, method.init(lambda t, y: y, t0, y))
        return len(method.dense(at, method.step(at)))


def outputs_of(module: GraphModule) -> list[Node]:
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    return list(output.args[0])  # pyright: ignore


def bare(go: GraphModule) -> GraphModule:
    """The graph with its one output bare, as a loop's condition has it."""
    (output,) = (n for n in go.graph.nodes if n.op == "output")
    output.args = (output.args[0][0],)
    go.recompile()
    return go
