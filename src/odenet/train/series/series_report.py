"""The table of a run of the task `series`: its model beside the last value and the mean, or beside the labels' own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ...series import Series
from ..files import write, write_csv
from .model_table import BASELINES, build_baseline
from .predictors import BaselinePredictor, ValuePredictor
from .series_data import LABELLED, SeriesData
from .series_metrics import SCALED, new_metrics, update_beyond, update_label_metrics, update_value_metrics
from .series_samples import given_of, samples, unpacked

_BATCH = 256
_ALONE = {"sync_on_compute": False}  # the first of several processes reports by itself


def report(
    net: nn.Module, settings: Any, info: Mapping[str, Any], data: SeriesData, folder: Path
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Rows of the test data's metrics by model, and splits.csv, comparison.csv and .json."""
    rows = _label_rows(net, settings, data) if settings.task in LABELLED else _value_rows(net, settings, info, data)
    text = json.dumps(rows, indent=2) + "\n"
    return rows, [
        write_csv(folder / "splits.csv", split_rows(data)),
        write_csv(folder / "comparison.csv", rows),
        write(folder / "comparison.json", text),
    ]


def _label_rows(net: nn.Module, settings: Any, data: SeriesData) -> list[dict[str, Any]]:
    """The model, and what is said without a look at the series."""
    assert data.labels is not None
    trained = data.labels[data.splits["train"]]
    if settings.task == "regress":
        name, constant = "mean of the training targets", trained.mean()
    else:
        name = "most frequent class"
        constant = (torch.bincount(trained, minlength=len(data.classes)) / len(trained)).log()
    rows: list[dict[str, Any]] = []
    for model in (settings.model, name):
        metrics = new_metrics(settings.task, len(data.classes), False, **_ALONE)
        for batch in DataLoader(samples(data, "test", settings, 0), _BATCH):
            with torch.no_grad():
                output = (
                    net(given_of(batch)) if model != name else constant.expand(len(batch["label"]), *constant.shape)
                )
            update_label_metrics(settings.task, metrics, output, batch["label"])
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "No (positive|negative) samples"
            )  # the mean is over classes that are there
            rows.append({"model": model, **{key: float(metric.compute()) for key, metric in metrics.items()}})
    return rows


def _value_rows(net: nn.Module, settings: Any, info: Mapping[str, Any], data: SeriesData) -> list[dict[str, Any]]:
    assert isinstance(net, ValuePredictor)
    rows = [{"model": settings.model, **scores(net, settings, data)}]
    for name in BASELINES:
        if name != settings.model:
            rows.append({"model": name, **scores(fitted_baseline(name, settings, info, data), settings, data)})
    return rows


def split_rows(data: SeriesData) -> list[dict[str, Any]]:
    """Which split each series is in, by its id, or its number where there are none."""
    names = data.series.ids or range(len(data.series))
    split_of = {i: split for split, part in data.splits.items() for i in part.tolist()}
    return [{"id": names[i], "split": split_of[i]} for i in sorted(split_of)]


def fitted_baseline(name: str, settings: Any, info: Mapping[str, Any], data: SeriesData) -> BaselinePredictor:
    """With the most likely deviations of the data to train on."""
    baseline = build_baseline(name, info)
    baseline.fit([(given, target) for given, target, _ in pairs(data, "train", settings)])
    return baseline.eval()


def pairs(data: SeriesData, split: str, settings: Any) -> Iterator[tuple[Series, Series, Series | None]]:
    """What is given, what is to be predicted, and what lies beyond, by batches."""
    for batch in DataLoader(samples(data, split, settings, 0), _BATCH):
        target = unpacked(batch, "target")
        assert target is not None
        yield given_of(batch), target, unpacked(batch, "beyond")


@torch.no_grad()
def scores(net: ValuePredictor, settings: Any, data: SeriesData) -> dict[str, float]:
    """The metrics of the test data, by their names in the table."""
    metrics = new_metrics(settings.task, 0, data.truth is not None, **_ALONE)
    for given, target, beyond in pairs(data, "test", settings):
        update_value_metrics(metrics, net.normalizer, net.scaled_forecast(given, target.t), target)
        update_beyond(metrics, net, given, beyond)
    return {f"{name} (scaled)" if name in SCALED else name: float(m.compute()) for name, m in metrics.items()}
