"""The solver loop as one operator of a graph, for `torch.compile` and `torch.export` of the caller's own model.

The steps are computed first, detached from all graphs. If a gradient is needed, a second loop, which PyTorch
differentiates, replays the known steps. It has no rejected attempts, whose values may be non-finite and would make the
gradient NaN, and no step control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.pytrees import flatten, tree_map, unflatten
from ..core.scalars import MaskLike
from ..core.status import Status
from ..engine.advance import accept_or_reject, next_carry, try_step
from ..engine.loop import start
from ..engine.one_sided import initial_carry, one_sided_field
from ..engine.output_rule import blank_outputs, fill_outputs, outputs_due
from ..engine.problem import Problem
from ..engine.step_attempt import BatchAttempt, BatchState, StepAttempt
from ..engine.stop_tracker import BatchStopTracker
from ..methods.method import StepInput

T = TypeVar("T")

_RUNNING, _SUCCESS, _MAX_STEPS = int(Status.RUNNING), int(Status.SUCCESS), int(Status.MAX_STEPS)


class LoopState(NamedTuple):
    """The engine's state, with the number of attempts and of accepted steps."""

    state: BatchState
    attempts: Tensor
    accepted: Tensor

    @staticmethod
    def start(p: Problem, tracker: BatchStopTracker) -> LoopState:
        s = start(p, tracker)
        return LoopState(s, torch.zeros_like(s.stop), torch.zeros_like(s.stop))

    def iterate(self, p: Problem, tracker: BatchStopTracker, max_steps: int | Tensor) -> tuple[LoopState, BatchAttempt]:
        """One attempt, accepted or rejected and counted: the body of every loop in a graph."""
        s = self.state
        attempt, decision = try_step(p, tracker, s)
        attempts, accepted = self.attempts + (s.status == _RUNNING), self.accepted + attempt.accept
        s = accept_or_reject(p, tracker, s, attempt, decision)
        exhausted = (s.status == _RUNNING) & (attempts >= max_steps)
        return LoopState(s._replace(status=torch.where(exhausted, _MAX_STEPS, s.status)), attempts, accepted), attempt


class TracedEnd(NamedTuple):
    """The end of a traced solve: time reached, status and counts, all 0-d."""

    t: Tensor
    status: Tensor
    accepted: Tensor
    rejected: Tensor

    def nan_if_failed(self, y: Leaves) -> Leaves:
        """y if the solve succeeded, else NaN."""
        return tuple(torch.where(self.status == _SUCCESS, x, torch.nan) for x in y)


class TracedSolution(NamedTuple):
    """A solve without a graph.

    last: the final loop state.
    ys: outputs, leaves (T, ...); () if not requested.
    step_ends: a tensor (max_steps,) with the end of each accepted step in its first `last.accepted` entries; () if not
        requested.
    sums: the totals of `accumulate`.
    """

    last: LoopState
    ys: Leaves
    step_ends: Leaves
    sums: Leaves

    @property
    def end(self) -> TracedEnd:
        s = self.last.state
        return TracedEnd(s.t, s.status, self.last.accepted, self.last.attempts - self.last.accepted)


Accumulate = Callable[[BatchAttempt, Leaves], Leaves]
"""(attempt, sums) -> sums with the contribution of the attempt added."""


def run_while_loop(condition: Callable[[T], Tensor], iterate: Callable[[T], T], initial: T) -> T:
    """Repeat `iterate` on a pytree while `condition` holds, as one operator; non-tensor leaves stay constant."""
    # imported here, as it loads the compiler
    from torch._higher_order_ops.while_loop import while_loop

    leaves, spec = flatten(initial)
    constants = [None if isinstance(x, Tensor) else x for x in leaves]
    positions = [i for i, x in enumerate(constants) if x is None]

    def tree(tensors: Sequence[Tensor]) -> T:
        filled = list(constants)
        for i, x in zip(positions, tensors, strict=True):
            filled[i] = x
        return unflatten(filled, spec)

    def body(*old: Tensor) -> Leaves:
        """Iterate on tensors; the operator forbids outputs that alias inputs or differ in dtype."""
        new = flatten(iterate(tree(old)))[0]
        return tuple(new[i].clone() if new[i] is x else new[i].to(x.dtype) for i, x in zip(positions, old, strict=True))

    return tree(while_loop(lambda *x: condition(tree(x)), body, tuple(leaves[i].clone() for i in positions)))


def traced_loop(
    p: Problem, outputs: bool, step_ends: bool, accumulate: Accumulate | None = None, sums: Leaves = ()
) -> TracedSolution:
    """Solve p inside a graph, detached.

    outputs, step_ends: whether the solution has them. accumulate, sums: totals over attempts, and their initial values.
    """
    p = _with_cloned_times(p)
    tracker = BatchStopTracker(p)
    tape = (p.ts[:1].repeat(p.max_steps),) if step_ends else ()

    def iterate(s: TracedSolution) -> TracedSolution:
        # the next attempt overwrites the entries of a rejected one
        last, attempt = s.last.iterate(p, tracker, p.max_steps)
        ys = fill_outputs(p, attempt, outputs_due(p, attempt), s.ys) if outputs else ()
        tape = tuple(x.scatter(0, s.last.accepted.view(1), attempt.t1.view(1)) for x in s.step_ends)
        return TracedSolution(last, ys, tape, accumulate(attempt, s.sums) if accumulate is not None else ())

    initial = TracedSolution(LoopState.start(p, tracker), blank_outputs(p, None) if outputs else (), tape, sums)
    return run_while_loop(lambda s: s.last.state.status == _RUNNING, iterate, initial)


def _with_cloned_times(p: Problem) -> Problem:
    """The same problem with cloned times: the operator forbids aliases among the tensors that its body uses."""
    jumps = p.stops.jumps
    stops = replace(p.stops, times=p.stops.times.clone(), jumps=None if jumps is None else jumps.clone())
    return replace(p, ts=p.ts.clone(), stops=stops)


def without_state(p: Problem) -> Problem:
    """A problem with an empty state and the same steps as p, if no error estimate controls them."""
    control = copy.copy(p.controller)
    control.finite = False
    empty_field: Any = lambda t, y, side=None: ()  # noqa: E731
    return replace(p, f=empty_field, y0=(), controller=control)


class _ReplayState(NamedTuple):
    """State of the replay loop. steps: number of replayed steps. at_jump: `time` is a jump time."""

    steps: Tensor
    time: Tensor
    at_jump: MaskLike
    y: Leaves
    carry: Leaves
    ys: Leaves


def differentiable_steps(p: Problem, solution: TracedSolution) -> tuple[Leaves, Leaves]:
    """y1 and ys of the steps of `solution`, by a loop that PyTorch differentiates."""
    p = _with_cloned_times(p)
    (ends,) = solution.step_ends
    accept = torch.ones_like(solution.last.state.rejected)

    def condition(s: _ReplayState) -> Tensor:
        # at least one iteration, if of a step of zero length: the operator's gradients are wrong without any
        return s.steps < solution.last.accepted.clamp(min=1)

    def iterate(s: _ReplayState) -> _ReplayState:
        t1 = ends.gather(0, s.steps.view(1)).view(())
        jump = p.stops.jump_at(t1)
        f = one_sided_field(p, s.time, t1, s.at_jump, jump)
        step = p.method.step(StepInput(f, s.time, t1, s.y, s.carry))
        attempt = StepAttempt(p, s.time, t1, s.time, t1, s.y, s.carry, step, accept, accept, 0, s.at_jump, jump)
        ys = fill_outputs(p, attempt, outputs_due(p, attempt), s.ys) if s.ys else ()
        carry = tuple(x.clone() for x in next_carry(p, t1, step, jump))  # f may return a view of its y
        return _ReplayState(s.steps + 1, t1.clone(), jump, step.y, carry, ys)

    carry = initial_carry(p, p.ts[0], p.y0)
    attached = _all_attached((p.y0, carry, blank_outputs(p, None) if len(p.ts) > 2 else ()), p.f(p.ts[0], p.y0))
    jumped = p.stops.jump_at(p.ts.detach()[0])
    last = run_while_loop(
        condition, iterate, _ReplayState(torch.zeros_like(solution.last.accepted), p.ts[0], jumped, *attached)
    )
    y1 = solution.end.nan_if_failed(last.y)
    return y1, last.ys or tuple(torch.stack([a, b]) for a, b in zip(p.y0, y1, strict=True))


def _all_attached(tree: Any, slope: Leaves) -> Any:
    """The same values, all attached to a graph: the operator gives no gradient to tensors that start as constants."""
    anchor = next(x for x in (*flatten(tree)[0], *slope) if x.requires_grad).reshape(-1)[0]
    anchor = anchor.real if anchor.is_complex() else anchor
    mask = torch.zeros_like(anchor, dtype=torch.bool)
    return tree_map(lambda x: x if x.requires_grad else torch.where(mask, anchor.to(x.dtype), x), tree)
