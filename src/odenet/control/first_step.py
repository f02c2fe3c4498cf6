"""The first step size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.leaves import Leaves, add_scaled, expand_over
from ..core.norms import Tolerance, all_finite, max_abs, norm_dtype, rms, rms_on_host, tolerance_scale
from ..core.scalars import ScalarLike, convert_like, isfinite, mask_like, maximum, minimum, round_to_float32, where
from ..methods.method import Field
from .controller import Norm, apply_norm

_ORDINARY = 1e20  # spans beyond this, or below its inverse, are the unit of time for what follows
_EPS = 2.0**-52


def initial_step_size(
    f: Field,
    t0: Tensor,
    span: ScalarLike,
    y0: Leaves,
    f0: Leaves,
    order: int,
    rtol: Tolerance,
    atol: Tolerance,
    norm: Norm | None = None,
) -> ScalarLike:
    """Positive step sizes, held as `span` is. Hairer, Norsett & Wanner I, II.4, "Starting Step Size"; calls f once.

    norm: default RMS. span: signed t1 - t0, a lane, and no evaluation goes past it. Not finite where y0 or f0 is not.
    """
    batched = t0.ndim == 1
    scale = _scale(y0, rtol, atol, batched)
    # quotients of float32 and their squares are numbers in float64; of float64 maybe neither is one
    ample = all(torch.finfo(norm_dtype(s)).bits > torch.finfo(s.dtype).bits for s in scale)
    widths = [s.to(norm_dtype(s)) for s in scale]

    def size(x: Leaves) -> ScalarLike:
        if norm is not None:
            return convert_like(torch.as_tensor(apply_norm(norm, tuple(map(torch.div, x, scale)))).to(t0), span)
        scaled = tuple([(a.abs() if a.is_complex() else a) / s for a, s in zip(x, widths, strict=True)])
        if not ample:
            return convert_like(_careful_rms(scaled, batched), span)
        return rms(scaled, batched).to(span.dtype) if isinstance(span, Tensor) else rms_on_host(scaled)

    length = abs(span)
    # the constants below are times too, and mean nothing for spans of other magnitudes
    unit = where((length > _ORDINARY) | ((length > 0) & (length < 1 / _ORDINARY)), length, 1.0)
    length = length / unit
    d0, d1 = size(y0), size(f0) * unit
    h0 = where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / maximum(d1, 1e-5))
    h0 = where(d1 == math.inf, 1e-10 * length, h0)  # too large for a number
    h0 = _coarse(minimum(h0, length))
    signed = h0 * unit * where(span < 0, -1.0, 1.0)
    # h0 == length would round: ask at the end itself, never beyond
    t = t0 + where(h0 >= length, span, signed)
    f1 = f(
        t.to(t0.dtype), add_scaled(y0, expand_over(torch.as_tensor(signed, dtype=t0.dtype, device=t0.device), y0), f0)
    )
    d2 = size(tuple(map(torch.sub, f1, f0))) * unit / where(h0 > 0, h0, 1.0)
    top = maximum(d1, d2)
    flat, steep = maximum(h0 * 1e-3, 1e-6), (0.01 / maximum(top, 1e-15)) ** (1.0 / (order + 1))
    # f1 beyond a singularity says nothing of the step; h0 stands then
    h1 = where(isfinite(d1) & isfinite(d2), where(top <= 1e-15, flat, steep), h0)
    h = minimum(minimum(100 * h0, h1), length)
    h = minimum(
        maximum(_coarse(h) * unit, 8 * _EPS * abs(convert_like(t0, span))), abs(span)
    )  # lost beside t0 otherwise
    finite = isfinite(d0 + d1) if ample and norm is None else mask_like(all_finite((*y0, *f0), batched), span)
    return where(finite, h, math.nan)


def _careful_rms(x: Leaves, batched: bool) -> Tensor:
    """The RMS of positive numbers of which the squares may be too large, or too small, for the dtype."""
    top = max_abs(x, batched)
    top = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
    return top * rms(tuple(a / b for a, b in zip(x, expand_over(top, x), strict=True)), batched)


def _scale(y0: Leaves, rtol: Tolerance, atol: Tolerance, batched: bool) -> Leaves:
    """atol + rtol |y0|, and where that is zero what keeps 0/0 out."""
    scale = tolerance_scale(y0, rtol, atol)
    least = [2 * torch.finfo(s.dtype).tiny for s in scale]
    if all(not isinstance(a, Tensor) and a > x for a, x in zip(atol, least, strict=True)):
        return scale
    tops = max_abs(y0, batched)
    floor = expand_over(1e-12 * torch.where(tops > 0, tops, 1.0), y0)
    return tuple(torch.where(s <= x, s + low, s) for s, x, low in zip(scale, least, floor, strict=True))


def _coarse(h: ScalarLike) -> ScalarLike:
    """h with float32's digits, and beyond float32's range as it is."""
    rounded = round_to_float32(h)
    return where((rounded > 1e-37) & (rounded < math.inf), rounded, h)
