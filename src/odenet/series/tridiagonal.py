"""Tridiagonal linear systems by cyclic reduction: O(T) work in O(log T) operations on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_tridiagonal(lower: Tensor, diagonal: Tensor, upper: Tensor, b: Tensor) -> Tensor:
    """The x with lower_i x_(i-1) + diagonal_i x_i + upper_i x_(i+1) = b_i; all (..., T), along the last dimension.

    lower_0 and the last of upper are 0. The matrix must be diagonally dominant, as no pivots are sought: Golub & Van
    Loan, Matrix Computations, 4.5.4 (block cyclic reduction). Differentiable in all arguments.
    """
    size = b.shape[-1]
    if size == 1:
        return b / diagonal
    if size % 2 == 0:  # one more equation, x = 0, so that each odd one has two neighbours
        pad = torch.nn.functional.pad
        x = solve_tridiagonal(pad(lower, (0, 1)), pad(diagonal, (0, 1), value=1.0), pad(upper, (0, 1)), pad(b, (0, 1)))
        return x[..., :-1]
    # the odd equations, less multiples of their neighbours, couple the odd unknowns alone
    left = lower[..., 1::2] / diagonal[..., :-1:2]
    right = upper[..., 1::2] / diagonal[..., 2::2]
    odd = solve_tridiagonal(
        -left * lower[..., :-1:2],
        diagonal[..., 1::2] - left * upper[..., :-1:2] - right * lower[..., 2::2],
        -right * upper[..., 2::2],
        b[..., 1::2] - left * b[..., :-1:2] - right * b[..., 2::2],
    )
    zero = odd.new_zeros((*odd.shape[:-1], 1))
    before, after = torch.cat([zero, odd], -1), torch.cat([odd, zero], -1)
    even = (b[..., ::2] - lower[..., ::2] * before - upper[..., ::2] * after) / diagonal[..., ::2]
    return torch.stack([even, torch.cat([odd, zero], -1)], -1).flatten(-2)[..., :-1]
