"""The recurrent models of series, held to what every model of series must do."""

from __future__ import annotations

from nn.series_model_suite import SeriesModelSuite
from odenet.nn.recurrent import ODERNN


class TestODERNN(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, static=static)
