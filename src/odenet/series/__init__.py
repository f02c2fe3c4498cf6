"""Series at irregular times: data, and the control paths through them."""

from .control_path import ControlPath
from .from_tables import from_lists, from_long, from_wide
from .interpolation import hermite, linear, natural, rectilinear
from .series import Series

__all__ = [
    "ControlPath",
    "Series",
    "from_lists",
    "from_long",
    "from_wide",
    "hermite",
    "linear",
    "natural",
    "rectilinear",
]
