"""The recurrent models of series, held to what every model of series must do."""

from __future__ import annotations

from nn.series_model_suite import SeriesModelSuite
from odenet.nn import GRUD, ODERNN, GRUDelta, GRUODEBayes


class TestODERNN(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, static=static)


class TestODERNNPerSample(SeriesModelSuite):
    """Adaptive steps of each sample's own."""

    def make(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, cell="rnn", static=static, rtol=1e-3, atol=1e-3, per_sample=True)

    def make_for_gradients(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, static=static, step=1.0, per_sample=True, gradient="discrete")


class TestGRUODEBayes(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUODEBayes:
        return GRUODEBayes(channels, 4, out, static, prep=2, width=5)


class TestGRUODEBayesImputing(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUODEBayes:
        return GRUODEBayes(channels, 4, out, static, width=5, impute=True, minimal=True, method="rk4", step=1.0)


class TestGRUDelta(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUDelta:
        return GRUDelta(channels, 4, out, static)


class TestGRUD(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUD:
        return GRUD(channels, 4, out, static)
