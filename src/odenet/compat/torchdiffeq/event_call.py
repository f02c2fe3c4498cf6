"""odeint_event: a solve up to an event, with the gradient of its time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.leaves import Leaves
from ...core.segment_ends import jumps
from ...core.validate import boolean, describe, function
from ...events.event_time import with_event_time
from .inputs import Inputs
from .plain_call import odeint

_STEP_BACK = 1e-5  # of the size of the times: how far before an event it is looked whether the state made it
_CONSTANT_TIME = (
    "event_fn jumps across zero, or only touches it: the time of the event has no derivative, and is taken as a "
    "constant, as in torchdiffeq. If it is to move with the state, let event_fn be continuous, such as y[0] - 0.5 for "
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
    """The time at which event_fn(t, y) crosses zero, 0-d, and the solution at t0 and there; differentiable.

    The gradient reaches y0, t0, the parameters of func and those of event_fn, through the time of the event as well.
    t0: a tensor of one number. odeint_interface: `odeint`, `odeint_adjoint`, or a function like them; kwargs go to it.
    """
    function("odeint_interface", odeint_interface, "odeint(func, y0, t, ...)")
    function("event_fn", event_fn, "event_fn(t, y)")
    boolean("reverse_time", reverse_time)
    if not isinstance(t0, Tensor) or t0.numel() != 1 or not t0.is_floating_point():
        raise TypeError(f"t0 must be a floating point tensor of one time; got {describe(t0)}")
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    whole = isinstance(solution, Tensor)
    last: Leaves = (solution[-1],) if whole else tuple(x[-1] for x in solution)
    if not torch.is_grad_enabled():
        return event_t, solution
    time = event_t.detach()

    def packed(y: Leaves) -> Any:
        return y[0] if whole else y

    with torch.no_grad():
        values = event_fn(time, packed(tuple(x.detach() for x in last))).reshape(-1)
        field = Inputs.checked(func, y0, t, 0.0, 0.0).field()
        span = torch.maximum(time.abs(), start.detach()[0].abs()) * (-1.0 if reverse_time else 1.0)
        slope = _slope_before(lambda s, y: _leaves(field(s, packed(y))), time, span, tuple(x.detach() for x in last))
    which = int(values.abs().argmin())  # of several, the one that is zero here
    direction = torch.full_like(time, -1.0 if reverse_time else 1.0)

    def chosen(s: Tensor, y: Leaves) -> Tensor:
        return event_fn(s, packed(y)).reshape(-1)[which]

    def take_as_constant() -> None:
        here = tuple(x.detach() for x in last)
        before = tuple(x - k * _STEP_BACK * span for x, k in zip(here, slope, strict=True))
        with torch.no_grad():
            if bool(chosen(time, before) != chosen(time, here)):  # else it is the time alone that ends the solve
                warnings.warn(_CONSTANT_TIME, UserWarning, stacklevel=2)

    event_t, ends = with_event_time(chosen, time, last, slope, direction, unless=take_as_constant)
    if whole:
        return event_t, torch.cat([solution[:-1], ends[0][None]])
    return event_t, tuple(torch.cat([x[:-1], end[None]]) for x, end in zip(solution, ends, strict=True))


def _slope_before(f: Callable[[Tensor, Leaves], Leaves], time: Tensor, span: Tensor, y: Leaves) -> Leaves:
    """f at the event; where it jumps there just before it, as the solve that ended there saw it.

    span: the size of the times at hand, with the sign of their direction.
    """
    back = 16 * torch.finfo(time.dtype).eps * span
    slope = f(time, y)
    if not bool(jumps(f, time, y, slope, back, tuple(k * back for k in slope))):
        return slope
    for _ in range(2):  # along the solution, as soon as its slope is known
        slope = f(time - back, y)
        y = tuple(x - k * back for x, k in zip(y, slope, strict=True))
    return slope


def _leaves(y: Any) -> Leaves:
    return (y,) if isinstance(y, Tensor) else tuple(y)
