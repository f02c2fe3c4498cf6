"""Invertible normalisations between the blocks of a flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from ...core.validate import number


class FlowNorm(nn.Module, ABC):
    """An affine map of each channel, the first axis of an event: z = (x - shift) * exp(log_scale).

    forward: x (B, *event) -> z, and log |det|, (B,). inverse: z -> x, and log |det| of the inverse.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = event_shape
        self.per_channel = math.prod(event_shape[1:])  # entries of an event in one channel

    @abstractmethod
    def map(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """shift and log_scale, each (channels,). training: they may follow from x, (B, *event)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.map(x, self.training)
        z = (x - self._wide(shift)) * self._wide(log_scale).exp()
        return z, self._log_det(log_scale, x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.map(z, False)
        x = z * self._wide(-log_scale).exp() + self._wide(shift)
        return x, -self._log_det(log_scale, z)

    def _wide(self, per_channel: Tensor) -> Tensor:
        return per_channel.view(-1, *(1 for _ in self.event_shape[1:]))

    def _log_det(self, log_scale: Tensor, x: Tensor) -> Tensor:
        return (log_scale.sum() * self.per_channel).expand(len(x))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [i for i in range(x.ndim) if i != 1]
        return x.mean(axes), x.var(axes, unbiased=False)


@final
class MovingBatchNorm(FlowNorm):
    """FFJORD's batch norm: moments of the batch in training, moving ones in evaluation and when sampling.

    Grathwohl et al. 2019, appendix; Dinh et al. 2017, "Density estimation using Real NVP", 3.7. decay: of the moving
    moments in a training step.
    """

    def __init__(self, event_shape: tuple[int, ...], decay: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__(event_shape)
        self.decay, self.eps = number("decay", decay), number("eps", eps)
        channels = event_shape[0]
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_gain = nn.Parameter(torch.zeros(channels))
        self.moving_mean: Tensor
        self.moving_var: Tensor
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_var", torch.ones(channels))

    def map(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        mean, var = self.moving_mean, self.moving_var
        if training and len(x) > 1:
            mean, var = self._moments(x)
            with torch.no_grad():
                self.moving_mean.lerp_(mean.detach(), self.decay)
                self.moving_var.lerp_(var.detach(), self.decay)
        log_scale = self.log_gain - 0.5 * torch.log(var + self.eps)
        return mean - self.bias * torch.exp(-log_scale), log_scale


@final
class ActNorm(FlowNorm):
    """An affine map that normalises the first batch in training, then is learned. Kingma & Dhariwal 2018, 3.1."""

    def __init__(self, event_shape: tuple[int, ...], eps: float = 1e-4) -> None:
        super().__init__(event_shape)
        self.eps = number("eps", eps)
        self.shift = nn.Parameter(torch.zeros(event_shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(event_shape[0]))
        self.initialised: Tensor
        self.register_buffer("initialised", torch.tensor(False))

    def map(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        if training and not bool(self.initialised) and len(x) > 1:
            with torch.no_grad():
                mean, var = self._moments(x)
                self.shift.copy_(mean)
                self.log_scale.copy_(-0.5 * torch.log(var + self.eps))
                self.initialised.fill_(True)
        return self.shift, self.log_scale


NORMS: dict[str, type[FlowNorm]] = {"batch": MovingBatchNorm, "act": ActNorm}
