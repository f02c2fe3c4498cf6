"""Linear controlled equations, solved by a parallel scan."""

from __future__ import annotations

from functools import partial
from typing import Literal, final

import torch
from torch import Tensor, nn

from ...core.validate import integer
from ...series.control_path import ControlPath
from .controlled_model import ControlledModel
from .scans_in_turn import scans_in_turn
from .small_matrices import exponential, prefix_products, whole_product

# Of the matrices of pieces that one scan takes, which keeps some fifteen times this for its gradient. Allocators keep
# freed memory of this size, where larger tensors are fetched from the system anew each time, which takes longer than
# the products.
_BYTES_AT_ONCE = 2**23


@final
class LinearField(nn.Module):
    """f(s, z)_i = A_i z for each channel i of the path, with block-diagonal A_i; a field for `NeuralCDE` too.

    hidden: size of z. channels: of the path, time among them. block: size of the blocks. At first the A_i are
    skew-symmetric, so that the state keeps its length along any path, and turns by about a quarter where each channel
    changes by 1.
    """

    def __init__(self, hidden: int, channels: int, block: int = 4) -> None:
        super().__init__()
        self.hidden, self.channels = integer("hidden", hidden), integer("channels", channels)
        self.block = integer("block", block)
        if hidden % block:
            raise ValueError(f"block must divide hidden={hidden}; got {block}")
        weight = torch.randn(channels, hidden // block, block, block) * (block * channels) ** -0.5 / 4
        self.weight = nn.Parameter((weight - weight.mT) / 2**0.5)

    def prod(self, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        """sum_i A_i z dX_i, (B, hidden)."""
        return apply_blocks(generators(self.weight, dx), z)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """A_i z for all i, (B, hidden, channels)."""
        blocks = z.unflatten(-1, (-1, self.block))
        return torch.einsum("cnij,...nj->...nic", self.weight, blocks).flatten(-3, -2)


@final
class LinearCDE(ControlledModel):
    """dz = sum_i A_i z dX_i with block-diagonal A_i, exactly: on the pieces of a linear path a product of exponentials.

    The products are a parallel scan: O(T) work in O(log T) operations on tensors. Of a series so long that its matrices
    take more than 8 MiB it is one scan after the other, and the gradient makes each again, so that the matrices of one
    alone are in memory. Walker et al. 2025, "Structured linear CDEs: maximally expressive and parallel-in-time sequence
    models".

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

    def drive(self, path: ControlPath, z0: Tensor, at: Tensor | None, begin: Tensor | None = None) -> Tensor:
        rises = path.pieces[:, 1]  # of pieces whose length in s is 1: (K - 1, B, channels)
        found = scans_in_turn(partial(_states, at is not None), self.field.weight, rises, z0, self._pieces_at_once(z0))
        if at is None:
            return found[-1]
        states = torch.cat([z0[None], found]).movedim(0, 1)
        s = at.expand(len(z0), at.shape[-1])
        piece = s.floor().long().clamp(0, len(rises) - 1)
        whole, part = states.gather(1, piece[..., None].expand(*s.shape, self.hidden)), s - piece
        if not bool(part.any()):
            return whole
        rise = rises.movedim(1, 0).gather(1, piece[..., None].expand(*s.shape, self.path_channels))
        return apply_blocks(exponential(generators(self.field.weight, part[..., None] * rise)), whole)

    def _pieces_at_once(self, z0: Tensor) -> int:
        return max(1, _BYTES_AT_ONCE // max(1, z0.numel() * self.field.block * z0.element_size()))


def generators(weight: Tensor, dx: Tensor) -> Tensor:
    """The blocks of sum_i A_i dX_i, (block, block, blocks, ...).

    weight: A, (channels, blocks, block, block). dx: dX, (..., channels).
    """
    entries = weight.permute(2, 3, 1, 0)  # (block, block, blocks, channels)
    flat = entries.flatten(0, 2) @ dx.flatten(0, -2).T
    return flat.unflatten(0, entries.shape[:3]).unflatten(-1, dx.shape[:-1])


def _states(each: bool, weight: Tensor, rises: Tensor, z: Tensor) -> Tensor:
    """z after each of the straight pieces, or after the last: (K or 1, B, hidden), from rises (K, B, channels)."""
    flows = exponential(generators(weight, rises))  # the solution operators of the pieces
    return apply_blocks(prefix_products(flows) if each else whole_product(flows), z)


def apply_blocks(matrices: Tensor, z: Tensor) -> Tensor:
    """Block-diagonal matrices, (block, block, blocks, ...), times z (..., hidden); dimensions ... broadcast."""
    size, _, count = matrices.shape[:3]
    z = z.view(*(1,) * (matrices.ndim - 2 - z.ndim), *z.shape)
    vectors = z.unflatten(-1, (count, size)).movedim((-1, -2), (0, 1))  # (block, blocks, ...)
    return (matrices * vectors).sum(1).movedim((0, 1), (-1, -2)).flatten(-2)
