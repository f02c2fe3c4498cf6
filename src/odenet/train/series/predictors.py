"""What a run trains: a model of series with the way from its output to classes, a number, or values at times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.validate import describe
from ...nn.series_model import SeriesModel
from ...series import Series
from ...series.normalizer import Normalizer
from .gaussian_scores import Gaussian, nll

_LOG_STD = (-7.0, 5.0)  # of a forecast, in deviations of the data: no likelihood grows without end


@final
class ClassPredictor(nn.Module):
    """Logits of the classes, (B, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, series: Series) -> Tensor:
        return self.model(series)

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(output, label)


@final
class NumberPredictor(nn.Module):
    """A number for each series, (B,), in the units of the targets, whose mean and deviation in training are given."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, series: Series) -> Tensor:
        return self.mean + self.std * self.model(series).squeeze(-1)

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        return ((output - label) / self.std).square().mean()


class ValuePredictor(nn.Module, ABC):
    """A Gaussian for each channel at times: forward(series, ts) with ts (B, Q) or (Q,), in the units of the data."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def normalizer(self) -> Normalizer:
        """The scales of the data."""
        return self.model.normalizer

    def forward(self, series: Series, ts: Tensor) -> Gaussian:
        scaled = self.scaled_forecast(series, ts.to(series.t).expand(len(series), ts.shape[-1]))
        return Gaussian(self.normalizer.values(scaled.mean), self.normalizer.deviations(scaled.std))

    @abstractmethod
    def scaled_forecast(self, series: Series, ts: Tensor) -> Gaussian:
        """At ts (B, Q), in deviations of the data."""

    def loss(self, given: Series, target: Series) -> tuple[Tensor, Gaussian | None]:
        """What training makes small, and the forecast at the times of the target, where it comes with it."""
        forecast = self.scaled_forecast(given, target.t)
        return observed_mean(nll(forecast, self.normalizer(target).x), target.mask), forecast

    def to_scale(self, mean: Tensor, std: Tensor) -> Gaussian:
        """A forecast in the units of the data, in deviations."""
        return Gaussian((mean - self.normalizer.mean) / self.normalizer.std, std / self.normalizer.std)


@final
class DirectPredictor(ValuePredictor):
    """Mean and logarithm of the deviation are the outputs of a model, 2 C of them."""

    def scaled_forecast(self, series: Series, ts: Tensor) -> Gaussian:
        mean, log_std = self.model(series, ts).chunk(2, -1)
        return Gaussian(mean, log_std.clamp(*_LOG_STD).exp())


@final
class BayesPredictor(ValuePredictor):
    """GRU-ODE-Bayes: its own loss on the rows that are given, and the likelihood of the target."""

    def scaled_forecast(self, series: Series, ts: Tensor) -> Gaussian:
        return self.to_scale(*self.model.predict(series, ts))

    def loss(self, given: Series, target: Series) -> tuple[Tensor, Gaussian | None]:
        loss, forecast = super().loss(given, target)
        return loss + self.model.loss(given), forecast


@final
class LatentPredictor(ValuePredictor):
    """A latent ODE, trained by the evidence lower bound of the target, in nats a value.

    The weight of the divergence rises to 1 in the first `warm_up` steps. Mean and deviation are those of the predictive
    distribution of some latent paths, the same ones in each call.
    """

    steps: Tensor

    def __init__(self, model: Any, warm_up: int = 200, paths: int = 30) -> None:
        super().__init__(model)
        self.warm_up, self.paths = warm_up, paths
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def scaled_forecast(self, series: Series, ts: Tensor) -> Gaussian:
        said = self.model.reconstruct(series, ts, samples=self.paths, quantiles=(), generator=0)
        return self.to_scale(said.mean, said.std)

    def loss(self, given: Series, target: Series) -> tuple[Tensor, Gaussian | None]:
        size = target.mask.sum().clamp(min=1) / len(given)
        if not self.training:
            return self.model.loss(given, target, generator=0) / size, self.scaled_forecast(given, target.t)
        weight = min(1.0, float(self.steps) / self.warm_up)
        self.steps += 1
        return self.model.loss(given, target, kl_weight=weight) / size, None  # a forecast takes many more solves


@final
class BaselinePredictor(ValuePredictor):
    """A forecast without a model, `odenet.nn.LastValue` or `MeanValue`, with a learned deviation of each channel."""

    def __init__(self, model: SeriesModel) -> None:
        super().__init__(model)
        self.log_std = nn.Parameter(torch.zeros(model.channels))

    def scaled_forecast(self, series: Series, ts: Tensor) -> Gaussian:
        mean = self.model(series, ts)
        std = self.normalizer.std * self.log_std.clamp(*_LOG_STD).exp()
        return self.to_scale(mean, std.expand_as(mean))

    @torch.no_grad()
    def fit(self, batches: Sequence[tuple[Series, Series]]) -> None:
        """The most likely deviations, of given series and their targets."""
        total, count = torch.zeros_like(self.log_std), torch.zeros_like(self.log_std)
        for given, target in batches:
            error = self.scaled_forecast(given, target.t).mean - self.normalizer(target).x
            total += torch.where(target.mask, error.square(), 0.0).sum((0, 1))
            count += target.mask.sum((0, 1))
        self.log_std.copy_((total / count.clamp(min=1)).clamp(min=1e-6).log() / 2)


def observed_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over what is observed; 0 where nothing is."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def scales_of(series: Series) -> dict[str, Any]:
    """The state of a `Normalizer` of this data, in JSON's types."""
    static = 0 if series.static is None else series.static.shape[1]
    return {k: v.tolist() for k, v in Normalizer(series.num_channels, static).fit(series).state_dict().items()}


def take_scales(normalizer: Normalizer, scales: Mapping[str, Any]) -> None:
    normalizer.load_state_dict({k: torch.tensor(v) for k, v in scales.items()})


def with_channels_checked(net: nn.Module, channels: Sequence[str]) -> nn.Module:
    """The network, which from now on refuses a series whose channels have other names, or another order."""
    net.register_forward_pre_hook(partial(_check_channels, tuple(channels)), with_kwargs=True)
    return net


def _check_channels(trained: tuple[str, ...], net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    series = args[0] if args else kwargs.get("series")
    if not isinstance(series, Series):
        raise TypeError(f"series must be an odenet.series.Series, as from_wide makes; got {describe(series)}")
    unnamed = trained == tuple(map(str, range(len(trained))))
    if series.channels is None or unnamed or tuple(map(str, series.channels)) == trained:
        return
    raise ValueError(
        f"series has the channels {', '.join(map(str, series.channels))}, and the run was trained on "
        f"{', '.join(trained)}: give these, in this order"
    )
