"""What is compiled, and what the graphs of both directions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..control.base import Controller
from ..core.field import VectorField
from ..core.leaves import Leaves, flatten
from ..methods.base import Method, StepInput
from .capture import FieldGraph
from .passes.column_layout import tape_of


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

    @cached_property
    def _hash(self) -> int:
        return hash(_COMPARED(self))

    def __hash__(self) -> int:
        """Computed once: a solve looks for its libraries in several places."""
        return self._hash

    @property
    def carries(self) -> bool:
        """Whether the method carries a slope from step to step."""
        return self.settings[0].fsal

    @property
    def wanted(self) -> list[int]:
        """Which of the others want their gradient."""
        return [i for i, look in enumerate(self.others) if look.needed]

    @property
    def lane(self) -> tuple[int, ...]:
        return (self.y[0].shape[0],) if self.batched else ()

    @property
    def device(self) -> torch.device:
        return self.y[0].device


_COMPARED = attrgetter(*(x.name for x in fields(Plan) if x.compare))


class Look(NamedTuple):
    """How a tensor looks. needed: its gradient is wanted."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    needed: bool = False

    @staticmethod
    def of(x: Tensor, needed: bool = False) -> Look:
        return Look(x.shape, x.stride(), x.dtype, x.device, needed)

    def fake(self, mode: Any) -> Tensor:
        with mode:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def field_of(plan: Plan, graph: FieldGraph, others: Sequence[Tensor]) -> VectorField:
    spec = flatten((0,) * len(plan.y))[1]
    names = [""] * len(plan.y)
    field = VectorField(lambda t, y: graph(t, y, others), spec, names, plan.dtypes, plan.time_dtype)
    field.checked = True
    return field


def exchanged(plan: Plan, others: Sequence[Tensor], wanted: Leaves) -> list[Tensor]:
    """The others with those that want their gradient exchanged."""
    known = dict(zip(plan.wanted, wanted, strict=True))
    return [known.get(i, x) for i, x in enumerate(others)]


def as_if_pulled(plan: Plan, graph: FieldGraph) -> FieldGraph:
    """f, evaluated as where its VJP is wanted: PyTorch takes some products apart in another way there."""

    def call(t: Tensor, y: Sequence[Tensor], others: Sequence[Tensor]) -> Leaves:
        def f(y: Leaves, wanted: Leaves) -> Leaves:
            return graph(t, y, exchanged(plan, others, wanted))

        return torch.func.vjp(f, tuple(y), tuple(others[i] for i in plan.wanted))[0]

    return cast(FieldGraph, call)


def tape_for(plan: Plan, y: Leaves) -> list[Tensor]:
    """Rows for what a turn takes down: y, the carry, both times, who accepted (of lanes), and the polynomial."""
    if not plan.slots:
        return []
    rows = (plan.slots, *plan.lane)
    lanes = [torch.empty(rows, dtype=torch.float64, device=plan.device) for _ in range(2)]
    accept = [torch.empty(rows, dtype=torch.bool, device=plan.device)] * plan.batched
    powers = powers_of(plan.method) if plan.dense else 0
    leaves, polynomials = (
        [tape_of(x, plan.slots, plan.columns) for _ in range(count) for x in y] for count in (1 + plan.carries, powers)
    )
    return [*leaves, *lanes, *accept, *polynomials]


@lru_cache(maxsize=64)
def powers_of(method: Method) -> int:
    """How many coefficients the method's polynomial has."""
    with torch.no_grad():
        y, t0, t1 = (torch.zeros(1),), torch.zeros(()), torch.ones(())
        at = StepInput(lambda t, y: y, t0, t1, y, method.init(lambda t, y: y, t0, y))
        return len(method.dense(at, method.step(at)))
