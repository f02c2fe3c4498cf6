"""Cubic pieces whose slopes come from the line before each knot."""

from __future__ import annotations

from torch import Tensor

from ...series.cubic import backward_difference_slopes
from .interpolation_cubic import hermite_coeffs
from .interpolation_linear import linear_interpolation_coeffs
from .misc import validate_input_path


def hermite_cubic_coefficients_with_backward_differences(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Coefficients for `CubicSpline`, (..., length - 1, 4 channels).

    The slope at each knot is that of the line up to it, so the path is smooth and looks one row ahead at the most.
    Morrill et al. 2021, "Neural controlled differential equations for online prediction tasks".

    x: (..., length, channels), NaN where a value is missing, which is filled in as by `linear_interpolation_coeffs`.
    t: times, (length,), increasing; None: 0, 1, ..., length - 1.

    Raises ValueError for a wrong x or t.
    """
    t = validate_input_path(x, t)
    x = linear_interpolation_coeffs(x, t)
    return hermite_coeffs(t, x, backward_difference_slopes(t.diff(), x))
