"""The first step size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.lanes import coarse
from ..core.leaves import Leaves, along, spread_over
from ..core.norms import Tolerance, rms, tolerance_scale
from ..methods.base import Field
from .base import Norm, measured


def hairer(
    f: Field,
    t0: Tensor,
    span: Tensor,
    y0: Leaves,
    f0: Leaves,
    order: int,
    rtol: Tolerance,
    atol: Tolerance,
    norm: Norm | None = None,
) -> Tensor:
    """A lane of positive step sizes. Hairer, Norsett & Wanner I, II.4, "Starting Step Size"; one evaluation of f.

    norm: default RMS. span: signed lane t1 - t0, and no evaluation goes past it. Not finite where f0 is not.
    """
    batched = t0.ndim == 1
    scale = tolerance_scale(y0, rtol, atol)
    tiny = 1e-12  # keeps 0/0 out where a tolerance and a state are zero

    def size(x: Leaves) -> Tensor:
        scaled = tuple(a / (s + tiny * (s == 0)) for a, s in zip(x, scale, strict=True))
        return rms(scaled, batched) if norm is None else torch.as_tensor(measured(norm, scaled)).to(span)

    d0, d1 = size(y0), size(f0)
    length = span.abs().to(d0.dtype)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
    h0 = coarse(torch.minimum(h0, length))
    signed = h0 * span.sign()
    # h0 == length would round: ask at the end itself, never beyond
    t = torch.where(h0 >= length, t0 + span, t0 + signed.to(t0.dtype))
    f1 = f(t, along(y0, spread_over(signed, y0), f0))
    safe = torch.where(h0 > 0, h0, torch.ones_like(h0))
    d2 = size(tuple(b - a for a, b in zip(f0, f1, strict=True))) / safe
    top = torch.maximum(d1, d2)
    flat = torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3)
    h1 = torch.where(top <= 1e-15, flat, (0.01 / top) ** (1.0 / (order + 1)))
    # f1 beyond a singularity says nothing of the step; h0 stands then
    h1 = torch.where(torch.isfinite(d2), h1, h0)
    h = torch.minimum(torch.minimum(100 * h0, h1), length)
    return coarse(torch.where(torch.isfinite(d1), h, torch.full_like(h, torch.nan))).to(t0.dtype)
