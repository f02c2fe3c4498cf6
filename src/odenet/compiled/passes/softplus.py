"""Softplus without a logarithm: PyTorch's vectorised log1p takes more than half the time of a small field's solve.

softplus(x) = max(x, 0) + log1p(z), z = exp(-|x|) in (0, 1], and log1p(z) = z p(z), where p interpolates log1p(z) / z
at ten Chebyshev nodes of [0, 1] with an error of 6e-9. In float32 the relative error of the result is at most 2.4e-7
(two units in the last place; PyTorch's own has one: tests/compiled/test_activations.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

_P = (
    *(0.9999999946562932, -0.49999892648078537, 0.333297104992198, -0.24951616265242238, 0.19663274266717698),
    *(-0.1526966709602667, 0.10543623824392358, -0.05637361305353428, 0.019542527351771553, -0.0031760570331529664),
)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """A decomposition of aten.softplus for float32; NotImplemented leaves the others to PyTorch."""
    if x.dtype is not torch.float32 or beta != 1.0 or threshold < 16.0:
        return NotImplemented
    z = torch.exp(-x.abs())
    p = z * _P[-1] + _P[-2]
    for c in reversed(_P[:-2]):
        p = p * z + c
    return x.clamp(min=0.0) + z * p
