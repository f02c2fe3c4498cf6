"""The time of an event and the state there, differentiable by the implicit function theorem.

With g the event function, g(t, y(t)) = 0 gives dt = -dg / (g_t + g_y f), where dg is the change of g at a fixed time:
by the state there, by args, and by parameters of g. R. T. Q. Chen, B. Amos, M. Nickel, Learning neural event functions
for ordinary differential equations, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves, add_scaled, as_graph_inputs, dot, expand_over
from ..core.scalars import MaskLike
from ..gradients.custom_vjp import once_differentiable

CrossingValue = Callable[[Tensor, Leaves], Tensor]
"""(t, y) -> the one event value that was zero, () or (B,)."""

_ONLY_FIRST = (
    "a second derivative through the time of an event is refused, as it has first derivatives only: pass "
    "Event(constant_time=True), whose time is a constant, for higher ones"
)
_NO_RATE = (
    "the time of an event has no derivative where the event function does not change along the solution: it jumps "
    "across zero there, or only touches it. Event(constant_time=True) takes the time as a constant"
)
_BACK = (4.0, 16.0, 64.0, 256.0, 1024.0)  # units in the last place


def with_event_time(
    value: CrossingValue, time: Tensor, y: Leaves, slope: Leaves, direction: Tensor, samples: MaskLike = True,
    unless: Callable[[], object] | None = None,
) -> tuple[Tensor, Leaves]:  # fmt: skip
    """`time` and y there, differentiable. y: attached as the state at a fixed time. slope: f(time, y).

    time: (), or (B,) where `samples` is the mask of those that have an event; the others' times and states stay as they
    are. direction: +1 where time increases, else -1, in the shape of time. unless: called in the backward pass where
    the time has no derivative, and is then taken as a constant; by default that is a RuntimeError.
    First derivatives only: f and the rate of g count as constants in a second derivative, so that is refused when it is
    taken.
    """
    time = time.detach()
    back = torch.zeros_like(time)
    rate = _rate(value, time, y, slope)
    eps = max(torch.finfo(x.dtype).eps for x in (time, *y))
    for units in _BACK:  # a value that stays zero after the event, such as relu(y), has its rate just before it
        constant = samples & (rate == 0)
        if not bool(constant.any()):
            break
        back = torch.where(constant, units * eps * time.abs() * direction, back)
        rate = torch.where(constant, _rate(value, *_earlier(time, y, slope, back), slope), rate)
    if isinstance(samples, Tensor):
        rate = torch.where(samples, rate, torch.inf)  # the derivative of the others' times is zero
    at = _earlier(time, y, slope, back) if bool((back != 0).any()) else (time, y)
    out = _EventTime.apply(value(*at), rate, time, [k.detach() for k in slope], unless, *y)
    return out[0], tuple(out[1:])


def _earlier(time: Tensor, y: Leaves, slope: Leaves, back: Tensor) -> tuple[Tensor, Leaves]:
    """Time and state on the solution at `time - back`."""
    return time - back, add_scaled(y, expand_over(-back, y), tuple(k.detach() for k in slope))


def _rate(value: CrossingValue, time: Tensor, y: Leaves, slope: Leaves) -> Tensor:
    """dg/dt along the solution, in the shape of time. The value of a sample depends on that sample alone."""
    batched = time.ndim == 1
    with torch.enable_grad():
        t, at = time.detach().requires_grad_(), as_graph_inputs(y)
        g = value(t, at)
        if not g.requires_grad:
            return torch.zeros_like(time)
        grads: list[Tensor | None] = list(torch.autograd.grad(g.sum(), (t, *at), allow_unused=True))
    by_t, by_y = grads[0], grads[1:]
    rate = torch.zeros_like(time) if by_t is None else by_t
    for d, k in zip(by_y, slope, strict=True):
        if d is not None:
            rate = rate + dot((d,), (k.detach(),), batched).to(rate.dtype)
    return rate


class _EventTime(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, rate: Tensor, time: Tensor, slope: list[Tensor], unless: Any, *y: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.unless, ctx.rate, ctx.slope, ctx.dtype, ctx.shape = unless, rate, slope, g.dtype, g.shape
        ctx.save_for_backward(g, *y)
        ctx.set_materialize_grads(False)
        return (time.clone(), *(x.clone() for x in y))

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        time_bar, *y_bar = bars
        total = torch.zeros_like(ctx.rate) if time_bar is None else time_bar.to(ctx.rate.dtype)
        for bar, k in zip(y_bar, ctx.slope, strict=True):
            if bar is not None:
                total = total + dot((bar,), (k,), ctx.rate.ndim == 1).to(total.dtype)
        no_rate = (ctx.rate == 0) & (total != 0)
        if bool(no_rate.any()):
            if ctx.unless is None:
                raise RuntimeError(_NO_RATE)
            ctx.unless()
        if not ctx.needs_input_grad[0]:  # g depends on t alone
            return None, None, None, None, None, *y_bar
        with torch.no_grad():
            # zero, not NaN, where a time without a derivative is not used
            g_bar = torch.where((total == 0) | no_rate, 0.0, -total / ctx.rate)
        g_bar = g_bar.to(ctx.dtype).reshape(ctx.shape)
        (g_bar,) = once_differentiable([g_bar], (*ctx.saved_tensors, *bars), _ONLY_FIRST)
        return g_bar, None, None, None, None, *y_bar
