"""Why a solve failed: the cause, the sample, the worst component, and the cure, as the message of an error."""

from __future__ import annotations

from typing import Any

import torch

from ..core.leaves import Leaves, add_scaled, constants, expand_over, real_dtype
from ..core.norms import all_finite, max_abs
from ..core.status import Status
from ..core.torch_func import any_true, outside_transforms, unwrapped, vmapping
from ..errors import (
    BlowUpError,
    MaxStepsError,
    NonFiniteError,
    NonlinearSolveError,
    PileUpError,
    SolveError,
    StepUnderflowError,
)
from .advance import accept_or_reject, try_step
from .loop import Outcome
from .one_sided import field_after
from .problem import Problem
from .step_attempt import State
from .stiffness import CURE, at_stability_bound, can_detect_stiffness
from .stop_tracker import stop_tracker

_HUGE = 1e6  # growth over the initial state (at least 1) beyond which a failure counts as a blow-up
_PROBES = 16  # attempts past the failure, to see whether the problem is stiff
_ERRORS: dict[Status, tuple[type[SolveError], str, str]] = {
    Status.MAX_STEPS: (
        MaxStepsError,
        "max_steps={max_steps} attempted steps did not reach the end",
        "raise max_steps, loosen rtol and atol, or pass on_failure='return' to get the part that was solved; "
        "many tiny steps mean a noisy f, a jump of f that belongs in {control}(jump_ts=...){stiff}",
    ),
    Status.NON_FINITE: (
        NonFiniteError,
        "f returned NaN or infinity",
        "look at f at this t and y for a division by zero, the log or square root of a negative number, a number "
        "too large for the dtype, or a weight that is NaN already",
    ),
    Status.BLOW_UP: (
        BlowUpError,
        "the solution blows up: it grew to {size:.3g}",
        "the ODE has no solution past this time, or f is too steep: end earlier, bound f (tanh, spectral norm), or "
        "with a constant step take a smaller one",
    ),
    Status.STEP_UNDERFLOW: (
        StepUnderflowError,
        "the step size fell below the resolution of time",
        "rtol and atol ask for more than the dtype holds, or f jumps here, or changes within less than the rounding of "
        "t: loosen them, use float64, give the time of the jump in {control}(jump_ts=...), or count time from here",
    ),
    Status.NONLINEAR_FAILED: (
        NonlinearSolveError,
        "the equations of the implicit step could not be solved: {why}",
        "f or its derivative may jump here (give the time in {control}(jump_ts=...)), or its Jacobian may be wrong "
        "(where jacobian= is given, compare it with torch.func.jacrev), or f may not be smooth in y: explicit methods, "
        "such as 'tsit5', solve no equations",
    ),
    Status.PILE_UP: (
        PileUpError,
        "events pile up: the gaps between them shrink like a geometric series, and end before the solve does",
        "end the solve by a terminal event (say, on the speed of a ball that comes to rest) or by max_hits of one, or "
        "add a flag to the state that the reset sets when the motion stops, and that f obeys",
    ),
}


@torch.no_grad()
def refine_status(p: Problem, outcome: Outcome) -> None:
    """Tell the causes of vague failures apart: an f that is not finite, a blow-up, a true step underflow."""
    s = outcome.state
    if p.on_host and s.status in (Status.SUCCESS, Status.EVENT):
        return
    status = torch.as_tensor(s.status)
    vague = (status == Status.STEP_UNDERFLOW) | (status == Status.NON_FINITE)
    if not any_true(vague):
        return
    grown = max_abs(s.y, p.batched) > _HUGE * max_abs(p.y0, p.batched).clamp(min=1.0)
    slope, next_slope = _slopes(p, outcome)
    finite = all_finite((*s.y, *slope, *next_slope), p.batched)
    code = torch.where(grown, int(Status.BLOW_UP), torch.where(finite, status, int(Status.NON_FINITE)))
    # a state that overflowed in one step from an ordinary one, with f finite there, is a blow-up as well
    code = torch.where(finite & (status == Status.NON_FINITE), int(Status.BLOW_UP), code)
    code = torch.where(vague, code, status)
    outcome.state = s._replace(status=int(code) if p.on_host else code)


def _slopes(p: Problem, outcome: Outcome) -> tuple[Leaves, Leaves]:
    """f at the last state, and at the end of an Euler step of the size that failed.

    The first twice where it is finite in no sample, as f may raise for a state that is not finite.
    """
    s = outcome.state
    time, y, end = s.time.detach(), constants(s.y), p.ts.detach()[..., -1]
    h = torch.as_tensor(s.h, dtype=time.dtype, device=time.device)
    h = torch.where(torch.isfinite(h), h, 0.0).clamp(min=0.0)
    length = torch.minimum(torch.maximum(h, 64 * 2.0**-52 * time.abs()), (end - time).abs())
    slope, dt = p.f(time, y), p.direction * length
    if not any_true(all_finite(slope, p.batched)):
        return slope, slope
    return slope, p.f(time + dt, add_scaled(y, expand_over(dt, y), slope))


@torch.no_grad()
def raise_failure(p: Problem, outcome: Outcome, names: list[str] | None = None, backward: str | None = None) -> None:
    """Raise the error of the first sample that failed, if one did. The message has t, dt, the sample and the cure.

    names: paths of the leaves in the caller's y. backward: the name of the gradient whose backward solve this is.
    """
    refine_status(p, outcome)
    s = outcome.state
    if p.on_host and s.status in (Status.SUCCESS, Status.EVENT):
        return
    if vmapping():
        return _raise_vmapped(p, s)
    codes = torch.as_tensor(s.status).reshape(-1)
    failed = ((codes != Status.SUCCESS) & (codes != Status.EVENT)).nonzero().flatten().tolist()
    if not failed:
        return
    status, sample = Status(int(codes[failed[0]])), failed[0] if p.batched else None
    cause, hint = _cause_and_hint(p, s, sample, status, backward)
    t, dt = _number(s.t, sample), _attempted(p, s, sample)
    component, size = _worst(p, outcome, sample, names, status)
    where = "" if sample is None else f", sample {sample}" + (f" ({len(failed)} failed)" if len(failed) > 1 else "")
    solve = f"The backward solve of gradient={backward!r}" if backward else "The solve"
    why = p.method.failure_reason(s.cache, sample) if status == Status.NONLINEAR_FAILED else ""
    cause = cause.format(max_steps=p.max_steps, size=size, why=why)
    message = f"{solve} failed at t={t!r} (dt={dt:.3g}{where}, worst component {component}): {cause}. Hint: {hint}."
    raise _ERRORS[status][0](message, t=t, dt=dt, sample=sample, component=component)


def _cause_and_hint(p: Problem, s: State, sample: int | None, status: Status, backward: str | None) -> tuple[str, str]:
    """Cause and cure of a failure. The cause is a format string with {max_steps}, {size} and {why}."""
    _, cause, hint = _ERRORS[status]
    implicit = p.method.predictive_control
    stiff = (
        ", a fast oscillation, or the rounding of a stiff f: use float64"
        if implicit
        else f", or a stiff f: for that {CURE}"
    )
    hint = hint.format(control="Predictive" if implicit else "PID", stiff=stiff)
    nonfinite_input = _nonfinite_input(p, s, sample, backward is not None) if status == Status.NON_FINITE else None
    cause, hint = nonfinite_input or (cause, hint)
    if status == Status.MAX_STEPS and not p.controller.adaptive:
        hint = "raise max_steps, or take larger steps"
    elif status == Status.NONLINEAR_FAILED and not p.controller.adaptive:
        hint = "take smaller steps, or let an error choose them; " + hint
    elif status == Status.MAX_STEPS and backward is None and _is_stiff(p, s, sample):
        cause += f", because the problem is stiff: longer steps of method={p.method.name!r} are unstable"
        hint = CURE + ". Or raise max_steps"
    elif status == Status.MAX_STEPS and (dtype := _dtype_below_tolerance(p, s, sample)) is not None:
        name, eps = str(dtype).removeprefix("torch."), torch.finfo(dtype).eps
        cause += f", because rtol and atol are below the rounding of {name}, {eps:.1e} of the state"
        hint = f"loosen rtol to {100 * eps:.0e} or more, or use a float64 state"
        hint = hint if dtype != torch.float64 else hint.split(", or")[0]

    blamed = backward is None and status in (Status.MAX_STEPS, Status.STEP_UNDERFLOW, Status.NONLINEAR_FAILED)
    wrong = p.method.diagnose_jacobian(p.f, s.time.detach(), constants(s.y), sample) if blamed else None
    if wrong is not None:
        cause, hint = f"{cause}; {wrong[0]}", wrong[1]
    if backward and nonfinite_input is None:
        exact = "takes the forward steps again and solves nothing backwards"
        names = f"'discrete', which {exact}" if implicit else f"'discrete' or 'reversible', each of which {exact}"
        gauss = "" if backward == "gauss" else ", or 'gauss', which does not solve the state again"
        hint = f"use gradient={names}{gauss}; or {hint}"
    return cause, hint


def _number(x: Any, sample: int | None) -> float:
    """The number of a sample, or of a joint solve. x: float | Tensor."""
    return float(x if sample is None else x[sample])


def _dtype_below_tolerance(p: Problem, s: State, sample: int | None) -> torch.dtype | None:
    """The dtype of a leaf whose rounding is larger than its tolerance."""
    for y, r, a in zip(s.y, p.rtol, p.atol, strict=True):
        size, dtype = y.detach().abs(), real_dtype(y.dtype)
        less = (a + r * size < 4 * torch.finfo(dtype).eps * size).expand(size.shape)
        if bool((less if sample is None else less[sample]).any()):
            return dtype
    return None


def _is_stiff(p: Problem, s: State, sample: int | None) -> bool:
    """True where stability limits the steps that would come next, which are taken to see."""
    if not can_detect_stiffness(p):
        return False
    tracker, count = stop_tracker(p), 0
    time, y, status = s.time.detach(), constants(s.y), int(Status.RUNNING)
    if sample is not None:
        status = torch.where(torch.arange(len(time), device=time.device) == sample, status, int(Status.SUCCESS))
    s = s._replace(time=time, y=y, carry=p.method.init(field_after(p, time, s.jumped), time, y), status=status)
    for _ in range(_PROBES):
        attempt, decision = try_step(p, tracker, s)
        at_bound = at_stability_bound(attempt)
        count += bool(at_bound if sample is None else at_bound[sample])
        s = accept_or_reject(p, tracker, s, attempt, decision)
        if int(_number(s.status, sample)) != Status.RUNNING:
            return False
    return count >= _PROBES // 2


def _attempted(p: Problem, s: State, sample: int | None) -> float:
    """The signed size of the attempt that failed; it ended at the next stop time at the latest."""
    stops = p.stops.times.detach() if sample is None else p.stops.times.detach()[sample]
    left = abs(float(stops[min(int(_number(s.stop, sample)), len(stops) - 1)]) - _number(s.t, sample))
    h = _number(s.h, sample)
    return _number(p.direction, sample) * (left if h > left > 0.0 else h)


def _nonfinite_input(p: Problem, s: State, sample: int | None, backward: bool) -> tuple[str, str] | None:
    """Cause and cure where f is not to blame, as its state or its args hold NaN or infinity."""
    y = s.y if sample is None else tuple(leaf[sample] for leaf in s.y)
    if not bool(all_finite(y, False)):
        if backward:
            return "the gradient that came in holds NaN or infinity", "look at what the loss makes of the solution"
        if _number(p.attempts_before + torch.zeros_like(p.direction), sample) > 0:
            return "a reset gave NaN or infinity", "look at the reset of the event at this t"
        return "y0 holds NaN or infinity", "give a y0 that is finite: a weight that made it may be NaN"
    at_start = s.time == p.ts.detach()[..., 0]
    if backward or not bool(at_start if sample is None else at_start[sample]):
        return None  # f was finite with these args before
    names = p.f.nonfinite_args()
    if not names:
        return None
    _, cause, hint = _ERRORS[Status.NON_FINITE]
    verb = "hold" if len(names) > 1 else "holds"
    return f"{cause}, and {' and '.join(names)} {verb} one", f"give finite args, or {hint}"


def _raise_vmapped(p: Problem, s: State) -> None:
    """`raise_failure` inside `torch.func.vmap`, for the first failure in the order of memory."""
    numbers = [torch.as_tensor(x).detach().to(s.time.dtype) for x in (s.status, s.time, s.h * p.direction)]
    stacked = torch.stack(numbers, -1)
    with outside_transforms():
        rows = unwrapped(stacked).reshape(-1, 3).tolist()
    failed = [i for i, row in enumerate(rows) if int(row[0]) != Status.SUCCESS]
    if not failed:
        return
    status, t, dt = rows[failed[0]]
    kind, cause, hint = _ERRORS[Status(int(status))]
    cause, hint = cause.format(max_steps=p.max_steps, size=_HUGE, why=""), hint.format(control="PID", stiff="")
    where = f", number {failed[0]} of the vmapped solves" + (f" ({len(failed)} failed)" if len(failed) > 1 else "")
    message = f"The solve failed at t={t!r} (dt={dt:.3g}{where}): {cause}. Hint: {hint}."
    raise kind(message, t=t, dt=dt, sample=failed[0], component="y")


def _worst(
    p: Problem, outcome: Outcome, sample: int | None, names: list[str] | None, status: Status
) -> tuple[str, float]:
    """The worst component, and the largest absolute value of the state.

    The worst one has a slope that is not finite, else it changes fastest in units of its tolerance.
    """
    s = outcome.state
    if status == Status.NON_FINITE:
        pairs = zip(*_slopes(p, outcome), strict=True)
        slope = tuple(torch.where(torch.isfinite(following), at, following) for at, following in pairs)
    else:
        slope = p.f(s.time.detach(), constants(s.y))
    best, name, size = -1.0, "y", 0.0
    for i, (k, y) in enumerate(zip(slope, s.y, strict=True)):
        bound = torch.as_tensor(p.atol[i] + p.rtol[i] * y.detach().abs())
        rate = (k.abs() / bound.clamp(min=1e-300)).double().broadcast_to(y.shape)
        rate, y = (rate, y.detach()) if sample is None else (rate[sample], y.detach()[sample])
        rate = torch.where(torch.isfinite(y), torch.nan_to_num(rate, nan=torch.inf), torch.inf)
        flat = int(rate.argmax())
        size = max(size, float(y.abs().max()))
        if float(rate.flatten()[flat]) > best:
            best = float(rate.flatten()[flat])
            index = [int(j) for j in torch.unravel_index(torch.tensor(flat), rate.shape)] if rate.ndim else []
            path = names[i] if names and i < len(names) else ("" if len(s.y) == 1 else f"[leaf {i}]")
            name = f"y{path}" + (f"[{', '.join(map(str, index))}]" if index else "")
    return name, size
