"""The exact gradient of the numerical solution, by vector-Jacobian products of its steps in reverse order.

Zhuang et al. 2020 ("Adaptive checkpoint adjoint", arXiv 2006.02493): the accepted steps are taken again one at a time,
each differentiated and dropped, so that one step's graph is alive at a time. With few checkpoints their starts are
computed again as well, by the schedules of Griewank & Walther 2000 and, as the number of steps is not known in advance,
of Stumm & Walther 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, expand_over
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..methods.method import Cotangents, StagewiseMethod, StepInput
from .backward_pass import BackwardPass
from .batch_segments import Start
from .gradient import Gradient, Trajectory, direct, solve_plain
from .memory_budget import slots_within, whole_bytes
from .state_store import AllStates, Checkpoints, StateStore, StepGraphs
from .step_graph import EvaluationGraphs, StepGraph, attached_step
from .taped_solve import TapedSolve, solve_with_tape


@final
class Discrete(Gradient):
    """Reversed loop over step VJPs; exact for the numerical solution.

    checkpoints: hold at most this many states (the initial one counts), and take the steps between them again.
    memory: bytes, or text such as "256MiB": as many checkpoints as fit, beside the step at hand; `stats.checkpoints`
    says how many. Without either every accepted step's start is held and, as long as they are few bytes, its graph.
    """

    name = "discrete"

    def __init__(self, checkpoints: int | None = None, memory: int | str | None = None) -> None:
        if checkpoints is not None and memory is not None:
            raise ValueError("checkpoints and memory exclude each other: memory chooses the number of checkpoints")
        if checkpoints is not None and (isinstance(checkpoints, bool) or not isinstance(checkpoints, int)):
            raise TypeError(f"checkpoints must be an int; got {type(checkpoints).__name__} {checkpoints!r}")
        if checkpoints is not None and checkpoints < 1:
            raise ValueError(f"checkpoints must be at least 1 (the initial state is one); got {checkpoints}")
        self.checkpoints = checkpoints
        self.memory = None if memory is None else whole_bytes(memory)

    def run(self, p: Problem, request: Request) -> Trajectory:
        if direct():
            return solve_plain(p, request)
        slots = self.checkpoints if self.memory is None else slots_within(self.memory, p)
        if slots is None:
            states, graphs = AllStates(), StepGraphs()
        else:
            slots = min(slots, p.max_steps)
            states, graphs = Checkpoints(slots, not p.method.carry_is_slope), None

        def pull(taken: TapedSolve, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return TapeBackwardPass(taken, states).run(cotangents)

        found = solve_with_tape(p, request, states, graphs, pull)
        if slots is not None:
            found.stats["checkpoints"] = slots
        return found


@final
class TapeBackwardPass(BackwardPass):
    """Takes each step again from the start that `states` gives."""

    def __init__(self, taken: TapedSolve, states: StateStore) -> None:
        super().__init__(taken, taken.q.method)
        self.states = states

    def step_graph(self, n: int) -> StepGraph:
        e, _ = self.samples_of(n)
        return attached_step(self.q, e, self.times_needed, *self._from(n))

    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        q, (e, _) = self.q, self.samples_of(n)
        y, carry = self._from(n)
        time0, time1 = e.end_times(q)
        f = EvaluationGraphs(e.field(q, time0, time1))
        with q.f.with_random_states(e.random_states.get("step")):
            method.step(StepInput(f, time0, time1, y, carry))
        return method.vjp(expand_over(time1 - time0, y), f.stages, y_bar, carry_bar, self.vjp)

    def _from(self, n: int) -> Start:
        return self.start_of(n, self.states.start(n, self.forwards, self.restart))

    @torch.no_grad()
    def restart(self, n: int, y: Leaves) -> Leaves:
        e, part = self.entries[n], self.segment_of(n)
        time0, time1 = e.end_times(part.q)
        carry = part.q.method.init(e.field(part.q, time0, time1), time0, y)
        self.charge(e.accept, part)
        return carry
