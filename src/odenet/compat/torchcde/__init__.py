"""torchcde's functions on this library's solvers: `from odenet.compat import torchcde`.

The modules and names are those of torchcde 0.2.5; docs/migrate_torchcde.md lists what differs.
"""

from .interpolation_base import InterpolationBase
from .interpolation_cubic import CubicSpline, NaturalCubicSpline, natural_cubic_coeffs, natural_cubic_spline_coeffs
from .interpolation_hermite_cubic_bdiff import hermite_cubic_coefficients_with_backward_differences
from .interpolation_linear import LinearInterpolation, linear_interpolation_coeffs
from .log_ode import logsig_windows, logsignature_windows
from .misc import TupleControl
from .solver import cdeint

__version__ = "0.2.5"  # torchcde's version with the same interface; programs compare it

__all__ = [
    "CubicSpline",
    "InterpolationBase",
    "LinearInterpolation",
    "NaturalCubicSpline",
    "TupleControl",
    "cdeint",
    "hermite_cubic_coefficients_with_backward_differences",
    "linear_interpolation_coeffs",
    "logsig_windows",
    "logsignature_windows",
    "natural_cubic_coeffs",
    "natural_cubic_spline_coeffs",
]
