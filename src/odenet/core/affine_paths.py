"""Affine probability paths x_t = alpha(t) x1 + sigma(t) x0, from noise x0 at t = 0 to data x1 at t = 1.

Lipman et al. 2023, "Flow matching for generative modeling", section 4; Lipman et al. 2024, "Flow matching guide and
code", section 4.8. Diffusion models call (alpha, sigma) a noise schedule, and run its time the other way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from ..errors import unknown_name
from .serialization import settings_repr
from .validate import describe, number

_JUST_AFTER = 1e-3


class AffinePath(ABC):
    """The coefficients of x_t = alpha(t) x1 + sigma(t) x0, and their derivatives.

    All are functions of a tensor of times of any shape, in [0, 1], and return its shape and dtype. alpha rises to 1,
    and sigma falls to 0. start: the first time at which the velocity tells data and noise apart. end: the last time at
    which all four are finite.
    """

    name: str
    end: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """The derivative of alpha."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """The derivative of sigma."""

    @abstractmethod
    def time(self, log_ratio: Tensor) -> Tensor:
        """The time at which log(alpha / sigma) has a value: the inverse of `log_ratio`."""

    @property
    def start(self) -> float:
        """0, or 1e-3 where the velocity at t = 0 is zero for all pairs, as where alpha begins like t^2."""
        zero = torch.zeros((), dtype=torch.float64)
        silent = self.sigma(zero) * self.alpha_dot(zero) == self.sigma_dot(zero) * self.alpha(zero)
        return _JUST_AFTER if bool(silent) else 0.0

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio; it rises from -inf or below 0 to inf."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def log_ratio_dot(self, t: Tensor) -> Tensor:
        """The derivative of `log_ratio`."""
        return self.alpha_dot(t) / self.alpha(t) - self.sigma_dot(t) / self.sigma(t)

    def __repr__(self) -> str:
        return settings_repr(self)


@final
class CondOT(AffinePath):
    """alpha = t, sigma = 1 - t: straight lines. Lipman et al. 2023, (22); rectified flow, Liu et al. 2023."""

    name = "cond_ot"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time(self, log_ratio: Tensor) -> Tensor:
        return torch.sigmoid(log_ratio)


@final
class Polynomial(AffinePath):
    """alpha = t^n, sigma = 1 - t^n. n: at least 1."""

    name = "polynomial"

    def __init__(self, n: float = 2.0) -> None:
        self.n = number("n", n)
        if not 1.0 <= self.n < math.inf:
            raise ValueError(f"n must be finite and at least 1; got {n!r}")

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.n

    def sigma(self, t: Tensor) -> Tensor:
        return 1.0 - t**self.n

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.n * t ** (self.n - 1.0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha_dot(t)

    def time(self, log_ratio: Tensor) -> Tensor:
        return torch.sigmoid(log_ratio) ** (1.0 / self.n)


@final
class Cosine(AffinePath):
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): unit variance all along. Albergo & Vanden-Eijnden 2023."""

    name = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1.0 - t))  # exactly 0 at t = 1

    def alpha_dot(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self.alpha(t)

    def time(self, log_ratio: Tensor) -> Tensor:
        return torch.atan(torch.exp(log_ratio)) * (2.0 / math.pi)


class VariancePreserving(AffinePath):
    """Base of paths with sigma = sqrt(1 - alpha^2), whose derivative is infinite at t = 1."""

    end = 1.0 - 1e-5

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)


@final
class LinearVP(VariancePreserving):
    """alpha = t, sigma = sqrt(1 - t^2)."""

    name = "linear_vp"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt((1.0 - t) * (1.0 + t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, log_ratio: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2.0 * log_ratio))


@final
class VP(VariancePreserving):
    """The variance-preserving diffusion whose noise rate rises linearly, in reverse. Song et al. 2021, (32), (33).

    With s = 1 - t: log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2, sigma = sqrt(1 - alpha^2).
    """

    name = "vp"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min, self.beta_max = number("beta_min", beta_min), number("beta_max", beta_max)
        if not 0.0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(
                f"beta_min must be positive and below beta_max; got beta_min={beta_min!r}, beta_max={beta_max!r}"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        s = 1.0 - t
        return -s * (0.25 * (self.beta_max - self.beta_min) * s + 0.5 * self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2.0 * self._log_alpha(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.alpha(t) * 0.5 * (self.beta_min + (self.beta_max - self.beta_min) * (1.0 - t))

    def time(self, log_ratio: Tensor) -> Tensor:
        minus_log_alpha = 0.5 * torch.nn.functional.softplus(-2.0 * log_ratio)
        half = 0.5 * self.beta_min / minus_log_alpha  # the quadratic equation for s, finite at both infinities
        return 1.0 - 2.0 / (half + torch.sqrt(half * half + (self.beta_max - self.beta_min) / minus_log_alpha))


PATHS: dict[str, AffinePath] = {path.name: path for path in (CondOT(), VP(), Cosine(), LinearVP(), Polynomial())}


def affine_path(path: Any) -> AffinePath:
    """A path by its name, or the path itself."""
    if isinstance(path, AffinePath):
        return path
    if not isinstance(path, str):
        raise TypeError(f"path must be a name, one of {', '.join(PATHS)}, or an AffinePath; got {describe(path)}")
    if path not in PATHS:
        raise unknown_name("path", path, PATHS)
    return PATHS[path]
