"""The first step size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.leaves import Leaves, add_scaled, expand_over
from ..core.norms import Tolerance, all_finite, max_abs, norm_dtype, rms, rms_on_host, tolerance_scale
from ..core.scalars import ScalarLike, convert_like, isfinite, mask_like, maximum, minimum, round_to_float32, where
from ..methods.method import Field, Norm
from .controller import apply_norm

_MAX_SPAN = 1e20  # a span longer than this, or shorter than its inverse, becomes the unit of time of the formulas
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
    """The first step size, positive, of the type of `span`. Calls f once; f0 = f(t0, y0).

    Hairer, Norsett & Wanner I, II.4, "Starting Step Size". NaN where y0 or f0 is not finite.

    span: signed t1 - t0, a float or a tensor (B,); f is not evaluated beyond t1. order: of the method. norm: of the
    leaves over the tolerance; default: RMS.
    """
    batched = t0.ndim == 1
    scale = _nonzero_scale(y0, rtol, atol, batched)
    # float64 holds every quotient of float32 numbers and its square; those of float64 may overflow or underflow
    no_overflow = all(torch.finfo(norm_dtype(s)).bits > torch.finfo(s.dtype).bits for s in scale)
    wide_scale = [s.to(norm_dtype(s)) for s in scale]

    def scaled_norm(x: Leaves) -> ScalarLike:
        if norm is not None:
            return convert_like(torch.as_tensor(apply_norm(norm, tuple(map(torch.div, x, scale)))).to(t0), span)
        scaled = tuple([(a.abs() if a.is_complex() else a) / s for a, s in zip(x, wide_scale, strict=True)])
        if not no_overflow:
            return convert_like(_safe_rms(scaled, batched), span)
        return rms(scaled, batched).to(span.dtype) if isinstance(span, Tensor) else rms_on_host(scaled)

    length = abs(span)
    # the formulas' constants are times too, chosen for spans of ordinary magnitude
    unit = where((length > _MAX_SPAN) | ((length > 0) & (length < 1 / _MAX_SPAN)), length, 1.0)
    length = length / unit
    d0, d1 = scaled_norm(y0), scaled_norm(f0) * unit
    h0 = where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / maximum(d1, 1e-5))
    h0 = where(d1 == math.inf, 1e-10 * length, h0)  # the norm of f0 has overflowed
    h0 = _round_step(minimum(h0, length))
    signed = h0 * unit * where(span < 0, -1.0, 1.0)
    # where h0 is the whole length, t0 + signed may round past t1: evaluate at t1 itself
    t = t0 + where(h0 >= length, span, signed)
    f1 = f(
        t.to(t0.dtype), add_scaled(y0, expand_over(torch.as_tensor(signed, dtype=t0.dtype, device=t0.device), y0), f0)
    )
    d2 = scaled_norm(tuple(map(torch.sub, f1, f0))) * unit / where(h0 > 0, h0, 1.0)
    d_max = maximum(d1, d2)
    h_flat, h_steep = maximum(h0 * 1e-3, 1e-6), (0.01 / maximum(d_max, 1e-15)) ** (1.0 / (order + 1))
    # f1 is not finite where h0 reaches beyond a singularity: it says nothing about the step, so h0 is used
    h1 = where(isfinite(d1) & isfinite(d2), where(d_max <= 1e-15, h_flat, h_steep), h0)
    h = minimum(minimum(100 * h0, h1), length)
    # at least 8 units in the last place of t0: t0 + h would round to t0 otherwise
    h = minimum(maximum(_round_step(h) * unit, 8 * _EPS * abs(convert_like(t0, span))), abs(span))
    finite = isfinite(d0 + d1) if no_overflow and norm is None else mask_like(all_finite((*y0, *f0), batched), span)
    return where(finite, h, math.nan)


def _safe_rms(x: Leaves, batched: bool) -> Tensor:
    """The RMS of non-negative entries, divided by the largest first: their squares may overflow or underflow."""
    largest = max_abs(x, batched)
    largest = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return largest * rms(tuple(a / b for a, b in zip(x, expand_over(largest, x), strict=True)), batched)


def _nonzero_scale(y0: Leaves, rtol: Tolerance, atol: Tolerance, batched: bool) -> Leaves:
    """atol + rtol |y0|; entries that are zero are raised by 1e-12 of the largest |y0|, against 0/0."""
    scale = tolerance_scale(y0, rtol, atol)
    tiny = [2 * torch.finfo(s.dtype).tiny for s in scale]
    if all(not isinstance(a, Tensor) and a > x for a, x in zip(atol, tiny, strict=True)):
        return scale
    largest = max_abs(y0, batched)
    floor = expand_over(1e-12 * torch.where(largest > 0, largest, 1.0), y0)
    return tuple(torch.where(s <= x, s + low, s) for s, x, low in zip(scale, tiny, floor, strict=True))


def _round_step(h: ScalarLike) -> ScalarLike:
    """h rounded to float32; unchanged outside the range of float32."""
    rounded = round_to_float32(h)
    return where((rounded > 1e-37) & (rounded < math.inf), rounded, h)
