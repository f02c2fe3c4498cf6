"""Metrics of the task `series`, by torchmetrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...series import Series
from ...series.normalizer import Normalizer
from .gaussian_scores import Gaussian, covered, crps, nll
from .predictors import ValuePredictor

if TYPE_CHECKING:
    from torchmetrics import Metric

BINS = 15  # of the calibration error
SCALED = ("mse", "nll", "crps")  # in deviations of the data


def new_metrics(task: str, classes: int, truth: bool, **options: Any) -> dict[str, Metric]:
    """By name. truth: the series are known beyond what is seen of them. options: of torchmetrics, for each."""
    from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    from .present_auroc import PresentAUROC

    if task == "classify":
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro", **options),
            "auroc": PresentAUROC(classes, **options),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=BINS, **options),
        }
    if task == "regress":
        return {"rmse": MeanSquaredError(squared=False, **options), "mae": MeanAbsoluteError(**options)}
    return {
        "rmse": MeanSquaredError(squared=False, **options),
        "mse": MeanSquaredError(**options),
        "nll": MeanMetric(**options),
        "crps": MeanMetric(**options),
        "coverage": MeanMetric(**options),
        **({"extrapolation_rmse": MeanSquaredError(squared=False, **options)} if truth else {}),
    }


def update_label_metrics(task: str, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
    """output: logits (B, K), or numbers (B,)."""
    for metric in metrics.values() if task == "regress" else ():
        metric.update(output, label)
    for name in ("accuracy", "auroc", "calibration_error") if task == "classify" else ():
        metrics[name].update(output.softmax(-1), label)


@torch.no_grad()
def update_value_metrics(metrics: Mapping[str, Metric], normalizer: Normalizer, forecast: Gaussian, at: Series) -> None:
    """forecast: in deviations of the data, at the times of the series `at`.

    rmse is in the units of the data; mse, nll and crps are in deviations, so that channels count alike.
    """
    if not bool(at.mask.any()):
        return
    value = normalizer(at).x[at.mask]
    scaled = Gaussian(forecast.mean[at.mask], forecast.std[at.mask])
    metrics["rmse"].update(normalizer.values(forecast.mean)[at.mask], at.x[at.mask])
    metrics["mse"].update(scaled.mean, value)
    for name, score in (("nll", nll), ("crps", crps), ("coverage", covered)):
        metrics[name].update(score(scaled, value).float())


@torch.no_grad()
def update_beyond(metrics: Mapping[str, Metric], net: ValuePredictor, given: Series, beyond: Series | None) -> None:
    """The error where nothing was seen, in the units of the data."""
    if beyond is not None:
        mean = net(given, beyond.t).mean
        metrics["extrapolation_rmse"].update(mean[beyond.mask], beyond.x[beyond.mask])
