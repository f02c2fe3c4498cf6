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

from ..core.leaves import Leaves, spread_over
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..methods.method import Bars, StagewiseMethod, StepInput
from .backward_pass import Sweep
from .batch_segments import Start
from .gradient import Gradient, Trajectory, direct, plain
from .memory_budget import slots_within, whole_bytes
from .state_store import Checkpoints, EveryState, KeptGraphs, States
from .step_graph import Evaluations, Local, attached_step
from .taped_solve import Taken, taped


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
            return plain(p, request)
        slots = self.checkpoints if self.memory is None else slots_within(self.memory, p)
        if slots is None:
            states, graphs = EveryState(), KeptGraphs()
        else:
            slots = min(slots, p.max_steps)
            states, graphs = Checkpoints(slots, not p.method.carry_is_slope), None

        def pull(taken: Taken, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return StepSweep(taken, states).run(cotangents)

        found = taped(p, request, states, graphs, pull)
        if slots is not None:
            found.stats["checkpoints"] = slots
        return found


@final
class StepSweep(Sweep):
    """Takes each step again from the start that `states` gives."""

    def __init__(self, taken: Taken, states: States) -> None:
        super().__init__(taken, taken.q.method)
        self.states = states

    def local(self, n: int) -> Local:
        e, _ = self.taking(n)
        return attached_step(self.q, e, self.times_needed, *self._from(n))

    def pulled(self, method: StagewiseMethod, n: int, y_bar: Bars, carry_bar: Bars) -> tuple[Bars, Bars]:
        q, (e, _) = self.q, self.taking(n)
        y, carry = self._from(n)
        time0, time1 = e.ends(q)
        f = Evaluations(e.field(q, time0, time1))
        with q.f.drawing_from(e.draws.get("step")):
            method.step(StepInput(f, time0, time1, y, carry))
        return method.pull(spread_over(time1 - time0, y), f.stages, y_bar, carry_bar, self.vjp)

    def _from(self, n: int) -> Start:
        return self.start_of(n, self.states.start(n, self.forwards, self.restart))

    @torch.no_grad()
    def restart(self, n: int, y: Leaves) -> Leaves:
        e, part = self.entries[n], self.segment_of(n)
        time0, time1 = e.ends(part.q)
        carry = part.q.method.init(e.field(part.q, time0, time1), time0, y)
        self.charge(e.accept, part)
        return carry
