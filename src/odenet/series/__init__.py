"""Series at irregular times: data, and the control paths through them."""

from torch.serialization import add_safe_globals

from .control_path import ControlPath
from .from_tables import from_long, from_wide
from .interpolation import hermite, linear, natural, rectilinear
from .mini_batches import batches, cat, from_packed
from .normalizer import Normalizer
from .sample_lists import from_lists
from .series import Packed, Series
from .ts_files import LabelledSeries, read_ts

add_safe_globals([Series])  # tensors and names: `torch.load` may read what was saved

__all__ = [
    "ControlPath",
    "LabelledSeries",
    "Normalizer",
    "Packed",
    "Series",
    "batches",
    "cat",
    "from_lists",
    "from_long",
    "from_packed",
    "from_wide",
    "hermite",
    "linear",
    "natural",
    "read_ts",
    "rectilinear",
]
