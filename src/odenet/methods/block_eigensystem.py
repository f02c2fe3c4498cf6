"""Linear systems I - dt a (x) J, for a block `a` of a tableau and one Jacobian J, by the eigenvalues of `a`.

Butcher 1976; Hairer & Wanner II, IV.8: with a = V diag(l) V^-1 the system decouples into one of the size of the state
for each eigenvalue l. Of a complex conjugate pair one system is enough.
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
    """Eigenvalues of a block (m, m), one of each complex pair, and the transformation to their systems and back.

    values: the E eigenvalues. real_value: a real one, and real_index its index in `values`. to_eigenbasis: (E, m).
    from_eigenbasis: (m, E), twice the columns of complex pairs: the real part of its product is the result.
    """

    def __init__(self, block: Block) -> None:
        self.block, self.real_value, self.real_index = block, block[0][0], 0
        if len(block) == 1:
            self.values = [self.real_value]
            return
        values, vectors = torch.linalg.eig(torch.tensor(block, dtype=torch.float64))
        keep = [i for i, v in enumerate(values.tolist()) if v.imag > -1e-12]
        self.values = [values.tolist()[i] for i in keep]
        multiplicity = torch.tensor([1.0 if abs(v.imag) < 1e-12 else 2.0 for v in self.values])
        self.to_eigenbasis = torch.linalg.inv(vectors)[keep]
        self.from_eigenbasis = vectors[:, keep] * multiplicity
        self.real_index = next((i for i, v in enumerate(self.values) if abs(v.imag) < 1e-12), 0)
        self.real_value = self.values[self.real_index].real

    def __len__(self) -> int:
        return len(self.values)

    def factor_dtype(self, real: torch.dtype) -> torch.dtype:
        """The dtype of the factors, for a state of this real dtype."""
        return real if len(self.block) == 1 else real.to_complex()

    def matrices(self, jacobian: Tensor, dt: Tensor) -> Tensor:
        """I - dt l J, (B, E, n, n), from J, (B, n, n), and dt, (B, 1)."""
        identity = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        scaled = dt[..., None] * jacobian
        return torch.stack([identity - value * scaled for value in self.values], 1)

    def solve(self, factors: Tensor, pivots: Tensor, b: Tensor) -> Tensor:
        """The x with (I - dt a (x) J) x = b; (B, m, n)."""
        if len(self.block) == 1:
            return torch.linalg.lu_solve(factors[:, 0], pivots[:, 0], b.mT).mT
        to_eigenbasis = self.to_eigenbasis.to(factors.device, factors.dtype)
        from_eigenbasis = self.from_eigenbasis.to(factors.device, factors.dtype)
        decoupled = (to_eigenbasis[None, :, :, None] * b[:, None]).sum(2)  # (B, E, n)
        x = torch.linalg.lu_solve(factors, pivots, decoupled[..., None])[..., 0]
        return (from_eigenbasis[None, :, :, None] * x[:, None]).sum(2).real

    def solve_real(self, factors: Tensor, pivots: Tensor, b: Tensor) -> Tensor:
        """The x with (I - dt l J) x = b for the real eigenvalue l; (B, n)."""
        factors, pivots = factors[:, self.real_index], pivots[:, self.real_index]
        x = torch.linalg.lu_solve(factors, pivots, b.to(factors.dtype)[..., None])[..., 0]
        return x.real if x.is_complex() else x


@lru_cache(maxsize=64)
def block_eigensystem(block: Block) -> BlockEigensystem:
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be used outside it
        return BlockEigensystem(block)


def submatrix(a: Sequence[Sequence[float]], indices: Sequence[int]) -> Block:
    """The rows and columns of `a` at these indices."""
    return tuple(tuple(a[i][j] for j in indices) for i in indices)
