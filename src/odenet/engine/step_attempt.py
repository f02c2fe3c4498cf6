"""The state of a solve, and one attempted step as observers see it.

Both are generic in how numbers are held: Python numbers in an eager joint solve, which costs no tensor operations
(`HostState`, `HostAttempt`); tensors of shape (B,) in a per-sample solve, () in a joint solve that is traced
(`BatchState`, `BatchAttempt`). `State` and `StepAttempt` without parameters stand for either.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeVar  # a dependency of torch; typing.TypeVar has defaults from Python 3.13 on

from ..control.controller import ControllerState
from ..core.dense import Coefficients
from ..core.leaves import Leaves
from ..core.norms import all_finite
from ..core.random_state import GeneratorStates
from ..core.scalars import MaskLike, ScalarLike, any_true
from ..methods.method import Cache, Counts, Step, StepInput
from .one_sided import one_sided_field
from .problem import Problem

Scalar = TypeVar("Scalar", bound=ScalarLike, covariant=True, default=ScalarLike)
Index = TypeVar("Index", bound=int | Tensor, covariant=True, default=int | Tensor)
Mask = TypeVar("Mask", bound=MaskLike, covariant=True, default=MaskLike)


class State(NamedTuple, Generic[Scalar, Index, Mask]):
    """The state of a solve between two attempts.

    t: time, detached. time: t as a tensor, attached to ts. h: size of the next attempt, detached. stop: index of the
    next stop time. jumped: f jumps at t. status: `Status` codes. cache: of the method. rejected: the last attempt was.
    """

    t: Scalar
    time: Tensor
    h: Scalar
    y: Leaves
    carry: Leaves
    controller_state: ControllerState
    stop: Index
    jumped: MaskLike
    status: Scalar
    cache: Cache
    rejected: Mask


HostState = State[float, int, bool]
BatchState = State[Tensor, Tensor, Tensor]

RandomStates = dict[str, GeneratorStates | None]
"""Generator states of an f that draws random numbers: before a step ("step") and before its dense output ("dense").

An attempt and its tape step share one dict, as the dense output may be computed after the tape step was recorded.
"""


@dataclass(slots=True)
class StepAttempt(Generic[Scalar, Index, Mask]):
    """One attempted step, as observers see it.

    t0, t1: both ends, detached. time0, time1: the same as tensors, attached to ts. y, carry: before the step.
    accept: the step was accepted. hit: it ended at a stop time. stop: the index of that stop time; -1 for the time of
    an event, which depends on no stop time. jumped, jumps: f jumps at t0, at t1. ends: an event ends the solve (of the
    sample) with this step. steps: number of steps that the attempt stands for; more than 1 where no observer needs
    those that end at no stop time.

    Evaluations charged to some samples only: `polynomial_calls` for the dense output, to the samples in
    `polynomial_needed` that accepted and to those in `searched`; `search_calls`, to the samples in `searched`, in which
    an event was looked for; `claim_calls`, to those in `claimed`, in which one was found.

    graph: the step attached to y, carry, time0 and time1, which are then leaves of a graph; `step` is detached.
    step_input: the input of the step, where the attempt comes from the loop.
    random_states: see `RandomStates`.
    """

    problem: Problem
    t0: Scalar
    t1: Scalar
    time0: Tensor
    time1: Tensor
    y: Leaves
    carry: Leaves
    step: Step
    accept: Mask
    hit: Mask
    stop: Index
    jumped: MaskLike
    jumps: MaskLike
    ends: MaskLike = False
    steps: int = 1
    polynomial_needed: MaskLike = False
    polynomial_calls: int = 0
    polynomial_counts: Counts | None = None
    searched: MaskLike = False
    search_calls: int = 0
    claimed: MaskLike = False
    claim_calls: int = 0
    graph: Step | None = None
    step_input: StepInput | None = None
    random_states: RandomStates = field(default_factory=dict)
    _polynomial: Coefficients | None = field(default=None, repr=False)

    @property
    def input(self) -> StepInput:
        """The input of the step; what its dense output needs of it, where the attempt does not come from the loop."""
        if self.step_input is not None:
            return self.step_input
        f = one_sided_field(self.problem, self.time0, self.time1, self.jumped, self.jumps)
        return StepInput(f, self.time0, self.time1, self.y, self.carry)

    @property
    def charged(self) -> MaskLike:
        """Samples that are charged for the polynomial."""
        return self.searched | (self.polynomial_needed & self.accept)

    @property
    def known_polynomial(self) -> Coefficients:
        """The dense output if it has been computed, else ()."""
        return self._polynomial or ()

    def polynomial(self, needed: MaskLike = True) -> Coefficients:
        """Dense output of the step, computed at the first call.

        needed: the samples that need it. They alone are charged for its evaluations of f.
        """
        self.polynomial_needed = self.polynomial_needed | needed
        if self._polynomial is None:
            p, before = self.problem, self.problem.f.calls
            step = self.step if self.graph is None else self.graph
            drawn = self.random_states.get("dense")
            if p.f.random and drawn is None:
                self.random_states["dense"] = p.f.random_states()
            grad = self.graph is not None or torch.is_grad_enabled()
            with torch.set_grad_enabled(grad), nullcontext() if drawn is None else p.f.with_random_states(drawn):
                self._polynomial, self.polynomial_counts = p.method.dense_with_counts(self.input, step)
            self.polynomial_calls = p.f.calls - before
            self.step = self.step._replace(stages=())  # needed no longer, and most of a step's memory
        return self._polynomial

    def forget_polynomial(self) -> None:
        """To be called when `step` was replaced: the polynomial is computed from the new one."""
        self._polynomial = None


HostAttempt = StepAttempt[float, int, bool]
BatchAttempt = StepAttempt[Tensor, Tensor, Tensor]


def has_nonfinite(attempt: StepAttempt, samples: Tensor) -> bool:
    """True where the step of one of these samples has NaN or inf: a zero cotangent through its graph gives NaN."""
    inner = (*attempt.step.stages, *attempt.known_polynomial)
    values = [
        x.detach() for x in (*attempt.step.y, *attempt.step.carry, *(leaf for leaves in inner for leaf in leaves))
    ]
    totals: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    for x in values:  # a sum is finite only if all its terms are, and is cheaper than a test of each
        key = x.shape, x.dtype
        totals[key] = totals[key] + x if key in totals else x
    if not any(any_true(~torch.isfinite(total)) for total in totals.values()):
        return False
    return any_true(samples & ~all_finite(tuple(values), attempt.problem.batched))
