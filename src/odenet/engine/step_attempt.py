"""The state of a solve, and one attempted step as observers see it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..control.controller import ControllerState
from ..core.dense import Coefficients
from ..core.leaves import Leaves
from ..core.norms import all_finite
from ..core.random_state import GeneratorStates
from ..core.scalars import MaskLike, ScalarLike, any_true
from ..methods.method import Cache, Counts, Step, StepInput
from .one_sided import one_sided_field
from .problem import Problem


class State(NamedTuple):
    """Where a solve stands.

    t, h: detached time and size of the next attempt. time: t as a tensor, attached to ts. stop: index of the next time
    to hit. jumped: t is a jump time. status: Status codes. cache: of the method. rejected: the last attempt was.
    """

    t: ScalarLike
    time: Tensor
    h: ScalarLike
    y: Leaves
    carry: Leaves
    controller_state: ControllerState
    stop: ScalarLike
    jumped: MaskLike
    status: ScalarLike
    cache: Cache = ()
    rejected: MaskLike = False


RandomStates = dict[str, GeneratorStates | None]
"""Of an f that draws random numbers: the states of the generators before a step, and before its dense output.

"step" and "dense"; shared by a move and what is kept of it, as the dense output may be asked for later than that.
"""


@dataclass(slots=True)
class StepAttempt:
    """One attempted step, as observers see it. `accept` is a bool, or lanes of booleans.

    stop: the index of the time that it hit; -1: the time of an event, which depends on no time to hit. ends: an event
    ends the solve (of these lanes) with this move. steps: how many it is, where nobody looks at those between.
    sought: lanes in which an event was looked for: they are charged for the polynomial in any case, and
    for `search_calls` further evaluations. claimed: those in which one was found, charged for `claim_calls`.
    graph: the step attached to y, carry, time0 and time1, which are then leaves of a graph; `step` is detached.
    told: what the step was told, where it was an attempt of the loop.
    draws: where an f that draws random numbers draws them from.
    """

    problem: Problem
    t0: ScalarLike
    t1: ScalarLike
    time0: Tensor
    time1: Tensor
    y: Leaves
    carry: Leaves
    step: Step
    accept: MaskLike
    hit: MaskLike
    stop: ScalarLike
    jumped: MaskLike
    jumps: MaskLike
    ends: MaskLike = False
    steps: int = 1
    polynomial_asked: MaskLike = False
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
        """What the step was told; as far as its dense output wants it, where it was not an attempt."""
        if self.step_input is not None:
            return self.step_input
        f = one_sided_field(self.problem, self.time0, self.time1, self.jumped, self.jumps)
        return StepInput(f, self.time0, self.time1, self.y, self.carry)

    @property
    def charged(self) -> MaskLike:
        """Lanes that are charged for the polynomial."""
        return self.searched | (self.polynomial_asked & self.accept)

    @property
    def known_polynomial(self) -> Coefficients:
        return self._polynomial or ()

    def polynomial(self, lanes: MaskLike = True) -> Coefficients:
        """Dense output of the step; computed once, and only where somebody asks.

        `lanes` asks, and alone is charged for evaluations that it takes (`polynomial_calls` for each lane in `asked`).
        """
        self.polynomial_asked = self.polynomial_asked | lanes
        if self._polynomial is None:
            p, before = self.problem, self.problem.f.calls
            step = self.step if self.graph is None else self.graph
            again = self.random_states.get("dense")
            if p.f.random and again is None:
                self.random_states["dense"] = p.f.random_states()
            grad = self.graph is not None or torch.is_grad_enabled()
            with torch.set_grad_enabled(grad), nullcontext() if again is None else p.f.with_random_states(again):
                self._polynomial, self.polynomial_counts = p.method.dense_with_counts(self.input, step)
            self.polynomial_calls = p.f.calls - before
            self.step = self.step._replace(stages=())  # nobody else asks for the stages, and they are most of a step
        return self._polynomial

    def forget_polynomial(self) -> None:
        """The step has been replaced: its polynomial is to be computed when somebody asks."""
        self._polynomial = None


def has_nonfinite(attempt: StepAttempt, lanes: Tensor) -> bool:
    """Whether a value of the step is not finite in one of these lanes: zeros could not be pulled through its graph."""
    inner = (*attempt.step.stages, *attempt.known_polynomial)
    values = [
        x.detach() for x in (*attempt.step.y, *attempt.step.carry, *(leaf for leaves in inner for leaf in leaves))
    ]
    totals: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    for x in values:  # a sum is finite only where all its terms are, and takes less time than a look at each
        key = x.shape, x.dtype
        totals[key] = totals[key] + x if key in totals else x
    if not any(any_true(~torch.isfinite(total)) for total in totals.values()):
        return False
    return any_true(lanes & ~all_finite(tuple(values), attempt.problem.batched))
