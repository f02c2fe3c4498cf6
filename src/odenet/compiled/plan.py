"""What is compiled, and what the graphs of both directions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..control.controller import Controller
from ..core.leaves import Leaves
from ..core.pytrees import flatten
from ..core.vector_field import VectorField
from ..methods.method import Method, StepInput
from .field_graph import FieldGraph
from .passes.column_layout import tape_tensor


@dataclass(frozen=True)
class Plan:
    """Everything about a solve that is compiled in, and the specs of the tensors that it is given.

    settings: of method and controller, as values. dtypes, time_dtype: of what f sees. y, captures: specs of the leaves,
    and of the tensors that f uses beside t and y. stop_count: times that end a step. jumps: whether f jumps at some of
    them. rows: of a tape, 0 without one. saves_matmuls: a tape holds large products too. step_starts: the states at the
    starts of the steps have cotangents of their own. dense: a tape holds the polynomial of each step too, which has
    cotangents. column_major: narrow states are column-major.
    """

    method: Method = field(compare=False)
    controller: Controller = field(compare=False)
    settings: tuple[Any, ...]
    batched: bool
    dtypes: tuple[torch.dtype, ...]
    time_dtype: torch.dtype
    y: tuple[TensorSpec, ...]
    captures: tuple[TensorSpec, ...]
    rtol: tuple[TensorSpec, ...]
    atol: tuple[TensorSpec, ...]
    stop_count: int
    jumps: bool
    rows: int
    saves_matmuls: bool
    step_starts: bool
    dense: bool
    column_major: bool

    @cached_property
    def _hash(self) -> int:
        return hash(_COMPARED(self))

    def __hash__(self) -> int:
        """Computed once, as a solve looks up its libraries in several places."""
        return self._hash

    @property
    def has_carry(self) -> bool:
        """Whether the method carries a slope from step to step."""
        return self.settings[0].fsal

    @property
    def differentiated(self) -> list[int]:
        """Positions of the captures that need a gradient."""
        return [i for i, spec in enumerate(self.captures) if spec.needs_grad]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B,) if each sample has its own steps, else ()."""
        return (self.y[0].shape[0],) if self.batched else ()

    @property
    def restarts(self) -> int:
        """Evaluations of f in each step of a graph that only a jump needs."""
        return int(self.jumps and self.has_carry)

    @property
    def flag_count(self) -> int:
        """The number of booleans of a step on a tape."""
        return self.batched + 2 * self.jumps

    @property
    def device(self) -> torch.device:
        return self.y[0].device


_COMPARED = attrgetter(*(x.name for x in fields(Plan) if x.compare))


class TensorSpec(NamedTuple):
    """Shape, strides, dtype and device of a tensor, and whether it needs a gradient."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    needs_grad: bool = False

    @staticmethod
    def of(x: Tensor, needs_grad: bool = False) -> TensorSpec:
        return TensorSpec(x.shape, x.stride(), x.dtype, x.device, needs_grad)

    def fake(self, mode: Any) -> Tensor:
        with mode:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def vector_field(plan: Plan, graph: FieldGraph, captures: Sequence[Tensor]) -> VectorField:
    """f with these captured tensors, for the engine."""
    spec = flatten((0,) * len(plan.y))[1]
    names = [""] * len(plan.y)
    f = VectorField(lambda t, y: graph(t, y, captures), spec, names, plan.dtypes, plan.time_dtype)
    f.checked = True
    return f


def substitute(plan: Plan, captures: Sequence[Tensor], differentiated: Leaves) -> list[Tensor]:
    """The captures, with those that need a gradient replaced."""
    known = dict(zip(plan.differentiated, differentiated, strict=True))
    return [known.get(i, x) for i, x in enumerate(captures)]


def under_vjp(plan: Plan, graph: FieldGraph) -> FieldGraph:
    """f, evaluated inside `torch.func.vjp`: PyTorch decomposes some products differently there."""

    def call(t: Tensor, y: Sequence[Tensor], captures: Sequence[Tensor]) -> Leaves:
        def f(y: Leaves, differentiated: Leaves) -> Leaves:
            return graph(t, y, substitute(plan, captures, differentiated))

        return torch.func.vjp(f, tuple(y), tuple(captures[i] for i in plan.differentiated))[0]

    return cast(FieldGraph, call)


def tape_tensors(plan: Plan, y: Leaves) -> list[Tensor]:
    """Memory (rows, ...) for what an iteration records.

    In this order: y, carry, t0, t1, which samples accepted (if each has its own steps), whether f jumps at t0 and at t1
    (if it jumps at all), coefficients of the polynomial.
    """
    if not plan.rows:
        return []
    shape = (plan.rows, *plan.batch_shape)
    times = [torch.empty(shape, dtype=torch.float64, device=plan.device) for _ in range(2)]
    flags = [torch.empty(shape, dtype=torch.bool, device=plan.device) for _ in range(plan.flag_count)]
    coefficients = coefficient_count(plan.method) if plan.dense else 0
    states, polynomials = (
        [tape_tensor(x, plan.rows, plan.column_major) for _ in range(count) for x in y]
        for count in (1 + plan.has_carry, coefficients)
    )
    return [*states, *times, *flags, *polynomials]


@lru_cache(maxsize=64)
def coefficient_count(method: Method) -> int:
    """The number of coefficients of the method's polynomial."""
    with torch.no_grad():
        y, t0, t1 = (torch.zeros(1),), torch.zeros(()), torch.ones(())
        at = StepInput(lambda t, y: y, t0, t1, y, method.init(lambda t, y: y, t0, y))
        return len(method.dense(at, method.step(at)))
