"""The first step size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.lanes import coarse
from ..core.leaves import Leaves, along, spread_over
from ..core.norms import Tolerance, all_finite, peak, rms, tolerance_scale, wide
from ..methods.base import Field
from .base import Norm, measured

_ORDINARY = 1e20  # spans beyond this, or below its inverse, are the unit of time for what follows
_EPS = 2.0**-52


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

    norm: default RMS. span: signed lane t1 - t0, and no evaluation goes past it. Not finite where y0 or f0 is not.
    """
    batched = t0.ndim == 1
    scale = _scale(y0, rtol, atol, batched)
    # quotients of float32 and their squares are numbers in float64; of float64 maybe neither is one
    ample = all(_bits(wide(s)) > _bits(s.dtype) for s in scale)

    def size(x: Leaves) -> Tensor:
        if norm is not None:
            return torch.as_tensor(measured(norm, tuple(a / s for a, s in zip(x, scale, strict=True)))).to(span)
        scaled = tuple(a.abs().to(wide(s)) / s.to(wide(s)) for a, s in zip(x, scale, strict=True))
        if ample:
            return rms(scaled, batched)
        top = peak(scaled, batched)
        top = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
        return top * rms(tuple(a / b for a, b in zip(scaled, spread_over(top, scaled), strict=True)), batched)

    length = span.abs().to(wide(span))
    # the constants below are times too, and mean nothing for spans of other magnitudes
    unit = torch.where((length > _ORDINARY) | (length < 1 / _ORDINARY), length, 1.0)
    unit = torch.where(length > 0, unit, 1.0)
    length = length / unit
    d0, d1 = size(y0), size(f0) * unit
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
    h0 = torch.where(torch.isinf(d1), 1e-10 * length, h0)  # too large for a number
    h0 = _coarse(torch.minimum(h0, length))
    signed = h0 * unit * span.sign()
    # h0 == length would round: ask at the end itself, never beyond
    t = torch.where(h0 >= length, t0 + span, t0 + signed.to(t0.dtype))
    f1 = f(t, along(y0, spread_over(signed, y0), f0))
    safe = torch.where(h0 > 0, h0, torch.ones_like(h0))
    d2 = size(tuple(b - a for a, b in zip(f0, f1, strict=True))) * unit / safe
    top = torch.maximum(d1, d2)
    flat = torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3)
    h1 = torch.where(top <= 1e-15, flat, (0.01 / top) ** (1.0 / (order + 1)))
    # f1 beyond a singularity says nothing of the step; h0 stands then
    h1 = torch.where(torch.isfinite(top), h1, h0)
    h = torch.minimum(torch.minimum(100 * h0, h1), length)
    h = torch.minimum(torch.maximum(_coarse(h) * unit, 8 * _EPS * t0.abs()), span.abs())  # lost beside t0 otherwise
    finite = torch.isfinite(d0 + d1) if ample and norm is None else all_finite((*y0, *f0), batched)
    return torch.where(finite, h, torch.nan).to(t0.dtype)


def _scale(y0: Leaves, rtol: Tolerance, atol: Tolerance, batched: bool) -> Leaves:
    """atol + rtol |y0|, and where that is zero what keeps 0/0 out."""
    scale = tolerance_scale(y0, rtol, atol)
    least = [2 * torch.finfo(s.dtype).tiny for s in scale]
    if all(not isinstance(a, Tensor) and a > x for a, x in zip(atol, least, strict=True)):
        return scale
    tops = peak(y0, batched)
    floor = spread_over(1e-12 * torch.where(tops > 0, tops, 1.0), y0)
    return tuple(torch.where(s <= x, s + low, s) for s, x, low in zip(scale, least, floor, strict=True))


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def _coarse(h: Tensor) -> Tensor:
    """h with float32's digits, and beyond float32's range as it is."""
    rounded = coarse(h)
    return torch.where((rounded > 1e-37) & (rounded < torch.inf), rounded, h)
