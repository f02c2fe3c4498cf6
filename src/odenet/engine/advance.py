"""State, and one attempt at a step.

Decisions are made on lanes that are Python numbers for a joint solve and (B,) tensors per sample (core/scalars.py), or
tensors without axes for a joint solve that is traced; what the method computes with (`time`) is always a tensor and
stays attached to the caller's ts. The controller sees detached values only: a step size is a constant of the
differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..control.controller import Attempt, Decision, apply_norm
from ..core.leaves import Leaves, select, without_grad
from ..core.norms import all_finite, finite_on_host, rms, rms_on_host
from ..core.scalars import MaskLike, ScalarLike, any_true, convert_like, mask_like, where
from ..core.status import Status, StepStatus
from ..methods.method import Cache, Step, StepInput
from .one_sided import one_sided_field
from .planned_steps import PlannedStep, StepPlanner
from .problem import Problem
from .step_attempt import State, StepAttempt
from .stop_tracker import StopTracker

_EPS = 2.0**-52
_RUNNING = int(Status.RUNNING)  # a number: the compiler does not compare tensors with members of an enum


def next_carry(p: Problem, time1: Tensor, step: Step, jumps: MaskLike) -> Leaves:
    """The carry for the next step: that of the step, or anew where f jumps."""
    if p.stops.jumps is None or not step.carry:
        return step.carry
    if not p.traced and not any_true(jumps):
        return step.carry
    side = p.direction * jumps
    fresh = p.method.restart(lambda t, y: p.f(t, y, side), time1, step.y, step.carry)
    return select(jumps, fresh, step.carry)


def next_cache(p: Problem, time1: Tensor, step: Step, jumps: MaskLike) -> Cache:
    """The cache for the next attempt: that of the step, or that of a first step where f jumps."""
    if p.stops.jumps is None or not step.cache:
        return step.cache
    with torch.no_grad():
        return select(jumps, p.method.init_cache(time1, step.y), step.cache)


def try_step(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]:
    """Try one step. Lanes that no longer run take one of length zero."""
    if tracker.planner is not None and not tracker.leaf_times and not tracker.event_stops:
        planned = tracker.planner.step(s.t, s.time, s.h, s.stop)
        if planned is not None:
            return _try_planned(p, tracker, tracker.planner, s, planned)
    target = tracker.target(s.stop)
    left = (target - s.t) * tracker.sign
    hit = s.h * p.stops.rule.stretch >= left
    lanes = tracker.host is None
    if lanes:
        running = s.status == _RUNNING
        t1 = torch.where(running, torch.where(hit, target, s.t + tracker.sign * s.h), s.t)
        hit = hit & running
    else:  # the one lane on the host runs, where a step is tried
        running, t1 = None, target if hit else s.t + tracker.sign * s.h
    time1 = tracker.time(s.stop, hit, t1, s.time, s.t)
    jumps = tracker.jumps(s.stop, hit)
    f = p.f if tracker.smooth else one_sided_field(p, s.time, time1, s.jumped, jumps)
    at = StepInput(f, s.time, time1, s.y, s.carry, s.cache, tracker.tolerances, s.rejected, running)
    step = p.method.step(at)
    decision = _unconditional(p, tracker, step) or controller_decision(p, at, s, t1, step)
    accept = decision.accept
    if lanes:
        accept, decision = accept & running, decision._replace(failed=decision.failed & running)
    stop = s.stop if tracker.event_stops is None else tracker.stop_hit(s.stop, hit)
    attempt = StepAttempt(
        p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, jumps, step_input=at
    )
    return attempt, decision


def _try_planned(
    p: Problem, tracker: StopTracker, ahead: StepPlanner, s: State, planned: PlannedStep
) -> tuple[StepAttempt, Decision]:
    """`try_step`, of a step whose times are known."""
    more: list[PlannedStep] = []
    if ahead.together and tracker.always and not (planned.hit or p.f.random or p.attempts_before):
        more = ahead.to_stop(p.max_steps - ahead.tried)
    if more and tracker.always:
        found = _take_planned(p, s, (planned, *more))
        if found is None:  # taken again one by one, to find which
            ahead.one_by_one()
            return try_step(p, tracker, s)
        step, (_, t1, hit, stop, time1, _) = found, more[-1]
        attempt = StepAttempt(p, s.t, t1, s.time, time1, s.y, s.carry, step, True, hit, stop, s.jumped, False)
        attempt.steps += len(more)
        return attempt, tracker.always
    _, t1, hit, stop, time1, span = planned
    step = p.method.planned_step(p.f, span, s.y, s.carry)
    decision = _unconditional(p, tracker, step) or controller_decision(
        p, StepInput(p.f, s.time, time1, s.y, s.carry), s, t1, step
    )
    return StepAttempt(
        p, s.t, t1, s.time, time1, s.y, s.carry, step, decision.accept, hit, stop, s.jumped, False
    ), decision


def _take_planned(p: Problem, s: State, steps: Sequence[PlannedStep]) -> Step | None:
    """The last of these steps; None where one failed. What is not finite stays so in all that come after it."""
    step = Step(s.y, s.carry)
    try:
        for planned in steps:
            step = p.method.planned_step(p.f, planned.span, step.y, step.carry)
    except Exception:  # of an f that does not bear what is not finite: it comes again, or the true reason before it
        return None
    return step if not p.controller.finite or finite_on_host(step.y) else None


def _unconditional(p: Problem, tracker: StopTracker, step: Step) -> Decision | None:
    """The decision on a step of which nothing is to be said but that its end is finite, where that is looked at."""
    if tracker.always is None or not p.controller.finite:
        return tracker.always
    return tracker.always if step.status is None and finite_on_host(step.y) else None


def controller_decision(p: Problem, at: StepInput, s: State, t1: ScalarLike, step: Step) -> Decision:
    """What the controller decides on a step from s."""
    control, order, wish = p.controller, p.method.error_order or 1, step.step_hint
    with without_grad():
        error = p.method.error(at, step) if control.adaptive else None
        ratio = error_ratio(p, s.y, step.y, error)
        if step.status is not None:
            ratio = where(mask_like(step.status == StepStatus.OK, s.t), ratio, math.inf)
        if step.order is not None:
            order = convert_like(step.order, s.t)
        if wish is not None:
            wish = wish._replace(factor=convert_like(wish.factor, s.t), hold=mask_like(wish.hold, s.t))
        return control.decide(Attempt(abs(t1 - s.t), ratio, order, wish, s.rejected), s.controller_state)


def error_ratio(p: Problem, y0: Leaves, y1: Leaves, error: Leaves | None) -> ScalarLike:
    """The error in units of the tolerance; infinite where the new state or the error is not finite."""
    if error is None and not p.controller.finite:
        return 0.0 if p.on_host else torch.zeros_like(p.direction)
    if error is None:
        if p.on_host:
            return 0.0 if finite_on_host(y1) else float("inf")
        return torch.where(all_finite(y1, p.batched), 0.0, torch.inf)
    scaled: list[Tensor] = []
    for e, before, after, r, a in zip(error, y0, y1, p.rtol, p.atol, strict=True):
        top = torch.maximum(before.detach().abs(), after.detach().abs())
        # the same in two operations, and in one
        bound = a + r * top if isinstance(r, Tensor) or isinstance(a, Tensor) else torch.rsub(top, a, alpha=-r)
        # An infinite state makes the bound infinite and error / bound zero or NaN: top - top is then NaN, else zero.
        scaled.append((e.detach() / bound) + (top - top))
    norm = p.controller.norm
    if p.on_host:
        ratio = rms_on_host(tuple(scaled)) if norm is None else float(apply_norm(norm, tuple(scaled)))
        return math.inf if math.isnan(ratio) else ratio
    ratio = rms(tuple(scaled), p.batched) if norm is None else apply_norm(norm, tuple(scaled))
    return torch.nan_to_num(torch.as_tensor(ratio), nan=torch.inf).to(p.ts.dtype)


def accept_or_reject(p: Problem, tracker: StopTracker, s: State, attempt: StepAttempt, decision: Decision) -> State:
    """The state after a move: accepted lanes go on, rejected ones try again smaller, finished and failed ones stay.

    A step cut short by a stop says little about the size of the next, which is then not below that asked for before.
    """
    accept = attempt.accept
    if not isinstance(accept, Tensor):
        return _accept_or_reject_on_host(p, tracker, s, attempt, decision)
    running = s.status == _RUNNING
    t = torch.where(accept, attempt.t1, s.t)
    h = torch.where(accept & attempt.hit, torch.where(decision.h < s.h, s.h, decision.h), decision.h)
    time = torch.where(accept, attempt.time1, s.time)
    memory = tuple(torch.where(running, a, b) for a, b in zip(decision.state, s.controller_state, strict=True))
    jumps = accept & attempt.jumps
    jumped = jumps | (s.jumped & ~accept) if p.stops.jumps is not None else False
    stop = tracker.passed(t, s.stop) if tracker.count > 1 else s.stop + (accept & attempt.hit)
    carry, cache = next_carry(p, attempt.time1, attempt.step, jumps), next_cache(p, attempt.time1, attempt.step, jumps)
    y, carry = select(accept, attempt.step.y, s.y), select(accept, carry, s.carry)
    stuck = ~accept & running & too_small(h, t)
    status = torch.where(accept & (stop >= tracker.count), int(Status.SUCCESS), s.status)
    status = torch.where(decision.failed | stuck, _failure_status(attempt.step), status)
    if attempt.step.step_hint is not None:
        # of a method that gives up: the size at which it did, for the message
        h = torch.where(stuck & (h == 0), (attempt.t1 - s.t).abs(), h)
    return State(t, time, h, y, carry, memory, stop, jumped, status, cache, running & ~accept)


def _accept_or_reject_on_host(
    p: Problem, tracker: StopTracker, s: State, attempt: StepAttempt, decision: Decision
) -> State:
    """`settle` for the one lane on the host, which runs."""
    step, memory = attempt.step, decision.state
    if not attempt.accept:
        failed = decision.failed or too_small(decision.h, s.t)
        status = int(_failure_status(step)) if failed else s.status
        h = decision.h or abs(attempt.t1 - s.t)  # of a method that gives up: the size at which it did, for the message
        return s._replace(h=h, controller_state=memory, status=status, cache=step.cache, rejected=True)
    stop, h, carry, cache = s.stop, decision.h, step.carry, step.cache
    if attempt.hit:
        h, stop = max(h, s.h), tracker.next_stop(attempt.t1, stop)
    if attempt.jumps:
        carry, cache = next_carry(p, attempt.time1, step, True), next_cache(p, attempt.time1, step, True)
    status = (
        int(_failure_status(step)) if decision.failed else s.status if stop < tracker.count else int(Status.SUCCESS)
    )
    return State(attempt.t1, attempt.time1, h, step.y, carry, memory, stop, attempt.jumps, status, cache)


def _failure_status(step: Step) -> int | Tensor:
    """The status of a solve that gives up at this step."""
    if step.status is None:
        return int(Status.STEP_UNDERFLOW)
    unsolved = (step.status == StepStatus.NONLINEAR_FAILED) | (step.status == StepStatus.SINGULAR)
    return torch.where(unsolved, int(Status.NONLINEAR_FAILED), int(Status.STEP_UNDERFLOW))


def too_small(h: ScalarLike, t: ScalarLike) -> MaskLike:
    """Whether a step of size h would be lost in the rounding of t, or at zero is near the smallest of all numbers."""
    return (h <= 4.0 * _EPS * abs(t)) | (h < 1e-307)
