"""Norms over a state, () or (B,) per sample, accumulated in float64 (float32 on mps, which has no float64)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .leaves import Leaves, flatten_samples

Tolerance = Sequence[float | Tensor]
"""rtol or atol: for each leaf a number, or a tensor that broadcasts against it."""


def rms(leaves: Leaves, batched: bool) -> Tensor:
    """Root mean square over all elements of all leaves (of each sample). Hairer, Norsett & Wanner I, (II.4.11).

    Squares are taken in float64: the square of 1e20 overflows in float32.
    """
    total, count = _norm(leaves, batched)
    if torch.compiler.is_compiling():  # `count` may be symbolic, and math.sqrt would make it a constant
        return total / total.new_full((), max(count, 1)).sqrt()
    return total / math.sqrt(max(count, 1))


def rms_on_host(leaves: Leaves) -> float:
    """`rms` of a joint solve as a float, with one tensor operation less."""
    total, count = _norm(leaves, False)
    return total.item() / math.sqrt(max(count, 1))


def _norm(leaves: Leaves, batched: bool) -> tuple[Tensor, int]:
    """The Euclidean norm, () or (B,), and the number of elements (of each sample)."""
    total: Tensor | None = None
    count = 0
    for leaf in leaves:
        x = leaf.abs() if leaf.is_complex() else leaf
        x = flatten_samples(x) if batched else x
        norm = torch.linalg.vector_norm(x, dim=1 if batched else None, dtype=norm_dtype(x))
        total = norm if total is None else torch.hypot(total, norm)
        count += leaf[0].numel() if batched and leaf.shape[0] else leaf.numel()
    assert total is not None  # solve refuses a state without tensors
    return total, count


def norm_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which norms of x are accumulated."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def max_abs(leaves: Leaves, batched: bool) -> Tensor:
    """The largest magnitude among all elements of all leaves (of each sample)."""
    maxima = [flatten_samples(x.abs()).amax(1) if batched else x.abs().amax() for x in leaves]
    return torch.stack([x.to(norm_dtype(x)) for x in maxima]).amax(0)


def tolerance_scale(y: Leaves, rtol: Tolerance, atol: Tolerance) -> Leaves:
    """atol + rtol * |y|."""
    return tuple([a + r * leaf.abs() for leaf, r, a in zip(y, rtol, atol, strict=True)])


def positive_atol(atol: Tolerance, y: Leaves) -> Tolerance:
    """atol, at least the smallest normal number of each leaf's dtype: a component that stays zero gives no 0 / 0."""
    tiny = [torch.finfo(leaf.dtype).tiny for leaf in y]
    return [a.clamp(min=x) if isinstance(a, Tensor) else max(a, x) for a, x in zip(atol, tiny, strict=True)]


def all_finite(y: Leaves, batched: bool) -> Tensor:
    """True where every element (of a sample) is finite: (), or (B,) if batched."""
    masks = [flatten_samples(torch.isfinite(leaf)).all(1) if batched else torch.isfinite(leaf).all() for leaf in y]
    return torch.stack(masks).all(0)


def finite_on_host(y: Leaves) -> bool:
    """`all_finite` of a joint solve as a bool.

    A finite sum proves that all its terms are finite, in one pass and a twentieth of the time of `isfinite` on a large
    state. A sum that is not finite may have overflowed, and proves nothing: only then the elements are checked.
    """
    for leaf in y:
        total = leaf.sum().item()
        if not math.isfinite(abs(total) if leaf.is_complex() else total):
            return bool(all_finite(y, False))
    return True
