"""Vector fields with time as an input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ..core.validate import boolean, describe, integer, one_of
from .layered_jacobian import EvaluatedLayers, with_slope

ActivationName = Literal["relu", "softplus", "tanh", "silu", "gelu", "elu"]
ACTIVATIONS: dict[ActivationName, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}


def activation_module(name: ActivationName) -> nn.Module:
    one_of("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class PerceptronField(nn.Module, ABC):
    """Base of fields whose Jacobian has a closed form."""

    def with_trace(self, t: Tensor, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        evaluated = self._evaluate(t, y, context)
        return evaluated.out, evaluated.trace()

    def with_vjp(
        self, t: Tensor, y: Tensor, directions: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        evaluated = self._evaluate(t, y, context)
        return evaluated.out, evaluated.vjp(directions)

    @abstractmethod
    def _evaluate(self, t: Tensor, y: Tensor, context: Tensor | None) -> EvaluatedLayers: ...


@final
class MLPField(PerceptronField):
    """dy/dt = MLP([y, t, context]): a multilayer perceptron on the last axis of y.

    dim: size of y's last axis. hidden: widths of the hidden layers. activation: "tanh", "softplus", "relu", "silu",
    "gelu" or "elu". time: False leaves t out. context: size of the last axis of a further input; 0: there is none.
    Called as f(t, y) or f(t, y, context), with t () or (B,), y (..., dim) and context (..., context).

    with_trace(t, y, context): dy/dt, and the trace of its Jacobian in closed form, (...). with_vjp(t, y, directions,
    context): dy/dt, and the transposed Jacobian times directions (..., K, dim).

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        activation: ActivationName = "tanh",
        time: bool = True,
        context: int = 0,
    ) -> None:
        super().__init__()
        dim, time, context = integer("dim", dim), boolean("time", time), integer("context", context, 0)
        widths = [dim + time + context, *_widths(hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation_module(activation)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], dim))
        self.dim, self.time, self.context = dim, time, context

    def forward(self, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(self._inputs(t, y, context))

    def _inputs(self, t: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        check_width("MLPField", self.dim, y)
        inputs = [y, time_column(t, y)] if self.time else [y]
        inputs += context_columns("MLPField", self.context, context, y)
        return torch.cat(inputs, -1) if len(inputs) > 1 else y

    def _evaluate(self, t: Tensor, y: Tensor, context: Tensor | None) -> EvaluatedLayers:
        slopes: list[Tensor] = []
        weights: list[Tensor] = []
        x = self._inputs(t, y, context)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                x = layer(x)
                weights.append(layer.weight if weights else layer.weight[:, : self.dim])
            else:
                x, slope = with_slope(layer, x)
                slopes.append(slope)
        return EvaluatedLayers(x, weights, slopes)

    def extra_repr(self) -> str:
        return f"time={self.time}" + (f", context={self.context}" if self.context else "")


@final
class ConcatSquashField(PerceptronField):
    """dy/dt by layers W x * sigmoid(gate(t, context)) + shift(t, context): FFJORD's time-varying perceptron.

    Grathwohl et al. 2019, "FFJORD", the layer "concatsquash" of its code. dim: size of y's last axis. hidden: widths of
    the hidden layers. activation: as in `MLPField`. context: size of the last axis of a further input; 0: there is
    none. gate and shift are linear. Called as f(t, y) or f(t, y, context), with t () or (B,), y (..., dim) and context
    (..., context). with_trace, with_vjp: as in `MLPField`.

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        activation: ActivationName = "softplus",
        context: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.context = integer("dim", dim), integer("context", context, 0)
        widths = [self.dim, *_widths(hidden), self.dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.gates = nn.ModuleList(nn.Linear(1 + self.context, width) for width in widths[1:])
        self.shifts = nn.ModuleList(nn.Linear(1 + self.context, width, bias=False) for width in widths[1:])
        self.activation = activation_module(activation)

    def forward(self, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        return self._evaluate(t, y, context).out

    def _evaluate(self, t: Tensor, y: Tensor, context: Tensor | None) -> EvaluatedLayers:
        check_width("ConcatSquashField", self.dim, y)
        given = context_columns("ConcatSquashField", self.context, context, y)
        # a time for all samples gives gates for all samples: (width,)
        outer = torch.cat([time_column(t, y), *given], -1) if given or t.ndim else t.to(y.dtype).view(1)
        slopes: list[Tensor] = []
        weights: list[Tensor] = []
        x, factor, last = y, None, len(self.layers) - 1
        for i, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            factor = torch.sigmoid(gate(outer))
            x = layer(x) * factor + shift(outer)
            weights.append(layer.get_parameter("weight"))
            if i < last:
                x, slope = with_slope(self.activation, x)
                slopes.append(slope * factor)
        return EvaluatedLayers(x, weights, slopes, factor)

    def extra_repr(self) -> str:
        return f"context={self.context}" if self.context else ""


def check_width(name: str, dim: int, y: Tensor) -> None:
    if y.shape[-1:] != (dim,):
        raise ValueError(f"dim={dim} of the {name} is not the size of y's last axis; y has shape {tuple(y.shape)}")


def time_column(t: Tensor, y: Tensor) -> Tensor:
    """t, () or (B,), as a column beside y (B, ..., D): (B, ..., 1)."""
    t = t.to(y.dtype)
    return t.view(t.shape + (1,) * (y.ndim - t.ndim)).expand(*y.shape[:-1], 1)


def context_columns(name: str, size: int, context: Tensor | None, y: Tensor) -> list[Tensor]:
    """The context as columns beside y, in a list; an empty list where the field takes none."""
    if (context is None) != (size == 0):
        cure = "give context=, in a solve args=(context,)" if size else "leave it out, or make it with context=SIZE"
        given = "it got none" if context is None else f"it got one of shape {tuple(context.shape)}"
        raise ValueError(
            f"{name} takes {f'a context of {size} numbers' if size else 'no context'}, and {given}: {cure}"
        )
    if context is None:
        return []
    if context.shape[-1:] != (size,):
        one = ": one number for each sample is (B, 1)" if size == 1 else ""
        raise ValueError(f"context must have {size} numbers in its last axis; got shape {tuple(context.shape)}{one}")
    return [context.to(y.dtype).expand(*y.shape[:-1], size)]


def _widths(hidden: Any) -> list[int]:
    if isinstance(hidden, (str, bytes)) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths, such as (64, 64); got {describe(hidden)}")
    return [integer("hidden", width) for width in hidden]


@final
class TimeConv2d(nn.Module):
    """A 3x3 convolution, padding 1, of y with an extra channel that is constant t: (B, C, H, W) -> (B, C', H, W).

    The time channel contributes t times a fixed response, so it is convolved once, as one plane, not for each image.
    """

    def __init__(self, channels_in: int, channels_out: int, time: bool = True) -> None:
        super().__init__()
        joint = nn.Conv2d(channels_in + time, channels_out, 3, padding=1)  # gives the initial weights
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(joint.weight[:, time:])
            assert self.conv.bias is not None and joint.bias is not None
            self.conv.bias.copy_(joint.bias)
        self.time_weight = nn.Parameter(joint.weight[:, :1].detach().clone()) if time else None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.conv(y)
        if self.time_weight is None:
            return out
        plane = torch.nn.functional.conv2d(y.new_ones(1, 1, *y.shape[-2:]), self.time_weight, padding=1)
        t = t.to(y.dtype)
        return torch.addcmul(out, t.view(-1, 1, 1, 1), plane)

    def extra_repr(self) -> str:
        return f"time={self.time_weight is not None}"


@final
class ConvField(nn.Module):
    """The ODE block of the Neural ODE paper, with time as an extra channel (Chen et al. 2018, section 3).

    Group norm, activation and 3x3 convolution, twice, and a last group norm. channels: of the state
    (B, channels, H, W). hidden: channels between the convolutions (default: channels). groups: of the group norms
    (default: 32, fewer below 64 channels). activation: "relu" as in the paper, or a smooth one such as "softplus".
    time: False leaves t out. Called as f(t, y) with t () or (B,).

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        groups: int | None = None,
        activation: ActivationName = "relu",
        time: bool = True,
    ) -> None:
        super().__init__()
        channels, time = integer("channels", channels), boolean("time", time)
        hidden = channels if hidden is None else integer("hidden", hidden)
        self.norm1, self.norm2 = group_norm(channels, groups), group_norm(hidden, groups)
        self.norm3 = group_norm(channels, groups)
        self.conv1, self.conv2 = TimeConv2d(channels, hidden, time), TimeConv2d(hidden, channels, time)
        self.activation = activation_module(activation)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = self.conv1(t, self.activation(self.norm1(y)))
        y = self.conv2(t, self.activation(self.norm2(y)))
        return self.norm3(y)


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """Group norm; groups: by default the largest divisor of `channels` up to 32 with at least two channels per group.

    A group of a single channel would remove the channel's mean, which is the input of the classifiers' average pool.
    """
    if groups is None:
        groups = max(g for g in range(1, min(32, max(1, channels // 2)) + 1) if channels % g == 0)
    if channels % integer("groups", groups):
        raise ValueError(f"groups must divide channels; got groups={groups}, channels={channels}")
    return nn.GroupNorm(groups, channels)
