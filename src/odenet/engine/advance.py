"""One attempt at a step (`try_step`), and the state after it (`accept_or_reject`).

Both exist twice: with Python numbers for an eager joint solve, and with tensors, of shape (B,) per sample and () for a
joint solve that is traced. The method computes with `time`, a tensor attached to the caller's ts in both. The
controller sees detached values only: a step size is a constant of the differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..control.controller import Attempt, Decision, apply_norm
from ..core.field_protocols import SolveField
from ..core.leaves import Leaves, select, without_grad
from ..core.norms import all_finite, finite_on_host, rms, rms_on_host
from ..core.scalars import MaskLike, ScalarLike, any_true, convert_like, where
from ..core.status import Status, StepStatus
from ..methods.method import Cache, Method, Step, StepInput
from .one_sided import one_sided_field
from .planned_steps import PlannedStep, StepPlanner
from .problem import Problem
from .step_attempt import BatchAttempt, BatchState, HostAttempt, HostState, State, StepAttempt
from .stop_tracker import BatchStopTracker, HostStopTracker, StopTracker

_EPS = 2.0**-52
_RUNNING = int(Status.RUNNING)  # a number: the compiler does not compare tensors with members of an enum


@overload
def try_step(p: Problem, tracker: HostStopTracker, s: HostState) -> tuple[HostAttempt, Decision]: ...
@overload
def try_step(p: Problem, tracker: BatchStopTracker, s: BatchState) -> tuple[BatchAttempt, Decision]: ...
@overload
def try_step(p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]: ...
def try_step(p: Problem, tracker: Any, s: Any) -> tuple[StepAttempt, Decision]:
    """Try one step from s, and let the controller decide on it. The tracker and s are of one kind."""
    if isinstance(tracker, HostStopTracker):
        return _try_on_host(p, tracker, s)
    return _try_in_batch(p, tracker, s)


def _try_on_host(p: Problem, tracker: HostStopTracker, s: HostState) -> tuple[HostAttempt, Decision]:
    planner = tracker.planner
    if planner is not None and not tracker.leaf_times and not tracker.event_stop:
        planned = planner.step(s.t, s.time, s.h, s.stop)
        if planned is not None:
            return _try_planned(p, tracker, planner, s, planned)
    target = tracker.times[s.stop]
    hit = s.h * p.stops.rule.stretch >= (target - s.t) * tracker.sign
    t1 = target if hit else s.t + tracker.sign * s.h
    time1 = tracker.end_time(s.stop, hit, t1, s.time)
    jumps = hit and tracker.jumps is not None and tracker.jumps[s.stop]
    f = p.f if tracker.two_sided else one_sided_field(p, s.time, time1, s.jumped, jumps)
    at = StepInput(f, s.time, time1, s.y, s.carry, s.cache, tracker.tolerances, s.rejected)
    step = p.method.step(at)
    decision = _unconditional(p, tracker, step) or controller_decision(p, at, s, t1, step)
    accept: Any = decision.accept  # a bool: the controller was given Python numbers
    stop = -1 if tracker.event_stop and hit else s.stop
    attempt = StepAttempt(
        p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, jumps, step_input=at
    )
    return attempt, decision


def _try_in_batch(p: Problem, tracker: BatchStopTracker, s: BatchState) -> tuple[BatchAttempt, Decision]:
    """Samples that no longer run take a step of length zero."""
    target = tracker.target(s.stop)
    hit = s.h * p.stops.rule.stretch >= (target - s.t) * tracker.sign
    running = s.status == _RUNNING
    t1 = torch.where(running, torch.where(hit, target, s.t + tracker.sign * s.h), s.t)
    hit = hit & running
    time1 = tracker.end_time(s.stop, hit, t1, s.time)
    jumps = tracker.jumps_at(s.stop, hit)
    f = p.f if tracker.two_sided else one_sided_field(p, s.time, time1, s.jumped, jumps)
    at = StepInput(f, s.time, time1, s.y, s.carry, s.cache, tracker.tolerances, s.rejected, running)
    step = p.method.step(at)
    decision = controller_decision(p, at, s, t1, step)
    accept, decision = decision.accept & running, decision._replace(failed=decision.failed & running)
    stop = s.stop if tracker.event_stops is None else torch.where(tracker.event_stops & hit, -1, s.stop)
    attempt = StepAttempt(
        p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, jumps, step_input=at
    )
    return attempt, decision


def _try_planned(
    p: Problem, tracker: HostStopTracker, planner: StepPlanner, s: HostState, planned: PlannedStep
) -> tuple[HostAttempt, Decision]:
    """`try_step` for a step whose times are known; for all steps up to the next stop time if observers allow it."""
    following: list[PlannedStep] = []
    unconditional = tracker.unconditional
    if planner.skip_between_stops and unconditional and not (planned.hit or p.f.random or p.attempts_before):
        following = planner.to_stop(p.max_steps - planner.attempts)
    if following and unconditional:
        step = _take_planned(p, s, (planned, *following))
        if step is None:  # one of them failed: taken again one by one to find which
            planner.one_by_one()
            return _try_on_host(p, tracker, s)
        _, t1, hit, stop, time1, _ = following[-1]
        attempt = StepAttempt(p, s.t, t1, s.time, time1, s.y, s.carry, step, True, hit, stop, s.jumped, False)
        attempt.steps += len(following)
        return attempt, unconditional
    _, t1, hit, stop, time1, span = planned
    step = p.method.planned_step(p.f, span, s.y, s.carry)
    decision = _unconditional(p, tracker, step) or controller_decision(
        p, StepInput(p.f, s.time, time1, s.y, s.carry), s, t1, step
    )
    accept: Any = decision.accept
    return StepAttempt(p, s.t, t1, s.time, time1, s.y, s.carry, step, accept, hit, stop, s.jumped, False), decision


def _take_planned(p: Problem, s: State, steps: Sequence[PlannedStep]) -> Step | None:
    """The last of these steps; None where one failed. NaN and inf are looked for at the end only, as they persist."""
    step = Step(s.y, s.carry)
    try:
        for planned in steps:
            step = p.method.planned_step(p.f, planned.span, step.y, step.carry)
    except Exception:  # f may raise because a state before was not finite: the same steps one by one tell
        return None
    return step if not p.controller.finite or finite_on_host(step.y) else None


def _unconditional(p: Problem, tracker: HostStopTracker, step: Step) -> Decision | None:
    """The controller's one decision on every step that ends in finite values; None where it must be asked."""
    if tracker.unconditional is None or not p.controller.finite:
        return tracker.unconditional
    return tracker.unconditional if step.status is None and finite_on_host(step.y) else None


def controller_decision(p: Problem, at: StepInput, s: State, t1: ScalarLike, step: Step) -> Decision:
    """The controller's decision on a step from s to t1."""
    control, order, hint = p.controller, p.method.error_order or 1, step.step_hint
    with without_grad():
        error = p.method.error(at, step) if control.adaptive else None
        ratio = error_ratio(p, s.y, step.y, error)
        if step.status is not None:
            solved = step.status == StepStatus.OK
            ratio = where(solved if isinstance(s.t, Tensor) else bool(solved), ratio, math.inf)
        if step.order is not None:
            order = convert_like(step.order, s.t)
        if hint is not None:
            hint = hint._replace(factor=convert_like(hint.factor, s.t), hold=convert_like(hint.hold, s.t))
        return control.decide(Attempt(abs(t1 - s.t), ratio, order, hint, s.rejected), s.controller_state)


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
        # rsub fuses a + r * top
        bound = a + r * top if isinstance(r, Tensor) or isinstance(a, Tensor) else torch.rsub(top, a, alpha=-r)
        # An infinite state makes the bound infinite and error / bound zero or NaN: top - top is then NaN, else zero.
        scaled.append((e.detach() / bound) + (top - top))
    norm = p.controller.norm
    if p.on_host:
        ratio = rms_on_host(tuple(scaled)) if norm is None else float(apply_norm(norm, tuple(scaled)))
        return math.inf if math.isnan(ratio) else ratio
    ratio = rms(tuple(scaled), p.batched) if norm is None else apply_norm(norm, tuple(scaled))
    return torch.nan_to_num(torch.as_tensor(ratio), nan=torch.inf).to(p.ts.dtype)


@overload
def accept_or_reject(
    p: Problem, tracker: BatchStopTracker, s: BatchState, attempt: BatchAttempt, decision: Decision
) -> BatchState: ...
@overload
def accept_or_reject(p: Problem, tracker: StopTracker, s: State, attempt: StepAttempt, decision: Decision) -> State: ...
def accept_or_reject(p: Problem, tracker: Any, s: Any, attempt: Any, decision: Decision) -> State:
    """The state after an attempt: accepted samples go on, rejected ones try a smaller step, ended ones keep theirs.

    A step that a stop time cut short says little about the next size, which is then at least the size before the cut.
    """
    if isinstance(tracker, HostStopTracker):
        return _accept_or_reject_on_host(p, tracker, s, attempt, decision)
    return _accept_or_reject_in_batch(p, tracker, s, attempt, decision)


def _accept_or_reject_on_host(
    p: Problem, tracker: HostStopTracker, s: HostState, attempt: HostAttempt, decision: Decision
) -> HostState:
    step = attempt.step
    h: Any = decision.h  # a float: the controller was given Python numbers
    if not attempt.accept:
        failed = decision.failed or too_small(h, s.t)
        status = int(_failure_status(step)) if failed else s.status
        h = h or abs(attempt.t1 - s.t)  # where the method gave up: the size at which it did, for the message
        return s._replace(h=h, controller_state=decision.state, status=status, cache=step.cache, rejected=True)
    stop, carry, cache = s.stop, step.carry, step.cache
    if attempt.hit:
        h, stop = max(h, s.h), tracker.next_stop(attempt.t1, stop)
    if attempt.jumps:
        carry, cache = next_carry(p, attempt.time1, step, True), next_cache(p, attempt.time1, step, True)
    if decision.failed:
        status = int(_failure_status(step))
    else:
        status = s.status if stop < tracker.count else int(Status.SUCCESS)
    return State(attempt.t1, attempt.time1, h, step.y, carry, decision.state, stop, attempt.jumps, status, cache, False)


def _accept_or_reject_in_batch(
    p: Problem, tracker: BatchStopTracker, s: BatchState, attempt: BatchAttempt, decision: Decision
) -> BatchState:
    accept, step = attempt.accept, attempt.step
    running = s.status == _RUNNING
    t = torch.where(accept, attempt.t1, s.t)
    h = torch.where(accept & attempt.hit, torch.where(decision.h < s.h, s.h, decision.h), decision.h)
    time = torch.where(accept, attempt.time1, s.time)
    controller_state = tuple(
        torch.where(running, new, old) for new, old in zip(decision.state, s.controller_state, strict=True)
    )
    jumps = accept & attempt.jumps
    jumped = jumps | (s.jumped & ~accept) if p.stops.jumps is not None else False
    stop = tracker.following_stop(t, s.stop) if tracker.count > 1 else s.stop + (accept & attempt.hit)
    carry, cache = next_carry(p, attempt.time1, step, jumps), next_cache(p, attempt.time1, step, jumps)
    y, carry = select(accept, step.y, s.y), select(accept, carry, s.carry)
    stuck = ~accept & running & too_small(h, t)
    status = torch.where(accept & (stop >= tracker.count), int(Status.SUCCESS), s.status)
    status = torch.where(decision.failed | stuck, _failure_status(step), status)
    if step.step_hint is not None:
        # where the method gave up: the size at which it did, for the message
        h = torch.where(stuck & (h == 0), (attempt.t1 - s.t).abs(), h)
    return State(t, time, h, y, carry, controller_state, stop, jumped, status, cache, running & ~accept)


def next_carry(p: Problem, time1: Tensor, step: Step, jumps: MaskLike) -> Leaves:
    """The carry for the next step: that of this step, begun anew for samples where f jumps at time1."""
    if p.stops.jumps is None or not step.carry:
        return step.carry
    if not p.traced and not any_true(jumps):
        return step.carry
    return restarted_carry(p.method, p.f, p.direction, time1, step, jumps)


def restarted_carry(
    method: Method, f: SolveField, direction: Tensor, time1: Tensor, step: Step, jumps: MaskLike
) -> Leaves:
    """The carry of a step, begun anew by f just behind time1 where it jumps there."""
    if not step.carry:
        return step.carry
    side = direction * jumps
    restarted = method.restart(lambda t, y: f(t, y, side), time1, step.y, step.carry)
    return select(jumps, restarted, step.carry)


def next_cache(p: Problem, time1: Tensor, step: Step, jumps: MaskLike) -> Cache:
    """The cache for the next attempt: that of this step, that of a first step for samples where f jumps at time1."""
    if p.stops.jumps is None or not step.cache:
        return step.cache
    with torch.no_grad():
        return select(jumps, p.method.init_cache(time1, step.y), step.cache)


def _failure_status(step: Step) -> int | Tensor:
    """The status of a solve that gives up at this step."""
    if step.status is None:
        return int(Status.STEP_UNDERFLOW)
    unsolved = (step.status == StepStatus.NONLINEAR_FAILED) | (step.status == StepStatus.SINGULAR)
    return torch.where(unsolved, int(Status.NONLINEAR_FAILED), int(Status.STEP_UNDERFLOW))


def too_small(h: ScalarLike, t: ScalarLike) -> MaskLike:
    """True where t + h rounds to t; at t = 0, where h comes near the smallest normal number."""
    return (h <= 4.0 * _EPS * abs(t)) | (h < 1e-307)
