"""Models of series that solve no equation: what models that do are compared with."""

from .multi_time_attention import MultiTimeAttention
from .series_transformer import SeriesTransformer
from .simple_forecasts import LastValue, MeanValue

__all__ = ["LastValue", "MeanValue", "MultiTimeAttention", "SeriesTransformer"]
