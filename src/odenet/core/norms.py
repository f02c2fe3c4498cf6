"""Norms over a state, lane by lane, accumulated in float64 where the device has it (never below float32)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .leaves import Leaves, flatten_samples

Tolerance = Sequence[float | Tensor]


def rms(leaves: Leaves, batched: bool) -> Tensor:
    """Root mean square over all elements of all leaves (of each sample). Hairer, Norsett & Wanner I, (II.4.11).

    Squared in float64: the square of 1e20 is too large for float32.
    """
    total, count = _norm(leaves, batched)
    if torch.compiler.is_compiling():  # the number may be a symbol, of which a square root would make a constant
        return total / total.new_full((), max(count, 1)).sqrt()
    return total / math.sqrt(max(count, 1))


def rms_on_host(leaves: Leaves) -> float:
    """The same number of a joint solve, in an operation less."""
    total, count = _norm(leaves, False)
    return total.item() / math.sqrt(max(count, 1))


def _norm(leaves: Leaves, batched: bool) -> tuple[Tensor, int]:
    """The root of the sum of all squares, and of how many."""
    total: Tensor | None = None
    count = 0
    for leaf in leaves:
        x = leaf.abs() if leaf.is_complex() else leaf
        x = flatten_samples(x) if batched else x
        part = torch.linalg.vector_norm(x, dim=1 if batched else None, dtype=norm_dtype(x))
        total = part if total is None else torch.hypot(total, part)
        count += leaf[0].numel() if batched and leaf.shape[0] else leaf.numel()
    assert total is not None  # solve refuses an empty state
    return total, count


def norm_dtype(x: Tensor) -> torch.dtype:
    """The real dtype that norms are computed in."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def max_abs(leaves: Leaves, batched: bool) -> Tensor:
    """The largest magnitude among all elements of all leaves (of each sample)."""
    tops = [flatten_samples(x.abs()).amax(1) if batched else x.abs().amax() for x in leaves]
    return torch.stack([x.to(norm_dtype(x)) for x in tops]).amax(0)


def tolerance_scale(y: Leaves, rtol: Tolerance, atol: Tolerance) -> Leaves:
    """atol + rtol * |y|."""
    return tuple([a + r * leaf.abs() for leaf, r, a in zip(y, rtol, atol, strict=True)])


def positive_atol(atol: Tolerance, y: Leaves) -> Tolerance:
    """atol that a leaf's own dtype can tell from zero: 0 / 0 is no error where a component stays zero."""
    least = [torch.finfo(leaf.dtype).tiny for leaf in y]
    return [a.clamp(min=x) if isinstance(a, Tensor) else max(a, x) for a, x in zip(atol, least, strict=True)]


def all_finite(y: Leaves, batched: bool) -> Tensor:
    """Lane of booleans: every element finite."""
    lanes = [flatten_samples(torch.isfinite(leaf)).all(1) if batched else torch.isfinite(leaf).all() for leaf in y]
    return torch.stack(lanes).all(0)


def finite_on_host(y: Leaves) -> bool:
    """Whether every element is finite, looked at from Python.

    A sum is finite only where all its terms are: one pass, a twentieth of the time of `isfinite` on a large state. It
    may overflow by itself, so that only a sum that is not finite says nothing.
    """
    for leaf in y:
        total = leaf.sum().item()
        if not math.isfinite(abs(total) if leaf.is_complex() else total):
            return bool(all_finite(y, False))
    return True
