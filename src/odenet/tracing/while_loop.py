"""The loop as one operator of a graph: what `torch.compile` and `torch.export` of the caller's own model see.

The steps are found first, detached from all graphs; where a gradient is wanted they are then taken again, known, by a
second loop that PyTorch differentiates. That loop has no rejected attempts, whose values may not be finite and would
poison the gradient, and nothing of the step control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.pytrees import flatten, tree_map, unflatten
from ..core.scalars import MaskLike
from ..core.status import Status
from ..engine.advance import accept_or_reject, next_carry, try_step
from ..engine.loop import start
from ..engine.one_sided import one_sided_field
from ..engine.output_rule import blank_outputs, fill_outputs, outputs_due
from ..engine.problem import Problem
from ..engine.step_attempt import BatchState, StepAttempt
from ..engine.stop_tracker import BatchStopTracker
from ..methods.method import StepInput

_RUNNING, _SUCCESS, _MAX_STEPS = int(Status.RUNNING), int(Status.SUCCESS), int(Status.MAX_STEPS)


class LoopState(NamedTuple):
    """A state, and how many attempts and accepted steps led there."""

    state: BatchState
    attempts: Tensor
    accepted: Tensor

    @staticmethod
    def start(p: Problem, tracker: BatchStopTracker) -> LoopState:
        s = start(p, tracker)
        return LoopState(s, torch.zeros_like(s.stop), torch.zeros_like(s.stop))

    def turn(self, p: Problem, tracker: BatchStopTracker, most: int | Tensor) -> tuple[LoopState, StepAttempt]:
        """One attempt, settled and counted: what every loop in a graph repeats. most: max_steps."""
        s = self.state
        attempt, decision = try_step(p, tracker, s)
        attempts, accepted = self.attempts + (s.status == _RUNNING), self.accepted + attempt.accept
        s = accept_or_reject(p, tracker, s, attempt, decision)
        spent = (s.status == _RUNNING) & (attempts >= most)
        return LoopState(s._replace(status=torch.where(spent, _MAX_STEPS, s.status)), attempts, accepted), attempt


class TracedEnd(NamedTuple):
    """Where a solve ended, and how."""

    t: Tensor
    status: Tensor
    accepted: Tensor
    rejected: Tensor

    def unless_failed(self, y: Leaves) -> Leaves:
        """The last state; NaN where the solve failed."""
        return tuple(torch.where(self.status == _SUCCESS, x, torch.nan) for x in y)


class TracedSolution(NamedTuple):
    """A solve without a graph.

    at: how it ended. ys: (T, ...), or () where they were not asked for. ends: end of each accepted step, (max_steps,),
    or () likewise; `at.accepted` of them hold. extra: what `more` summed up.
    """

    at: LoopState
    ys: Leaves
    ends: Leaves
    extra: Leaves

    @property
    def end(self) -> TracedEnd:
        s = self.at.state
        return TracedEnd(s.t, s.status, self.at.accepted, self.at.attempts - self.at.accepted)


More = Callable[[StepAttempt, Leaves], Leaves]
"""Adds to the leaves what an attempt brings."""


def repeated(go: Callable[[Any], Tensor], turn: Callable[[Any], Any], first: Any) -> Any:
    """`turn` of a pytree again and again while `go`, as one operator. What is no tensor in it stays as it is."""
    # imported here: the package loads without the compiler
    from torch._higher_order_ops.while_loop import while_loop

    leaves, spec = flatten(first)
    fixed = [None if isinstance(x, Tensor) else x for x in leaves]
    places = [i for i, x in enumerate(fixed) if x is None]

    def tree(tensors: Any) -> Any:
        whole = list(fixed)
        for i, x in zip(places, tensors, strict=True):
            whole[i] = x
        return unflatten(whole, spec)

    def body(*old: Tensor) -> Leaves:
        """The operator allows no aliases of what it was given, and no other dtype."""
        new = flatten(turn(tree(old)))[0]
        return tuple(new[i].clone() if new[i] is x else new[i].to(x.dtype) for i, x in zip(places, old, strict=True))

    return tree(while_loop(lambda *x: go(tree(x)), body, tuple(leaves[i].clone() for i in places)))


def traced_loop(p: Problem, outputs: bool, ends: bool, more: More | None = None, extra: Leaves = ()) -> TracedSolution:
    """Solve p, traced and detached."""
    p = _apart(p)
    tracker = BatchStopTracker(p)
    tape = (p.ts[:1].repeat(p.max_steps),) if ends else ()

    def turn(s: TracedSolution) -> TracedSolution:
        # a rejected attempt writes what the next one overwrites
        at, attempt = s.at.turn(p, tracker, p.max_steps)
        ys = fill_outputs(p, attempt, outputs_due(p, attempt), s.ys) if outputs else ()
        tape = tuple(x.scatter(0, s.at.accepted.view(1), attempt.t1.view(1)) for x in s.ends)
        return TracedSolution(at, ys, tape, more(attempt, s.extra) if more is not None else ())

    first = TracedSolution(LoopState.start(p, tracker), blank_outputs(p, None) if outputs else (), tape, extra)
    return repeated(lambda s: s.at.state.status == _RUNNING, turn, first)


def _apart(p: Problem) -> Problem:
    """The same problem, with times that share no memory: the operator allows no aliases in what its body sees."""
    jumps = p.stops.jumps
    stops = replace(p.stops, times=p.stops.times.clone(), jumps=None if jumps is None else jumps.clone())
    return replace(p, ts=p.ts.clone(), stops=stops)


def record_plan(p: Problem) -> Problem:
    """A problem without a state, whose steps are those of p where no error decides them."""
    control = copy.copy(p.controller)
    control.finite = False
    nothing: Any = lambda t, y, side=None: ()  # noqa: E731
    return replace(p, f=nothing, y0=(), controller=control)


class _Taken(NamedTuple):
    """Steps that were taken again. steps: how many. jumped: `time` is a jump time."""

    steps: Tensor
    time: Tensor
    jumped: MaskLike
    y: Leaves
    carry: Leaves
    ys: Leaves


def differentiable_steps(p: Problem, found: TracedSolution) -> tuple[Leaves, Leaves]:
    """y1 and ys of the steps that `found` has, by a loop that is differentiated."""
    p = _apart(p)
    (ends,), jumps = found.ends, p.stops.jumps
    yes = torch.ones_like(found.at.state.rejected)

    def go(s: _Taken) -> Tensor:
        # at least once, if for a step of no length: with no turns at all the operator's gradients are wrong
        return s.steps < found.at.accepted.clamp(min=1)

    def turn(s: _Taken) -> _Taken:
        t1 = ends.gather(0, s.steps.view(1)).view(())
        jump = False if jumps is None else (jumps & (p.stops.times == t1)).any()
        f = one_sided_field(p, s.time, t1, s.jumped, jump)
        step = p.method.step(StepInput(f, s.time, t1, s.y, s.carry))
        attempt = StepAttempt(p, s.time, t1, s.time, t1, s.y, s.carry, step, yes, yes, 0, s.jumped, jump)
        ys = fill_outputs(p, attempt, outputs_due(p, attempt), s.ys) if s.ys else ()
        carry = tuple(x.clone() for x in next_carry(p, t1, step, jump))  # f may give back a part of its y
        return _Taken(s.steps + 1, t1.clone(), jump, step.y, carry, ys)

    carry = p.method.init(p.f, p.ts[0], p.y0)
    moving = _differentiated((p.y0, carry, blank_outputs(p, None) if len(p.ts) > 2 else ()), p.f(p.ts[0], p.y0))
    jumped = False if jumps is None else ~yes
    last = repeated(go, turn, _Taken(torch.zeros_like(found.at.accepted), p.ts[0], jumped, *moving))
    y1 = found.end.unless_failed(last.y)
    return y1, last.ys or tuple(torch.stack([a, b]) for a, b in zip(p.y0, y1, strict=True))


def _differentiated(tree: Any, slope: Leaves) -> Any:
    """The same values, all attached to a graph: the operator gives no gradient to what begins as a constant."""
    anchor = next(x for x in (*flatten(tree)[0], *slope) if x.requires_grad).reshape(-1)[0]
    anchor = anchor.real if anchor.is_complex() else anchor
    never = torch.zeros_like(anchor, dtype=torch.bool)
    return tree_map(lambda x: x if x.requires_grad else torch.where(never, anchor.to(x.dtype), x), tree)
