"""Linear systems I - dt a (x) J, for a block `a` of a tableau and one Jacobian J, by the eigenvalues of `a`.

Butcher 1976; Hairer & Wanner II, IV.8: with a = V diag(l) V^-1 the system falls apart into one of the size of the state
for each eigenvalue, and of a complex pair one is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

Block = tuple[tuple[float, ...], ...]


@final
class BlockEigensystem:
    """The eigenvalues that are kept, and the way to their systems and back. real: a real eigenvalue."""

    def __init__(self, block: Block) -> None:
        self.block, self.real = block, block[0][0]
        if len(block) == 1:
            self.values = [self.real]
            return
        values, vectors = torch.linalg.eig(torch.tensor(block, dtype=torch.float64))
        keep = [i for i, v in enumerate(values.tolist()) if v.imag > -1e-12]
        self.values = [values.tolist()[i] for i in keep]
        twice = torch.tensor([1.0 if abs(v.imag) < 1e-12 else 2.0 for v in self.values])
        self.into = torch.linalg.inv(vectors)[keep]  # (E, m)
        self.back = vectors[:, keep] * twice  # (m, E); the real part of the sum is what is meant
        flat = [i for i, v in enumerate(self.values) if abs(v.imag) < 1e-12]
        self.place = flat[0] if flat else 0
        self.real = self.values[self.place].real

    def __len__(self) -> int:
        return len(self.values)

    def dtype(self, real: torch.dtype) -> torch.dtype:
        return real if len(self.block) == 1 else real.to_complex()

    def matrices(self, jacobian: Tensor, dt: Tensor) -> Tensor:
        """I - dt l J, (B, E, n, n), from J, (B, n, n), and dt, (B, 1)."""
        unit = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        scaled = dt[..., None] * jacobian
        return torch.stack([unit - value * scaled for value in self.values], 1)

    def solve(self, factors: Tensor, pivots: Tensor, b: Tensor) -> Tensor:
        """x with (I - dt a (x) J) x = b; (B, m, n)."""
        if len(self.block) == 1:
            return torch.linalg.lu_solve(factors[:, 0], pivots[:, 0], b.mT).mT
        into, back = self._on(factors)
        apart = (into[None, :, :, None] * b[:, None]).sum(2)  # (B, E, n)
        found = torch.linalg.lu_solve(factors, pivots, apart[..., None])[..., 0]
        return (back[None, :, :, None] * found[:, None]).sum(2).real

    def filtered(self, factors: Tensor, pivots: Tensor, b: Tensor) -> Tensor:
        """x with (I - dt l J) x = b for the real eigenvalue; (B, n)."""
        place = 0 if len(self.block) == 1 else self.place
        factors, pivots = factors[:, place], pivots[:, place]
        found = torch.linalg.lu_solve(factors, pivots, b.to(factors.dtype)[..., None])[..., 0]
        return found.real if found.is_complex() else found

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.into.to(like.device, like.dtype), self.back.to(like.device, like.dtype)


@lru_cache(maxsize=64)
def block_eigensystem(block: Block) -> BlockEigensystem:
    with torch.inference_mode(False):  # tensors made in that mode could not be used outside it
        return BlockEigensystem(block)


def submatrix(a: Sequence[Sequence[float]], block: Sequence[int]) -> Block:
    """The square part of `a` that belongs to these stages."""
    return tuple(tuple(a[i][j] for j in block) for i in block)
