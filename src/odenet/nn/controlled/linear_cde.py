"""Linear controlled equations, solved by a parallel scan."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from ...core.validate import integer
from ...series.control_path import ControlPath
from .controlled_model import ControlledModel
from .prefix_products import prefix_products, whole_product


@final
class LinearField(nn.Module):
    """f(s, z)_i = A_i z for each channel i of the path, with block-diagonal A_i; a field for `NeuralCDE` too.

    hidden: size of z. channels: of the path, time among them. block: size of the blocks. At first the A_i are
    skew-symmetric, so that the state keeps its length along any path.
    """

    def __init__(self, hidden: int, channels: int, block: int = 4) -> None:
        super().__init__()
        self.hidden, self.channels = integer("hidden", hidden), integer("channels", channels)
        self.block = integer("block", block)
        if hidden % block:
            raise ValueError(f"block must divide hidden={hidden}; got {block}")
        weight = torch.randn(channels, hidden // block, block, block) * (block * channels) ** -0.5
        self.weight = nn.Parameter((weight - weight.mT) / 2**0.5)

    def generators(self, dx: Tensor) -> Tensor:
        """sum_i A_i dX_i, (..., blocks, block, block), from dX (..., channels)."""
        return torch.tensordot(dx, self.weight, 1)

    def prod(self, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        """sum_i A_i z dX_i, (B, hidden)."""
        return apply_blocks(self.generators(dx), z)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """A_i z for all i, (B, hidden, channels)."""
        blocks = z.unflatten(-1, (-1, self.block))
        return torch.einsum("cnij,...nj->...nic", self.weight, blocks).flatten(-3, -2)


@final
class LinearCDE(ControlledModel):
    """dz = sum_i A_i z dX_i with block-diagonal A_i, exactly: on the pieces of a linear path a product of exponentials.

    The products are a parallel scan: O(T) work in O(log T) operations on tensors. Walker et al. 2025, "Structured
    linear CDEs: maximally expressive and parallel-in-time sequence models".

    channels: of the series. hidden: size of z. out: size of a linear readout; None: z itself. block: size of the
    blocks. control: "linear" or "rectilinear". online, counts, static: see `ControlledModel`. field: the `LinearField`,
    with which a `NeuralCDE` has the same solution.

    forward(series, ts=None), states(series): see `ControlledModel`.

    Raises TypeError or ValueError for a wrong argument.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        out: int | None = None,
        block: int = 4,
        control: Literal["linear", "rectilinear"] = "linear",
        online: bool = False,
        counts: bool = False,
        static: int = 0,
    ) -> None:
        if control not in ("linear", "rectilinear"):
            raise ValueError(f'control must be "linear" or "rectilinear", whose pieces are straight; got {control!r}')
        super().__init__(channels, hidden, out, static, control, online or control == "rectilinear", counts)
        self.field = LinearField(hidden, self.path_channels, block)

    def drive(self, path: ControlPath, z0: Tensor, at: Tensor | None) -> Tensor:
        rises = path.pieces[:, 1]  # of pieces whose length in s is 1
        flows = self._flows(rises)
        if at is None:
            return apply_blocks(whole_product(flows), z0)
        states = torch.cat([z0[:, None], apply_blocks(prefix_products(flows), z0).movedim(0, 1)], 1)
        s = at.expand(len(z0), at.shape[-1])
        piece = s.floor().long().clamp(0, len(rises) - 1)
        whole, part = states.gather(1, piece[..., None].expand(*s.shape, self.hidden)), s - piece
        if not bool(part.any()):
            return whole
        rise = rises.movedim(1, 0).gather(1, piece[..., None].expand(*s.shape, self.path_channels))
        return apply_blocks(self._flows(part[..., None] * rise), whole)

    def _flows(self, rises: Tensor) -> Tensor:
        """The flow along straight lines, (..., blocks, block, block)."""
        return torch.linalg.matrix_exp(self.field.generators(rises))


def apply_blocks(matrices: Tensor, z: Tensor) -> Tensor:
    """Block-diagonal matrices, (..., blocks, block, block), times z (B, hidden)."""
    blocks = z.unflatten(-1, (-1, matrices.shape[-1]))[..., None]
    return (matrices @ blocks).flatten(-3)
