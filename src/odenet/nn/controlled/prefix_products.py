"""Products of all first matrices of a sequence, by a parallel scan: O(K) products in O(log K) operations."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_products(m: Tensor) -> Tensor:
    """M_k ... M_1 M_0 for every k, (K, ..., n, n), from M (K, ..., n, n). Blelloch 1990."""
    count = len(m)
    if count == 1:
        return m
    pairs = prefix_products(m[1::2] @ m[: count // 2 * 2 : 2])  # up to each odd number
    later = m[2::2] @ pairs[: (count - 1) // 2]  # up to each even number but 0
    out = torch.empty_like(m) if not (m.requires_grad or pairs.requires_grad) else None
    if out is not None:
        out[0], out[1::2], out[2::2] = m[0], pairs, later
        return out
    even = torch.cat([m[:1], later])
    if len(even) > len(pairs):
        return torch.cat([torch.stack([even[:-1], pairs], 1).flatten(0, 1), even[-1:]])
    return torch.stack([even, pairs], 1).flatten(0, 1)


def whole_product(m: Tensor) -> Tensor:
    """M_(K-1) ... M_0, (..., n, n)."""
    while len(m) > 1:
        even = len(m) // 2 * 2
        pairs = m[1:even:2] @ m[:even:2]
        m = torch.cat([pairs, m[even:]])
    return m[0]
