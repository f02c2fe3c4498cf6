"""The state as one real matrix (B, n), with one row per sample (B = 1 in a joint solve), for linear algebra."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, real_dtype


@final
class MatrixLayout:
    """Converts leaves to a matrix and back. A complex number is two entries; the dtype is the widest real one.

    like: leaves of the state. batched: their dimension 0 is the batch. num_samples: B. width: n.
    """

    def __init__(self, like: Leaves, batched: bool) -> None:
        self.shapes = [x.shape for x in like]
        self.dtypes = [x.dtype for x in like]
        self.num_samples = like[0].shape[0] if batched else 1
        self.leaf_sizes = [x.numel() // self.num_samples * (2 if x.is_complex() else 1) for x in like]
        self.dtype = real_dtype(self.dtypes[0])
        for dtype in self.dtypes[1:]:
            self.dtype = torch.promote_types(self.dtype, real_dtype(dtype))

    @property
    def width(self) -> int:
        return sum(self.leaf_sizes)

    def to_matrix(self, leaves: Leaves) -> Tensor:
        """Leaves (*lead, *shape) -> (*lead, B, n)."""
        blocks: list[Tensor] = []
        for x, shape in zip(leaves, self.shapes, strict=True):
            lead = x.shape[: x.ndim - len(shape)]
            real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
            blocks.append(real.reshape((*lead, self.num_samples, -1)).to(self.dtype))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)

    def to_leaves(self, matrix: Tensor) -> Leaves:
        """(*lead, B, n) -> leaves (*lead, *shape)."""
        lead, leaves = matrix.shape[:-2], []
        for x, shape, dtype in zip(matrix.split(self.leaf_sizes, -1), self.shapes, self.dtypes, strict=True):
            if dtype.is_complex:
                x = torch.view_as_complex(x.to(real_dtype(dtype)).reshape((*lead, *shape, 2)).contiguous())
            leaves.append(x.reshape((*lead, *shape)).to(dtype))
        return tuple(leaves)
