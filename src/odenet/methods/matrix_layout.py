"""A state as one real matrix (B, n), a row for each sample (B = 1 for a joint solve), for linear algebra."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, real_dtype


@final
class MatrixLayout:
    """Between leaves and rows. A complex number counts as two; rows have the widest real dtype of the leaves."""

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
        parts = []
        for x, shape in zip(leaves, self.shapes, strict=True):
            lead = x.shape[: x.ndim - len(shape)]
            real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
            parts.append(real.reshape((*lead, self.num_samples, -1)).to(self.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def to_leaves(self, rows: Tensor) -> Leaves:
        """(*lead, B, n) -> leaves (*lead, *shape)."""
        lead, leaves = rows.shape[:-2], []
        for x, shape, dtype in zip(rows.split(self.leaf_sizes, -1), self.shapes, self.dtypes, strict=True):
            if dtype.is_complex:
                x = torch.view_as_complex(x.to(real_dtype(dtype)).reshape((*lead, *shape, 2)).contiguous())
            leaves.append(x.reshape((*lead, *shape)).to(dtype))
        return tuple(leaves)
