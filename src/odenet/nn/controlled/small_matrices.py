"""Products and exponentials of many small matrices, (n, n, ..., K, B): entries first, so that each is one long array.

For n up to some tens that is several times as fast as a batch of matrix products, and for the exponential's gradient
ten.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_ROOT = math.sqrt(177)
_X3 = 2 / 3
_X1, _X2 = _X3 * (1 + _ROOT) / 88, _X3 * (1 + _ROOT) / 352
_X4, _X5 = (-271 + 29 * _ROOT) / (315 * _X3), 11 * (-1 + _ROOT) / (1260 * _X3)
_X6, _X7 = 11 * (-9 + _ROOT) / (5040 * _X3), (89 - _ROOT) / (5040 * _X3**2)
_Y2 = (857 - 58 * _ROOT) / 630
_LARGEST_NORM = {torch.float64: 1 / 16}  # at which the polynomial is exact to rounding; 1/2 in other dtypes


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix products a b, (n, n, ...)."""
    return _Product.apply(a, b)  # pyright: ignore[reportReturnType]


def exponential(a: Tensor) -> Tensor:
    """Matrix exponentials, (n, n, ...).

    The Taylor polynomial of degree 8 by three products, and squarings: Bader, Blanes & Casas 2019, "Computing the
    matrix exponential with an optimized Taylor polynomial approximation".
    """
    norm = float(a.detach().abs().sum(1).amax()) if a.numel() else 0.0
    limit = _LARGEST_NORM.get(a.dtype, 0.5)
    squarings = max(0, math.ceil(math.log2(norm / limit))) if 0.0 < norm < math.inf else 0
    a = a / 2**squarings
    eye = torch.eye(len(a), dtype=a.dtype, device=a.device).view(*a.shape[:2], *(1,) * (a.ndim - 2))
    a2 = product(a, a)
    a4 = product(a2, _X1 * a + _X2 * a2)
    a8 = product(_X3 * a2 + a4, _X4 * eye + _X5 * a + _X6 * a2 + _X7 * a4)
    power = eye + a + _Y2 * a2 + a8
    for _ in range(squarings):
        power = product(power, power)
    return power


def prefix_products(m: Tensor) -> Tensor:
    """M_k ... M_1 M_0 for every k, along dimension -2, by a parallel scan: O(K) products in O(log K) operations.

    Blelloch 1990, "Prefix sums and their applications".
    """
    count = m.shape[-2]
    if count == 1:
        return m
    pairs = prefix_products(product(m[..., 1::2, :], m[..., : count // 2 * 2 : 2, :]))  # up to each odd number
    later = product(m[..., 2::2, :], pairs[..., : (count - 1) // 2, :])  # up to each even number but 0
    even = torch.cat([m[..., :1, :], later], -2)
    joined = torch.stack([even[..., : count // 2, :], pairs], -2).flatten(-3, -2)
    return joined if count % 2 == 0 else torch.cat([joined, even[..., -1:, :]], -2)


def whole_product(m: Tensor) -> Tensor:
    """M_(K-1) ... M_0, along dimension -2, which is of length 1 then."""
    while (count := m.shape[-2]) > 1:
        even = count // 2 * 2
        m = torch.cat([product(m[..., 1:even:2, :], m[..., :even:2, :]), m[..., even:, :]], -2)
    return m


class _Product(torch.autograd.Function):
    """As a function of its own, it keeps the factors alone for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out = a[:, 0, None] * b[None, 0]
        for k in range(1, len(b)):
            out = torch.addcmul(out, a[:, k, None], b[None, k])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (a, b), grad = ctx.saved_tensors, grad_outputs[0]
        return product(grad, b.transpose(0, 1)), product(a.transpose(0, 1), grad)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (a, b), (da, db) = ctx.saved_tensors, grad_inputs
        return product(da, b) + product(a, db)
