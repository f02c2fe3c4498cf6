"""The loop: repeat the attempt at a step until every sample has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from ..control.controller import Decision
from ..control.first_step import initial_step_size
from ..core.field_protocols import Field
from ..core.leaves import Leaves, constants, select, without_grad
from ..core.scalars import MaskLike, ScalarLike, any_true, convert_like, detach, full_like, isfinite, where
from ..core.status import Status
from .advance import accept_or_reject, try_step
from .compaction import BatchCompactor
from .counters import Counters
from .observer import Observer
from .one_sided import field_after, one_sided_field
from .problem import Problem
from .step_attempt import BatchState, State, StepAttempt, has_nonfinite
from .stop_tracker import BatchStopTracker, HostStopTracker, StopTracker, stop_tracker
from .vmapped import replace_failed_starts

Count = int | Tensor
TryStep = Callable[[Problem, StopTracker, State], tuple[StepAttempt, Decision]]
_plain_try_step: TryStep = try_step


@dataclass
class LocatedEvents:
    """The events that ended a solve: one for each of its L samples, with L = 1 in a joint solve.

    t: time of the event, (L,). value_index: the one of the m event values that crossed zero, (L,); -1 for no event.
    signs: of all m values just after the event, (L, m). zero_tolerance: up to this size the value that crossed counts
    as zero, (L,). peak: its largest absolute value since the start, (L,). discontinuous: it jumped across zero, so its
    size at the event means nothing, (L,). f_jumps: f jumps at the event, (L,). displacement: leaves; from the state at
    the event to one just past it on the solution.
    """

    t: Tensor
    value_index: Tensor
    signs: Tensor
    zero_tolerance: Tensor
    peak: Tensor
    discontinuous: Tensor
    f_jumps: Tensor
    displacement: Leaves


@dataclass
class Outcome:
    """How a solve ended: its last state and its counts, ints or (B,) per sample. events: the events that ended it.

    njev, nlu: Jacobians and factorisations of an implicit method.
    """

    state: State
    nfe: Count
    accepted: Count
    rejected: Count
    njev: Count = 0
    nlu: Count = 0
    events: LocatedEvents | None = None


@overload
def start(p: Problem, tracker: BatchStopTracker) -> BatchState: ...
@overload
def start(p: Problem, tracker: StopTracker) -> State: ...
def start(p: Problem, tracker: Any) -> State:
    """The state at ts[0], with the first step size. Samples whose time span is empty have ended already."""
    time = p.ts[..., 0]
    now = time.detach()
    t = convert_like(now, tracker.sign)
    stop = tracker.next_stop(t, 0 if p.on_host else torch.zeros_like(now, dtype=torch.int64))
    unfinished: MaskLike = stop < tracker.count
    empty = not p.traced and not any_true(unfinished)
    jumped = bool(p.stops.jump_at(now)) if p.on_host else p.stops.jump_at(now)
    f = field_after(p, now, jumped)
    carry = () if empty else p.method.init(f, time, p.y0)
    h = full_like(t, 1.0) if empty else first_step_size(p, f, tracker, now, stop, carry)
    status = where(isfinite(h), int(Status.RUNNING), int(Status.NON_FINITE))
    status = where(unfinished, status, int(Status.SUCCESS))
    with without_grad():
        cache = () if empty else p.method.init_cache(now, constants(p.y0))
    rejected = unfinished & False
    return State(t, time, h, p.y0, carry, p.controller.init_state(h), stop, jumped, status, cache, rejected)


def guesses_first_step(p: Problem) -> bool:
    """True where the engine guesses the first step size, as the controller sets none."""
    return p.controller.adaptive and getattr(p.controller, "first_step", None) is None


def first_step_size(p: Problem, f: Field, tracker: StopTracker, time: Tensor, stop: Count, carry: Leaves) -> ScalarLike:
    """The first step size: the controller's, or made by it from the engine's guess. f: as at the start."""
    control, h = p.controller, full_like(tracker.sign, 1.0)
    if guesses_first_step(p):
        span = tracker.target(stop) - convert_like(time, tracker.sign)
        y0 = constants(p.y0)
        f0 = constants(carry) if p.method.carry_is_slope else ()
        with without_grad():
            f0 = f0 or f(time, y0)
            h = initial_step_size(f, time, span, y0, f0, p.method.order, p.rtol, p.atol, control.norm)
        h = where(span == 0, 1.0, h)
    return detach(control.initial_step(h))  # f may have brought in a tangent of forward mode


def run(p: Problem, observers: Sequence[Observer], try_step: TryStep = try_step) -> Outcome:
    """Solve p, and show every attempt to the observers.

    try_step: the step function; pass a wrapper to observe or change a step.
    A joint solve holds its numbers on the host, and reads back one number a step, the error. Samples with steps of
    their own take their attempts together, and are accepted or rejected by `where`; inside `torch.func.vmap` the host
    looks through the transforms at conditions that hold for any of them.
    """
    tracker, before, y0 = stop_tracker(p), p.f.calls, p.y0
    if isinstance(tracker, HostStopTracker) and tracker.planner is not None:
        every_step = any(observer.every_step for observer in observers)
        tracker.planner.skip_between_stops = try_step is _plain_try_step and not every_step
    s = start(p, tracker)
    failed_at_start = s.status == Status.NON_FINITE
    counters = Counters.initial(s.status, p.f.calls - before)
    if p.traced and torch.is_grad_enabled() and isinstance(failed_at_start, Tensor) and any_true(failed_at_start):
        p = replace_failed_starts(p, failed_at_start)
        s = start(p, tracker)
        s = s._replace(status=where(failed_at_start, int(Status.NON_FINITE), s.status))
    compactor, keep_whole = BatchCompactor(p), any(observer.whole_batch_first for observer in observers)
    while any_true(running := s.status == Status.RUNNING):
        spent = running & (counters.accepted + counters.rejected + p.attempts_before >= p.max_steps)
        if spent is not False and any_true(spent):
            s = s._replace(status=where(spent, int(Status.MAX_STEPS), s.status))
            continue
        if compactor.possible and not keep_whole and p.f.checked:
            smaller = compactor.compact(p, s, counters, running)
            if smaller is not None:
                p, s, counters = smaller
                tracker, running = stop_tracker(p), s.status == Status.RUNNING
        s, counters = _iteration(p, tracker, s, counters, running, observers, try_step)
        keep_whole = keep_whole and not any_true(counters.accepted > 0)
    s, counters = compactor.restore(p, s, counters)
    if y0 is not p.y0 and p.traced:
        s = s._replace(y=select(failed_at_start, y0, s.y))
    return Outcome(s, *counters)


def _iteration(
    p: Problem,
    tracker: StopTracker,
    s: State,
    counters: Counters,
    running: MaskLike,
    observers: Sequence[Observer],
    try_step: TryStep,
) -> tuple[State, Counters]:
    """One attempt: try the step, show it to the observers, accept or reject it, count."""
    before = p.f.calls
    attempt, decision = try_step(p, tracker, s)
    attempt_calls, polynomial_known = p.f.calls - before, bool(attempt.known_polynomial)
    accept = attempt.accept
    if isinstance(accept, Tensor) and (p.traced or torch.is_grad_enabled()):
        if any_true(accept):
            mask_nonfinite(p, attempt, accept)
        else:  # nothing of the step is used, so none of it may stay in a graph
            attempt.time1, attempt.step = attempt.time0, attempt.step._replace(y=attempt.y, carry=attempt.carry)
    before = p.f.calls
    for observer in observers:
        observer.observe(attempt)
    observer_calls, before = p.f.calls - before, p.f.calls
    s = accept_or_reject(p, tracker, s, attempt, decision)
    if attempt.ends is not False:
        s = s._replace(status=where(attempt.ends, int(Status.EVENT), s.status))
    restart_calls = p.f.calls - before
    return s, counters.after(
        p, attempt, running, s.rejected, attempt_calls, observer_calls, restart_calls, polynomial_known
    )


def mask_nonfinite(p: Problem, attempt: StepAttempt, accept: Tensor) -> None:
    """If a rejected sample has a value that is not finite, take the step again, with length zero for rejected samples.

    Autograd would meet that value with a cotangent of zero, and zero times infinity is NaN, also for the parameters.
    """
    if not has_nonfinite(attempt, ~accept):
        return
    time1 = torch.where(accept, attempt.time1, attempt.time0)
    f = one_sided_field(p, attempt.time0, time1, attempt.jumped, attempt.jumps & accept)
    step, first = p.method.step(attempt.input._replace(f=f, t1=time1)), attempt.step
    y = select(accept, step.y, attempt.y)
    attempt.time1, attempt.step = time1, first._replace(y=y, carry=step.carry, stages=step.stages)
    attempt.forget_polynomial()
