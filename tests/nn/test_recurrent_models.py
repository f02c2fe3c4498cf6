"""The recurrent models of series, held to what every model of series must do."""

from __future__ import annotations

import pytest
import torch

from nn.series_model_suite import OUT, TS, D, SeriesModelSuite, close, ragged
from odenet.nn import GRUD, ODERNN, GRUDelta, GRUODEBayes
from odenet.series import Series


class RecurrenceSuite(SeriesModelSuite):
    """What recurrent models must do beside."""

    def test_without_rows_and_before_them(self) -> None:
        """The output is that of the initial state, at any time."""
        model, series = self.model(2), ragged(2)
        empty = Series(torch.zeros(4, 0, dtype=D), torch.zeros(4, 0, 2, dtype=D), static=series.static)
        start = model.readout(model.hidden_state(model.start(model.scaled(series))))
        close(model(empty), start, self.batch_tol)
        close(model(empty, TS), start[:, None].expand(4, 3, OUT), self.batch_tol)
        close(model(series, torch.tensor([0.05], dtype=D))[:, 0], start, self.batch_tol)
        close(model.before(series)[:, 0], start, self.batch_tol)

    def test_rows_before_the_first_value_say_nothing(self) -> None:
        model, series = self.model(), ragged()
        early = torch.tensor([0.02, 0.11], dtype=D).expand(4, 2)
        later = series.observed(torch.arange(5).expand(4, 5) > 0)  # not the first
        for rows in (series, later):
            t = torch.cat([early, torch.where(rows.rows, rows.t, torch.nan)], 1)
            x = torch.cat([torch.full((4, 2, 2), torch.nan, dtype=D), torch.where(rows.mask, rows.x, torch.nan)], 1)
            longer = Series(t, x, None, rows.length + 2)
            close(model(longer, TS), model(rows, TS), self.batch_tol)
            close(model(longer), model(rows), self.batch_tol)
            close(model.states(longer)[:, 2:], model.states(rows), self.batch_tol)
            close(model.before(longer)[:, 2:][rows.rows], model.before(rows)[rows.rows], self.batch_tol)

    def test_before_a_row(self) -> None:
        """It is the answer for the row's time of a series that ends before the row."""
        model, series = self.model(2), ragged(2)
        before = model.before(series)
        for j in range(1, 5):
            rows = torch.minimum(series.length, torch.tensor(j))
            part = Series(series.t[:, :j], series.x[:, :j], series.mask[:, :j], rows, series.static)
            there = series.length > j
            close(model(part, series.t[:, j : j + 1])[there, 0], before[there, j], self.batch_tol)

    def test_a_zero_that_is_observed_is_no_missing_value(self) -> None:
        model, t = self.model(), torch.tensor([[0.5]], dtype=D)
        missing, zero = (Series(t, torch.tensor([[[1.0, x]]], dtype=D)) for x in (torch.nan, 0.0))
        assert bool(((model(missing) - model(zero)).abs() > 1e-8).all())


class TestODERNN(RecurrenceSuite):
    def make(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, static=static)


@pytest.mark.slow
class TestODERNNPerSample(RecurrenceSuite):
    """Adaptive steps of each sample's own."""

    def make(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, cell="rnn", static=static, rtol=1e-3, atol=1e-3, per_sample=True)

    def make_for_gradients(self, channels: int, out: int | None, static: int) -> ODERNN:
        return ODERNN(channels, 4, out, static=static, step=1.0, per_sample=True, gradient="discrete")


class TestGRUODEBayes(RecurrenceSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUODEBayes:
        return GRUODEBayes(channels, 4, out, static, prep=2, width=5)


@pytest.mark.slow
class TestGRUODEBayesImputing(RecurrenceSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUODEBayes:
        return GRUODEBayes(channels, 4, out, static, width=5, impute=True, minimal=True, method="rk4", step=1.0)


class TestGRUDelta(RecurrenceSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUDelta:
        return GRUDelta(channels, 4, out, static)


class TestGRUD(RecurrenceSuite):
    def make(self, channels: int, out: int | None, static: int) -> GRUD:
        return GRUD(channels, 4, out, static)
