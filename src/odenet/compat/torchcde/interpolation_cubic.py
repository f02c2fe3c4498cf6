"""Paths of cubic pieces, and the natural spline."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from ...series.cubic import natural_spline
from ...series.filling import observed_neighbours
from .interpolation_base import KnotInterpolation, checked_coeffs
from .misc import validate_input_path


def hermite_coeffs(t: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Coefficients of the cubics with these values and slopes, (..., K, C), at knots t, (K,): (..., K - 1, 4 C)."""
    h = t.diff()[:, None]
    left, right, line = slopes[..., :-1, :], slopes[..., 1:, :], values.diff(dim=-2) / h
    two_c = 2 * (3 * line - 2 * left - right) / h
    three_d = 3 * (left + right - 2 * line) / h**2
    return torch.cat([values[..., :-1, :], left, two_c, three_d], -1)


def natural_cubic_coeffs(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Coefficients for `CubicSpline` of the natural cubic spline, (..., length - 1, 4 channels).

    x: (..., length, channels), NaN where a value is missing; each channel has a spline through its own values. It is
        constant before the first and behind the last one, at every time there, and 0 in a channel without any.
    t: times, (length,), increasing; None: 0, 1, ..., length - 1.

    Raises ValueError for a wrong x or t.
    """
    t = validate_input_path(x, t)
    mask = ~torch.isnan(x)
    return _coeffs(t, x, mask)


def natural_cubic_spline_coeffs(x: Tensor, t: Tensor | None = None) -> Tensor:
    """`natural_cubic_coeffs` as torchcde had it first: before the first and behind the last value it is not constant.

    Only the first and the last time get these values, if theirs are missing, and a spline is put through all.
    """
    t = validate_input_path(x, t)
    mask = ~torch.isnan(x)
    before, after = observed_neighbours(mask)
    some = mask.any(-2, keepdim=True)
    last = x.shape[-2] - 1
    first_value, last_value = (
        x.gather(-2, after[..., :1, :].clamp(max=last)),
        x.gather(-2, before[..., -1:, :].clamp(min=0)),
    )
    inner = slice(1, -1)
    x = torch.cat([first_value, x[..., inner, :], last_value], -2)
    mask = torch.cat([some, mask[..., inner, :], some], -2)
    return _coeffs(t, x, mask)


def _coeffs(t: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    values, slopes = natural_spline(t, torch.where(mask, x, 0.0), mask, torch.ones_like(mask[..., 0]))
    return hermite_coeffs(t, values, slopes)


@final
class CubicSpline(KnotInterpolation):
    """The path of cubic pieces between knots.

    coeffs: from `hermite_cubic_coefficients_with_backward_differences` or `natural_cubic_coeffs`, (..., length - 1, 4
    channels). t: the times given to it.

    >>> import torch
    >>> X = CubicSpline(natural_cubic_coeffs(torch.arange(5.0)[:, None]))
    >>> torch.allclose(X.evaluate(2.5), torch.tensor([2.5])), torch.allclose(X.derivative(2.5), torch.tensor([1.0]))
    (True, True)
    """

    def __init__(self, coeffs: Tensor, t: Tensor | None = None, **kwargs: Any) -> None:
        coeffs = checked_coeffs(coeffs, 1, "natural_cubic_coeffs")
        if coeffs.shape[-1] % 4:
            raise ValueError(
                f"coeffs must have four numbers for each channel, from natural_cubic_coeffs; got {coeffs.shape[-1]}: "
                "the values of x are not yet coefficients"
            )
        super().__init__(t, coeffs, **kwargs)

    def _values(self, u: Tensor, index: Tensor) -> Tensor:
        a, b, two_c, three_d = self._pieces.index_select(-2, index).chunk(4, -1)
        u = u[:, None]
        return a + u * (b + u * (two_c / 2 + u * three_d / 3))

    def _slopes(self, u: Tensor, index: Tensor) -> Tensor:
        _, b, two_c, three_d = self._pieces.index_select(-2, index).chunk(4, -1)
        u = u[:, None]
        return torch.addcmul(b, u, torch.addcmul(two_c, u, three_d))


NaturalCubicSpline = CubicSpline
"""Its name in torchcde before 0.2."""
