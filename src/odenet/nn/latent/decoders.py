"""Decoders of a latent ODE: the distribution of the values at a time, given the latent state there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, OneHotCategorical

from ...core.validate import describe, integer, is_real, number
from ...series.normalizer import Normalizer
from .random_draws import normal_noise, uniform_noise

Noise = float | Literal["learned", "per-time"]
_SMALLEST_STD = 1e-3  # of "per-time", in normalised units: a density has no bound without one
_FIRST_LOG_STD = -2.3  # of "learned": where it begins too large, early training is slow to use the values


class Decoder(nn.Module, ABC):
    """Base of decoders. The network sees z (..., latent); distributions are of values in the units of the data."""

    @abstractmethod
    def distribution(self, z: Tensor, normalizer: Normalizer) -> Distribution:
        """Of the values at each z; its mean and stddev are (..., C)."""

    @abstractmethod
    def log_prob(self, z: Tensor, x: Tensor, mask: Tensor, normalizer: Normalizer) -> Tensor:
        """Log density of the observed values of rows, (..., T): z (..., T, latent); x, mask (B, T, C), x normalised."""

    @abstractmethod
    def draw(self, distribution: Any, generator: torch.Generator | None) -> Tensor:
        """One random value of each distribution, (..., C)."""

    @abstractmethod
    def quantiles(self, distribution: Any, levels: Sequence[float]) -> Tensor:
        """Of the mixture of distributions along the first axis, (S, ..., C): (levels, ..., C)."""


@final
class GaussianDecoder(Decoder):
    """Independent normal values, with the mean net(z).

    net: module (..., latent) -> (..., channels), in normalised units. noise: the standard deviation in normalised
    units: a number; "learned", one parameter for each channel; or "per-time", where the net gives (..., 2 channels),
    means and what softplus makes deviations.
    """

    def __init__(self, net: nn.Module, channels: int, noise: Noise = "learned") -> None:
        super().__init__()
        self.net, self.channels = net, integer("channels", channels)
        self.noise = _checked_noise(noise)
        learned = noise == "learned"
        self.log_std = nn.Parameter(torch.full((self.channels,), _FIRST_LOG_STD)) if learned else None

    def _normalised(self, z: Tensor) -> Normal:
        out, width = self.net(z), self.channels * (2 if self.noise == "per-time" else 1)
        if out.shape[-1:] != (width,):
            raise ValueError(f"the net of the decoder must give (..., {width}); it gives shape {tuple(out.shape)}")
        if self.log_std is not None:
            return Normal(out, self.log_std.exp().expand_as(out))
        if self.noise == "per-time":
            mean, raw = out.chunk(2, -1)
            return Normal(mean, nn.functional.softplus(raw) + _SMALLEST_STD)
        return Normal(out, torch.full_like(out, float(self.noise)))

    def distribution(self, z: Tensor, normalizer: Normalizer) -> Normal:
        own = self._normalised(z)
        return Normal(normalizer.values(own.mean), normalizer.deviations(own.stddev))

    def log_prob(self, z: Tensor, x: Tensor, mask: Tensor, normalizer: Normalizer) -> Tensor:
        density = self._normalised(z).log_prob(x) - normalizer.std.log()
        return torch.where(mask, density, 0.0).sum(-1)

    def draw(self, distribution: Any, generator: torch.Generator | None) -> Tensor:
        mean = distribution.mean
        return mean + distribution.stddev * normal_noise(mean.shape, mean, generator)

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> Tensor:
        """By bisection between the lowest and the highest quantile of a component, where that of the mixture lies."""
        level = distribution.mean.new_tensor(levels).view(-1, *(1,) * distribution.mean.ndim)
        each = distribution.mean + distribution.stddev * torch.special.ndtri(level)
        low, high, level = each.amin(1), each.amax(1), level[:, 0]
        for _ in range(60):
            middle = (low + high) / 2
            below = distribution.cdf(middle[:, None]).mean(1) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@final
class CategoricalDecoder(Decoder):
    """One class at each time: the channels of the series are one-hot, and net(z) are the logits.

    net: module (..., latent) -> (..., channels). Means are probabilities. A row has all of its channels or none.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def distribution(self, z: Tensor, normalizer: Normalizer) -> OneHotCategorical:
        return OneHotCategorical(logits=self.net(z))

    def log_prob(self, z: Tensor, x: Tensor, mask: Tensor, normalizer: Normalizer) -> Tensor:
        observed = mask.any(-1)
        x = torch.where(mask, normalizer.values(x), 0.0)
        if not bool((mask.all(-1) == observed).all()):
            raise ValueError('with decoder="categorical" a row must have all channels, one of them 1, or none')
        if not bool((((x - x.round()).abs().amax(-1) < 1e-3) & (x.round().sum(-1) == observed)).all()):
            raise ValueError(
                'with decoder="categorical" the channels of a row must be one-hot: one of them 1, the others 0'
            )
        return (x.round() * self.net(z).log_softmax(-1)).sum(-1)

    def draw(self, distribution: Any, generator: torch.Generator | None) -> Tensor:
        probs = distribution.probs
        number = (uniform_noise(probs.shape[:-1], probs, generator)[..., None] > probs.cumsum(-1)).sum(-1)
        number = number.clamp(max=probs.shape[-1] - 1)  # where the probabilities sum to less than 1, by rounding
        return nn.functional.one_hot(number, probs.shape[-1]).to(probs)

    def quantiles(self, distribution: Any, levels: Sequence[float]) -> Tensor:
        """0 or 1: a channel is 0 with the probability of the other classes."""
        probs = distribution.probs.mean(0)
        return torch.stack([(1 - probs < level).to(probs) for level in levels])


def make_decoder(decoder: Any, latent: int, hidden: int, channels: int, noise: Any) -> Decoder:
    """The decoder of this name, with a perceptron of one hidden layer, or the given one."""
    if isinstance(decoder, Decoder):
        return decoder
    if decoder == "gaussian":
        return GaussianDecoder(perceptron(latent, hidden, channels * (1 + (noise == "per-time"))), channels, noise)
    if decoder == "categorical":
        return CategoricalDecoder(perceptron(latent, hidden, channels))
    raise ValueError(f'decoder must be "gaussian", "categorical" or a Decoder; got {describe(decoder)}')


def perceptron(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ELU(), nn.Linear(hidden, out))  # a kink would cost a solve steps


def _checked_noise(noise: Any) -> Noise:
    if noise in ("learned", "per-time"):
        return noise
    if not is_real(noise):
        raise TypeError(f'noise must be a positive number, "learned" or "per-time"; got {describe(noise)}')
    if not 0.0 < number("noise", noise) < torch.inf:
        raise ValueError(f"noise must be positive and finite; got {noise}")
    return float(noise)
