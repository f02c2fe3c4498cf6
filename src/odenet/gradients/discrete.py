"""The exact gradient of the numerical solution, by VJPs of its steps in reverse order.

Zhuang et al. 2020 ("Adaptive checkpoint adjoint", arXiv 2006.02493): each accepted step is replayed, differentiated and
freed, so one step's graph is alive at a time. With few checkpoints the initial states of steps are recomputed too, by
the schedules of Griewank & Walther 2000 and, as the number of steps is unknown in advance, of Stumm & Walther 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, expand_over
from ..core.validate import integer
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..methods.method import Cotangents, StagewiseMethod, StepInput
from .backward_pass import BackwardPass
from .batch_segments import Start
from .gradient import Gradient, Trajectory, gradient_bypassed, solve_plain
from .memory_budget import checkpoints_within, parse_bytes
from .state_store import AllStates, Checkpoints, StateStore, StepGraphs
from .step_graph import EvaluationGraphs, StepGraph, replay_from_leaves
from .taped_solve import TapedSolve, solve_with_tape


@final
class Discrete(Gradient):
    """Reversed loop over step VJPs; exact for the numerical solution.

    checkpoints: store at most this many states, the initial one included, and replay the steps between them.
    memory: bytes, or text such as "256MiB": as many checkpoints as fit beside one step; `stats.checkpoints` tells how
        many.

    Without either, the initial state of every accepted step is stored and, up to 256 MiB, its graph.
    """

    name = "discrete"

    def __init__(self, checkpoints: int | None = None, memory: int | str | None = None) -> None:
        if checkpoints is not None and memory is not None:
            raise ValueError("checkpoints and memory exclude each other: memory sets the number of checkpoints")
        self.checkpoints = None if checkpoints is None else integer("checkpoints", checkpoints, maximum=None)
        self.memory = None if memory is None else parse_bytes(memory)

    def run(self, p: Problem, request: Request) -> Trajectory:
        if gradient_bypassed():
            return solve_plain(p, request)
        slots = self.checkpoints if self.memory is None else checkpoints_within(self.memory, p)
        if slots is None:
            states, graphs = AllStates(), StepGraphs()
        else:
            slots = min(slots, p.max_steps)
            states, graphs = Checkpoints(slots, not p.method.carry_is_slope), None

        def backward(taped: TapedSolve, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return TapeBackwardPass(taped, states).run(cotangents)

        trajectory = solve_with_tape(p, request, states, graphs, backward)
        if slots is not None:
            trajectory.stats["checkpoints"] = slots
        return trajectory


@final
class TapeBackwardPass(BackwardPass):
    """Replays each step from the initial state that `states` gives."""

    def __init__(self, taped: TapedSolve, states: StateStore) -> None:
        super().__init__(taped, taped.problem.method)
        self.states = states

    def step_graph(self, n: int) -> StepGraph:
        step, _ = self.replayed_step(n)
        return replay_from_leaves(self.problem, step, self.time_grads_needed, *self._step_start(n))

    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        q, (step, _) = self.problem, self.replayed_step(n)
        y, carry = self._step_start(n)
        time0, time1 = step.end_times(q)
        f = EvaluationGraphs(step.field(q, time0, time1))
        with q.f.with_random_states(step.random_states.get("step")):
            method.step(StepInput(f, time0, time1, y, carry))
        return method.vjp(expand_over(time1 - time0, y), f.stages, y_bar, carry_bar, self.vjp)

    def _step_start(self, n: int) -> Start:
        return self.select_start(n, self.states.step_start(n, self.next_start, self.restart_carry))

    @torch.no_grad()
    def restart_carry(self, n: int, y: Leaves) -> Leaves:
        """The carry before step n from its y, for a method whose carry is a slope."""
        step, segment = self.steps[n], self.batch_segment(n)
        time0, time1 = step.end_times(segment.problem)
        carry = segment.problem.method.init(step.field(segment.problem, time0, time1), time0, y)
        self.count_evaluations(step.accept, segment)
        return carry
