"""Attention over series and simple forecasts: what every model of series must do, and by-hand formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nn.series_model_suite import TS, SeriesModelSuite, ragged
from odenet.nn import LastValue, MeanValue, MultiTimeAttention, SeriesTransformer
from odenet.nn.baselines.time_features import TimeFeatures
from odenet.series import Series

D = torch.float64


class TestSeriesTransformer(SeriesModelSuite):
    causal = False

    def make(self, channels: int, out: int | None, static: int) -> SeriesTransformer:
        return SeriesTransformer(channels, 4, out, static, heads=2, layers=1)


class TestCausalSeriesTransformer(SeriesModelSuite):
    def make(self, channels: int, out: int | None, static: int) -> SeriesTransformer:
        return SeriesTransformer(channels, 4, out, static, heads=1, causal=True, learned_times=False)


class TestMultiTimeAttention(SeriesModelSuite):
    causal = False
    last_row_is_last_state = False

    def make(self, channels: int, out: int | None, static: int) -> MultiTimeAttention:
        return MultiTimeAttention(channels, 4, out, static, references=5, time_size=6)
