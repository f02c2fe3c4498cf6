"""The time of an event and the state there, as functions of all that decides them: the implicit function theorem.

With g the event function, g(t, y(t)) = 0 gives dt = -dg / (g_t + g_y f), where dg is what moves g at a fixed time: the
state there, args, and parameters of g. R. T. Q. Chen, B. Amos, M. Nickel, Learning neural event functions for ordinary
differential equations, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves, add_scaled, as_graph_inputs, dot, expand_over
from ..core.scalars import MaskLike, where
from ..gradients.custom_vjp import once_differentiable

Value = Callable[[Tensor, Leaves], Tensor]
"""(t, y) -> the one number of the event function that was zero; a lane, where samples have events of their own."""

_ONLY_FIRST = (
    "a second derivative through the time of an event is refused, as it has first derivatives only: take "
    "Event(constant_time=True), whose time is a constant, for higher ones"
)
_NO_RATE = (
    "the time of an event has no derivative where the event function does not change along the solution: it jumps "
    "across zero there, or only touches it. Event(constant_time=True) takes the time as a constant"
)
_BACK = (4.0, 16.0, 64.0, 256.0, 1024.0)  # units in the last place


def with_event_time(
    value: Value, time: Tensor, y: Leaves, slope: Leaves, direction: Tensor, lanes: MaskLike = True,
    unless: Callable[[], object] | None = None,
) -> tuple[Tensor, Leaves]:  # fmt: skip
    """`time` and y there, differentiable. y: attached as the state at a fixed time. slope: f(time, y).

    time: 0-d, or (B,) where `lanes` says which samples have an event; the others' stay as they are. direction: of time,
    a lane of 1 and -1. unless: called in the backward pass where the time has no derivative, and is then a constant;
    by default that is a RuntimeError.
    Derivatives of the first order: f and the rate of g count as constants in what a second one would need, so that is
    refused when it is taken.
    """
    time = time.detach()
    back = torch.zeros_like(time)
    rate = _rate(value, time, y, slope)
    eps = max(torch.finfo(x.dtype).eps for x in (time, *y))
    for units in _BACK:  # of what is zero from here on, such as relu(y), the derivative is that before it
        still = lanes & (rate == 0)
        if not bool(still.any()):
            break
        back = torch.where(still, units * eps * time.abs() * direction, back)
        rate = torch.where(still, _rate(value, *_earlier(time, y, slope, back), slope), rate)
    rate = where(lanes, rate, torch.inf)  # which divides their part away
    at = _earlier(time, y, slope, back) if bool((back != 0).any()) else (time, y)
    out = _EventTime.apply(value(*at), rate, time, [k.detach() for k in slope], unless, *y)
    return out[0], tuple(out[1:])


def _earlier(time: Tensor, y: Leaves, slope: Leaves, back: Tensor) -> tuple[Tensor, Leaves]:
    """The time and the state on the solution at `time - back`."""
    return time - back, add_scaled(y, expand_over(-back, y), tuple(k.detach() for k in slope))


def _rate(value: Value, time: Tensor, y: Leaves, slope: Leaves) -> Tensor:
    """dg/dt along the solution. The value of a sample depends on that sample alone."""
    batched = time.ndim == 1
    with torch.enable_grad():
        t, at = time.detach().requires_grad_(), as_graph_inputs(y)
        g = value(t, at)
        if not g.requires_grad:
            return torch.zeros_like(time)
        by_t, *by_y = torch.autograd.grad(g.sum(), (t, *at), allow_unused=True)
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
        still = (ctx.rate == 0) & (total != 0)
        if bool(still.any()):
            if ctx.unless is None:
                raise RuntimeError(_NO_RATE)
            ctx.unless()
        if not ctx.needs_input_grad[0]:  # a condition on t alone
            return None, None, None, None, None, *y_bar
        with torch.no_grad():
            # nobody asks for what may have no derivative
            moved = torch.where((total == 0) | still, 0.0, -total / ctx.rate)
        moved = moved.to(ctx.dtype).reshape(ctx.shape)
        (moved,) = once_differentiable([moved], (*ctx.saved_tensors, *bars), _ONLY_FIRST)
        return moved, None, None, None, None, *y_bar
