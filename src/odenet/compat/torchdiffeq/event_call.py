"""odeint_event: a solve up to an event, with the gradient of its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.leaves import Leaves
from ...core.segment_ends import jumps_across
from ...core.validate import boolean, describe, function
from ...errors import warn
from ...events.event_time import with_event_time
from .inputs import Inputs
from .plain_call import odeint

_STEP_BACK = 1e-5  # relative to the size of the times: distance before an event at which event_fn is compared
_CONSTANT_TIME = (
    "event_fn jumps across zero, or only touches it: the event time has no derivative and is treated as a "
    "constant, as in torchdiffeq. For a derivative use a continuous event_fn, such as y[0] - 0.5 instead of "
    "(y[0] > 0.5).float() - 0.5"
)


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The time at which event_fn(t, y) crosses zero, 0-d, and the solution at t0 and at that time; differentiable.

    Gradients reach y0, t0, the parameters of func and those of event_fn, also through the event time. t0: a tensor of
    one number. odeint_interface: `odeint`, `odeint_adjoint`, or a compatible function; it gets kwargs.
    """
    function("odeint_interface", odeint_interface, "odeint(func, y0, t, ...)")
    function("event_fn", event_fn, "event_fn(t, y)")
    boolean("reverse_time", reverse_time)
    start = _start_time(t0)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    is_tensor = isinstance(solution, Tensor)
    last: Leaves = (solution[-1],) if is_tensor else tuple(x[-1] for x in solution)
    if not torch.is_grad_enabled():
        return event_t, solution
    time = event_t.detach()

    def pack(y: Leaves) -> Any:
        return y[0] if is_tensor else y

    with torch.no_grad():
        values = event_fn(time, pack(tuple(x.detach() for x in last))).reshape(-1)
        field = Inputs.from_arguments(func, y0, t, 0.0, 0.0).field()
        span = torch.maximum(time.abs(), start.detach()[0].abs()) * (-1.0 if reverse_time else 1.0)
        slope = _slope_before(lambda s, y: _to_leaves(field(s, pack(y))), time, span, tuple(x.detach() for x in last))
    index = int(values.abs().argmin())  # of several values, the one that is zero
    direction = torch.full_like(time, -1.0 if reverse_time else 1.0)

    def event_value(s: Tensor, y: Leaves) -> Tensor:
        return event_fn(s, pack(y)).reshape(-1)[index]

    def warn_constant_time() -> None:
        end = tuple(x.detach() for x in last)
        earlier = tuple(x - k * _STEP_BACK * span for x, k in zip(end, slope, strict=True))
        with torch.no_grad():
            if bool(event_value(time, earlier) != event_value(time, end)):  # else the time alone triggers the event
                warn(_CONSTANT_TIME)

    event_t, ends = with_event_time(event_value, time, last, slope, direction, unless=warn_constant_time)
    if is_tensor:
        return event_t, torch.cat([solution[:-1], ends[0][None]])
    return event_t, tuple(torch.cat([x[:-1], end[None]]) for x, end in zip(solution, ends, strict=True))


def _start_time(t0: object) -> Tensor:
    """t0 as a tensor (1,)."""
    if not isinstance(t0, Tensor) or t0.numel() != 1 or not t0.is_floating_point():
        raise TypeError(f"t0 must be a floating point tensor of one time; got {describe(t0)}")
    return t0.reshape(-1)


def _slope_before(f: Callable[[Tensor, Leaves], Leaves], time: Tensor, span: Tensor, y: Leaves) -> Leaves:
    """f at the event; if f jumps there, f just before it, as the solve saw it.

    span: the size of the times, with the sign of their direction.
    """
    step_back = 16 * torch.finfo(time.dtype).eps * span
    slope = f(time, y)
    if not bool(jumps_across(f, time, y, slope, step_back, tuple(k * step_back for k in slope))):
        return slope
    for _ in range(2):  # the first pass gives the slope, the second one steps back along it
        slope = f(time - step_back, y)
        y = tuple(x - k * step_back for x, k in zip(y, slope, strict=True))
    return slope


def _to_leaves(y: Any) -> Leaves:
    return (y,) if isinstance(y, Tensor) else tuple(y)
