"""Vector fields with time as an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ..core.validate import boolean, describe, integer, one_of

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


@final
class MLPField(nn.Module):
    """dy/dt = MLP([y, t]): a multilayer perceptron on the last axis of y.

    dim: size of y's last axis. hidden: widths of the hidden layers. activation: "tanh", "softplus", "relu", "silu",
    "gelu" or "elu". time: False leaves t out. Called as f(t, y) with t () or (B,) and y (..., dim).

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int] = (64, 64), activation: ActivationName = "tanh", time: bool = True
    ) -> None:
        super().__init__()
        dim, time = integer("dim", dim), boolean("time", time)
        widths = [dim + time, *_widths(hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation_module(activation)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], dim))
        self.dim, self.time = dim, time

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if y.shape[-1:] != (self.dim,):
            raise ValueError(
                f"dim={self.dim} of the MLPField is not the size of y's last axis; y has shape {tuple(y.shape)}"
            )
        if self.time:
            t = t.to(y.dtype)
            t = t.view(t.shape + (1,) * (y.ndim - t.ndim)).expand(*y.shape[:-1], 1)
            y = torch.cat([y, t], -1)
        return self.net(y)

    def extra_repr(self) -> str:
        return f"time={self.time}"


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
