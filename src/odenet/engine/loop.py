"""The loop: repeat the attempt until every sample has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control.controller import Decision
from ..control.first_step import initial_step_size
from ..core.leaves import Leaves, constants, select, without_grad
from ..core.scalars import MaskLike, ScalarLike, any_true, convert_like, detach, full_like, isfinite, where
from ..core.status import Status
from .advance import accept_or_reject, try_step
from .compaction import BatchCompactor
from .counters import Counters
from .observer import Observer
from .one_sided import one_sided_field
from .problem import Problem
from .step_attempt import State, StepAttempt, has_nonfinite
from .stop_tracker import StopTracker
from .vmapped import replace_stuck

Count = int | Tensor
TryStep = Callable[[Problem, StopTracker, State], tuple[StepAttempt, Decision]]
_plain = try_step


@dataclass
class FoundEvents:
    """The events that ended a solve, for each of its L lanes (one, where they share their steps).

    t: their times, (L,). value: which of the m values of the event functions, (L,), -1 where there was none. signs:
    those of all values just after, (L, m). zero: what the value that crossed is to be taken for zero up to, (L,). peak:
    how large it was since the start, (L,). jumped: it has jumped across zero, so its value there says nothing, (L,).
    bends: f jumps there, (L,). onwards: what leads from the state there to one just past it on the solution.
    """

    t: Tensor
    value: Tensor
    signs: Tensor
    zero: Tensor
    peak: Tensor
    jumped: Tensor
    bends: Tensor
    onwards: Leaves


@dataclass
class Outcome:
    """The end of a solve. Counts are ints, or (B,) tensors per sample. found: the events that ended it.

    njev, nlu: Jacobians and factorisations of an implicit method.
    """

    state: State
    nfe: Count
    accepted: Count
    rejected: Count
    njev: Count = 0
    nlu: Count = 0
    events: FoundEvents | None = None


def start(p: Problem, tracker: StopTracker) -> State:
    """The state at ts[0]: carry, first step size, first stop. Lanes of no length have ended already."""
    time = p.ts[..., 0]
    now = time.detach()
    t = convert_like(now, tracker.sign)
    stop = tracker.next_stop(t, 0 if p.on_host else torch.zeros_like(now, dtype=torch.int64))
    moving = stop < tracker.count
    idle = not p.traced and not any_true(moving)
    carry = () if idle else p.method.init(p.f, time, p.y0)
    h = full_like(t, 1.0) if idle else first_step_size(p, tracker, now, stop, carry)
    status = where(isfinite(h), int(Status.RUNNING), int(Status.NON_FINITE))
    status = where(moving, status, int(Status.SUCCESS))
    with without_grad():
        cache = () if idle else p.method.init_cache(now, constants(p.y0))
    nowhere = moving & False
    jumped = nowhere if p.stops.jumps is not None else False
    return State(t, time, h, p.y0, carry, p.controller.init_state(h), stop, jumped, status, cache, nowhere)


def guesses_first_step(p: Problem) -> bool:
    """Whether the engine guesses the first step size."""
    return p.controller.adaptive and getattr(p.controller, "first_step", None) is None


def first_step_size(p: Problem, tracker: StopTracker, time: Tensor, stop: ScalarLike, carry: Leaves) -> ScalarLike:
    """The first step size: the controller's, from the engine's guess where it has none of its own."""
    control, h = p.controller, full_like(tracker.sign, 1.0)
    if guesses_first_step(p):
        span = tracker.target(stop) - convert_like(time, tracker.sign)
        y0 = constants(p.y0)
        f0 = constants(carry) if p.method.carry_is_slope else ()
        with without_grad():
            f0 = f0 or p.f(time, y0)
            h = initial_step_size(p.f, time, span, y0, f0, p.method.order, p.rtol, p.atol, control.norm)
        h = where(span == 0, 1.0, h)
    return detach(control.initial_step(h))  # f may have brought a forward-mode tangent in


def run(p: Problem, observers: Sequence[Observer], try_step: TryStep = try_step) -> Outcome:
    """Repeat the attempt until every sample has ended, and show each to the observers.

    attempt: how a step is tried; who wants more of it than the move gives their own, which calls the plain one.
    The one lane of a joint solve is in Python numbers, so that there is one look at the error a step. Lanes in tensors
    take their attempts side by side, and are accepted or rejected by `where`; inside `torch.func.vmap` the host looks
    through the transforms at what holds for any of them.
    """
    tracker, before, y0 = StopTracker(p), p.f.calls, p.y0
    if tracker.planner is not None:
        tracker.planner.together = try_step is _plain and not any(observer.every_step for observer in observers)
    s = start(p, tracker)
    stuck = s.status == Status.NON_FINITE
    tally = Counters.of(s.status, p.f.calls - before)
    if p.traced and torch.is_grad_enabled() and any_true(stuck):
        p = replace_stuck(p, stuck)
        s = start(p, tracker)
        s = s._replace(status=where(stuck, int(Status.NON_FINITE), s.status))
    leaving, awaited = BatchCompactor(p), any(observer.whole_batch_first for observer in observers)
    while any_true(running := s.status == Status.RUNNING):
        spent = running & (tally.accepted + tally.rejected + p.attempts_before >= p.max_steps)
        if any_true(spent):
            s = s._replace(status=where(spent, int(Status.MAX_STEPS), s.status))
            continue
        if leaving.possible and not awaited and p.f.checked and leaving.due(running, p.compaction_threshold):
            fewer = leaving.compact(p, s, tally, running)
            if fewer is not None:
                p, s, tally = fewer
                tracker, running = StopTracker(p), s.status == Status.RUNNING
        s, tally = _iteration(p, tracker, s, tally, running, observers, try_step)
        awaited = awaited and not any_true(tally.accepted > 0)
    s, tally = leaving.restore(p, s, tally)
    if y0 is not p.y0 and p.traced:
        s = s._replace(y=select(stuck, y0, s.y))
    return Outcome(s, *tally)


def _iteration(
    p: Problem,
    tracker: StopTracker,
    s: State,
    tally: Counters,
    running: MaskLike,
    observers: Sequence[Observer],
    try_step: TryStep,
) -> tuple[State, Counters]:
    """One attempt, seen and settled."""
    before = p.f.calls
    attempt, decision = try_step(p, tracker, s)
    tried, known = p.f.calls - before, bool(attempt.known_polynomial)
    if tracker.host is None and (p.traced or torch.is_grad_enabled()):
        if any_true(attempt.accept):
            attempt = mask_nonfinite(p, attempt)
        else:  # nothing of it is used, and so nothing of it stays in a graph
            attempt.time1, attempt.step = attempt.time0, attempt.step._replace(y=attempt.y, carry=attempt.carry)
    before = p.f.calls
    for observer in observers:
        observer.observe(attempt)
    seen, before = p.f.calls - before, p.f.calls
    s = accept_or_reject(p, tracker, s, attempt, decision)
    if attempt.ends is not False:
        s = s._replace(status=where(attempt.ends, int(Status.EVENT), s.status))
    return s, tally.after(p, attempt, running, s.rejected, tried, seen, p.f.calls - before, known)


def mask_nonfinite(p: Problem, attempt: StepAttempt) -> StepAttempt:
    """The move again, with rejected lanes standing still, where a rejected lane has a value that is not finite.

    Autograd would meet that value with a cotangent of zero, and zero times infinity is NaN, also for the parameters.
    """
    if not has_nonfinite(attempt, ~attempt.accept):
        return attempt
    time1 = torch.where(attempt.accept, attempt.time1, attempt.time0)
    f = one_sided_field(p, attempt.time0, time1, attempt.jumped, attempt.jumps & attempt.accept)
    step, tried = p.method.step(attempt.input._replace(f=f, t1=time1)), attempt.step
    keep = select(attempt.accept, step.y, attempt.y)
    attempt.time1, attempt.step = time1, tried._replace(y=keep, carry=step.carry, stages=step.stages)
    attempt.forget_polynomial()
    return attempt
