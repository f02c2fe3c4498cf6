"""Vector fields of controlled equations: a matrix for each state, (hidden, channels), or its product with dX/ds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from ...core.validate import integer
from ..fields import ActivationName, activation_module


@final
class CDEField(nn.Module):
    """f(s, z), (B, hidden, channels), by a perceptron whose last activation, tanh, bounds it. Kidger et al. 2020.

    hidden: size of z. channels: of the path. width: of the perceptron's layers. depth: number of its hidden layers.
    activation: of these, as in `MLPField`; a smooth one takes fewer steps where tolerances are tight.

    The last layer begins with weights that are smaller by the root of `channels` than those of `torch.nn.Linear`, so
    that z at first moves as fast along a path of many channels as along one of few.
    """

    def __init__(
        self, hidden: int, channels: int, width: int = 64, depth: int = 1, activation: ActivationName = "silu"
    ) -> None:
        super().__init__()
        self.hidden, self.channels = integer("hidden", hidden), integer("channels", channels)
        self.net = _perceptron(hidden, width, depth, hidden * channels, activation)
        _shrink(self.net[-1].parameters(), channels)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.net(z)).unflatten(-1, (self.hidden, self.channels))


@final
class LowRankCDEField(nn.Module):
    """f(s, z) = U(z) V(z) of rank `rank`, for paths of many channels. The other arguments are those of `CDEField`.

    A perceptron gives rank (hidden + channels) numbers in place of hidden times channels. Those of V begin as in
    `CDEField`.
    """

    def __init__(
        self,
        hidden: int,
        channels: int,
        rank: int,
        width: int = 64,
        depth: int = 1,
        activation: ActivationName = "silu",
    ) -> None:
        super().__init__()
        self.hidden, self.channels = integer("hidden", hidden), integer("channels", channels)
        self.rank = integer("rank", rank)
        self.net = _perceptron(hidden, width, depth, rank * (hidden + channels), activation)
        _shrink((p[rank * hidden :] for p in self.net[-1].parameters()), channels)

    def _factors(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u, v = torch.tanh(self.net(z)).split([self.rank * self.hidden, self.rank * self.channels], -1)
        return u.unflatten(-1, (self.hidden, self.rank)) / self.rank**0.5, v.unflatten(-1, (self.rank, self.channels))

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        u, v = self._factors(z)
        return u @ v

    def prod(self, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        u, v = self._factors(z)
        return (u @ (v @ dx[..., None]))[..., 0]


@torch.no_grad()
def _shrink(tensors: Iterable[Tensor], channels: int) -> None:
    for x in tensors:
        x.div_(channels**0.5)


def _perceptron(size: int, width: int, depth: int, out: int, activation: ActivationName) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(integer("depth", depth)):
        layers += [nn.Linear(size, integer("width", width)), activation_module(activation)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, out))


def times_derivative(field: nn.Module, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
    """f(s, z) dX/ds, (B, hidden). A field may multiply itself: prod(s, z, dX), from z (B, hidden), dX (B, channels)."""
    product: Any = getattr(field, "prod", None)  # isinstance with a protocol is slow, at each evaluation
    if product is not None:
        return product(s, z, dx)
    matrix = field(s, z)
    if matrix.shape != (*z.shape, dx.shape[-1]):
        raise ValueError(
            f"field(s, z) must be (samples, hidden, channels), {(*z.shape, dx.shape[-1])}: the path has {dx.shape[-1]} "
            f"channels, time among them; got shape {tuple(matrix.shape)}"
        )
    return (matrix @ dx[..., None])[..., 0]
