"""Norms over a state, lane by lane, accumulated in float64 where the device has it (never below float32)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .leaves import Leaves, rows

Tolerance = Sequence[float | Tensor]


def rms(leaves: Leaves, batched: bool) -> Tensor:
    """Root mean square over all elements of all leaves (of each sample). Hairer, Norsett & Wanner I, (II.4.11)."""
    total: Tensor | None = None
    count = 0
    for leaf in leaves:
        x = leaf.abs() if leaf.is_complex() else leaf
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        part = rows(x * x).sum(1, dtype=wide) if batched else (x * x).sum(dtype=wide)
        total = part if total is None else total + part
        count += leaf[0].numel() if batched and leaf.shape[0] else leaf.numel()
    assert total is not None  # solve refuses an empty state
    return (total / max(count, 1)).sqrt()


def tolerance_scale(y: Leaves, rtol: Tolerance, atol: Tolerance) -> Leaves:
    """atol + rtol * |y|."""
    return tuple(a + r * leaf.abs() for leaf, r, a in zip(y, rtol, atol, strict=True))


def all_finite(y: Leaves, batched: bool) -> Tensor:
    """Lane of booleans: every element finite."""
    lanes = [rows(torch.isfinite(leaf)).all(1) if batched else torch.isfinite(leaf).all() for leaf in y]
    return torch.stack(lanes).all(0)


def finite_on_host(y: Leaves) -> bool:
    """Whether every element is finite, looked at from Python.

    A sum is finite only where all its terms are: one pass, a twentieth of the time of `isfinite` on a large state. It
    may overflow by itself, so that only a sum that is not finite says nothing.
    """
    for leaf in y:
        total = leaf.detach().sum().item()
        if not math.isfinite(abs(total) if isinstance(total, complex) else total):
            return bool(all_finite(y, False))
    return True
