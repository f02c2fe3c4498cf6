"""adapt: a velocity network of another signature as a field f(t, y, *args)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, nn

from ..core.leaves import being_recorded, real_dtype
from ..core.torch_func import inside_transform
from ..core.validate import boolean, describe, function, number
from .call_order import call_order
from .time_detection import detect
from .time_forms import NetworkCall, TimeForm, time_form

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CURE = (
    "call the adapted field once, f(t, y), before torch.compile, torch.export, torch.func or a solve with "
    'compile=True, or name the form, as in adapt(network, time="(B,)")'
)


def _not_recorded(function: _Function) -> _Function:
    """As torch.compiler.disable marks it, without loading the compiler: a graph breaks there, or fails if full."""
    cast(Any, function)._torchdynamo_disable = True
    cast(Any, function)._torchdynamo_disable_msg = _CURE
    return function


def adapt(
    network: Callable[..., Any],
    *,
    order: str | None = None,
    time: TimeForm | None = None,
    context: str | None = None,
    time_scale: float = 1.0,
    reverse: bool = False,
) -> AdaptedField:
    """A velocity network of any usual signature as a field f(t, y) or f(t, y, context).

    network: a module or function of a time and a state (B, ...), in any order and by any names, such as net(x, t),
    net(t, x, labels) or unet(sample, timestep, class_labels=c), or of one tensor; its result is a tensor like x, or has
    one as `.sample`. Without options the order is read from the names of the parameters, and the form of the time is
    found at the first call: one for which a batch with a time for each sample gives, row by row, what the network
    gives for that row alone.

    order: the arguments of the network, of t, x and context, by place or by keyword: "x, t", "t, x, context",
    "sample=x, timestep=t, class_labels=context", "x, t, **context" for a context that is a dict, "x" for a network of
    one tensor. time: the shape of t that the network takes, "(B,)", "(B, 1)", "(B, 1, ...)" with as many axes as x, or
    "()" (with a time for each sample, `torch.func.vmap`); for a network of one tensor "cat" (t is a last entry of x's
    last axis), "channel" (of its axis 1) or "none". Given, nothing is tried. context: the name of the parameter for the
    context. time_scale: the network's time is time_scale * t; its result is a velocity in t all the same. reverse: the
    network's time runs from 1 to 0, so that f(t, x) = -network(x, 1 - t).

    The result is a module: t is () or (B,) and is passed in y's real dtype; y and the result are (B, ...). The network
    is its submodule `network`, where it is a module, and is not changed.

    Raises TypeError or ValueError for a wrong argument, and for names that do not tell the order; the first call raises
    ValueError if no form of the time is right.
    """
    return AdaptedField(network, order=order, time=time, context=context, time_scale=time_scale, reverse=reverse)


@final
class AdaptedField(nn.Module):
    """The field that `odenet.nn.adapt` makes."""

    def __init__(
        self, network: Callable[..., Any], *, order: Any, time: Any, context: Any, time_scale: Any, reverse: Any
    ) -> None:
        super().__init__()
        self.network = function("network", network, "network(t, x) or the like")
        if isinstance(network, type):
            raise TypeError(f"network must be an instance; got the class: write {network.__name__}(...)")
        self.order = call_order(network, order, context)
        self.time = None if time is None else time_form(time, self.order)
        self.time_scale, self.reverse = number("time_scale", time_scale), boolean("reverse", reverse)
        if self.time_scale == 0 or math.isinf(self.time_scale):
            raise ValueError(f"time_scale must be finite and not 0; got {time_scale}")
        self._given = None if self.time is None else NetworkCall(self.order, self.time)
        self._detected: dict[int, NetworkCall] = {}  # by the number of axes of y

    def forward(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        self.order.check_context(context)
        t = self._checked(t, y)
        call = self._given or self._detected.get(y.ndim)
        if call is None:
            if not y.numel():
                return torch.zeros_like(y)
            call = self._detect(t, y, context)
        out = call(self.network, self._network_time(t, y), y, context)
        if out.shape != y.shape:
            raise ValueError(f"the network returned shape {tuple(out.shape)} for x of shape {tuple(y.shape)}")
        return (-out if self.reverse else out).to(y.dtype)

    def _network_time(self, t: Tensor, y: Tensor) -> Tensor:
        t = 1 - t if self.reverse else t
        t = t * self.time_scale if self.time_scale != 1 else t
        return t.to(y.device, real_dtype(y.dtype))

    def _checked(self, t: Any, y: Any) -> Tensor:
        if not isinstance(y, Tensor) or y.ndim == 0 or not (y.is_floating_point() or y.is_complex()):
            raise TypeError(f"y must be a tensor (B, ...) of real or complex numbers, B samples; got {describe(y)}")
        if not isinstance(t, Tensor):
            t = torch.tensor(number("t", t), dtype=torch.float64)
        if t.ndim and t.shape != y.shape[:1]:
            raise ValueError(f"t must have shape () or (B,) = ({len(y)},); got {tuple(t.shape)}")
        return t

    @_not_recorded
    def _detect(self, t: Tensor, y: Tensor, context: tuple[Any, ...]) -> NetworkCall:
        if torch.compiler.is_compiling() or being_recorded() or inside_transform():
            raise RuntimeError(f"adapt needs values to find the form of the network's time: {_CURE}")
        # a compiler that is not loaded cannot be recording, and loading it takes long
        run = cast(Any, torch.compiler.disable)(detect) if "torch._dynamo" in sys.modules else detect
        call = run(self.network, self.order, self._network_time, t, y, context)
        self._detected[y.ndim] = call
        return call

    def extra_repr(self) -> str:
        if self.time is not None:
            form = f'time="{self.time}"'
        elif self._detected:
            form = ", ".join(f'time="{form}" (detected)' for form in {c.form: None for c in self._detected.values()})
        else:
            form = "time detected at the first call"
        options = [f"time_scale={self.time_scale:g}"] * (self.time_scale != 1) + ["reverse=True"] * self.reverse
        return ", ".join([f'order="{self.order}"', form, *options])
