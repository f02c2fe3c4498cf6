"""Linear controlled equations, solved by a parallel scan."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ...core.validate import integer
from ...series.control_path import ControlPath
from ...series.interpolation import linear
from ...series.series import Series
from .prefix_products import prefix_products, whole_product


@final
class LinearField(nn.Module):
    """f(s, z)_i = A_i z for each channel i of the path, with block-diagonal A_i.

    As a field of `NeuralCDE` it gives the equation that `LinearCDE` solves by its scan.
    """

    def __init__(self, hidden: int, channels: int, block: int = 4) -> None:
        super().__init__()
        self.hidden, self.channels, self.block = (
            integer("hidden", hidden),
            integer("channels", channels),
            integer("block", block),
        )
        if hidden % block:
            raise ValueError(f"block must divide hidden={hidden}; got {block}")
        scale = (block * channels) ** -0.5
        self.weight = nn.Parameter(scale * torch.randn(channels, hidden // block, block, block))

    def generators(self, dx: Tensor) -> Tensor:
        """sum_i A_i dX_i, (..., blocks, block, block), from dX (..., channels)."""
        return torch.tensordot(dx, self.weight, 1)

    def prod(self, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        blocks = z.unflatten(-1, (-1, self.block))[..., None]
        return (self.generators(dx) @ blocks).flatten(-3)


@final
class LinearCDE(nn.Module):
    """z' = sum_i A_i z X_i' on a linear path, exactly: a product of matrix exponentials, by parallel scan.

    Walker et al. 2025, "Structured linear CDEs". channels: of the series. hidden: size of z. block: size of the blocks
    of the A_i.

    forward(series): z behind the last row, (B, hidden). states(series): z at every row, (B, T, hidden).
    """

    def __init__(self, channels: int, hidden: int = 64, block: int = 4, static: int = 0, counts: bool = False) -> None:
        super().__init__()
        self.counts = counts
        width = 1 + channels * (1 + counts)
        self.field = LinearField(hidden, width, block)
        self.initial = nn.Linear(width + static, hidden)

    def forward(self, series: Series) -> Tensor:
        path, z0 = self._start(series)
        return self._moved(whole_product(self._factors(path)), z0)

    def states(self, series: Series) -> Tensor:
        path, z0 = self._start(series)
        later = self._moved(prefix_products(self._factors(path)), z0)
        return torch.cat([z0[:, None], later.movedim(0, 1)], 1)

    def _start(self, series: Series) -> tuple[ControlPath, Tensor]:
        path = linear(series, self.counts)
        first = path.pieces[0, 0]
        return path, self.initial(first if series.static is None else torch.cat([first, series.static], -1))

    def _factors(self, path: ControlPath) -> Tensor:
        """The flow of each piece, (K - 1, B, blocks, block, block)."""
        return torch.linalg.matrix_exp(self.field.generators(path.pieces[:, 1]))

    def _moved(self, flow: Tensor, z0: Tensor) -> Tensor:
        return (flow @ z0.unflatten(-1, (-1, self.field.block))[..., None]).flatten(-3)
