"""The velocity that samples follow: of the trained field, under guidance, and on another path."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from ...core.affine_paths import AffinePath
from .traces import Field


def predictions(path: AffinePath, t: Tensor, x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """The expected data and noise at x (B, *event) on a path, given its velocity there; t () or (B,).

    From x = alpha x1 + sigma x0 and the velocity alpha' x1 + sigma' x0.
    """
    alpha, sigma, alpha_dot, sigma_dot = coefficients(path, t, x)
    determinant = sigma * alpha_dot - sigma_dot * alpha
    return (sigma * velocity - sigma_dot * x) / determinant, (alpha_dot * x - alpha * velocity) / determinant


def coefficients(path: AffinePath, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma and their derivatives at t, () or (B,), in the dtype of x (B, *event), to multiply it."""
    values = (path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))
    if t.ndim == 0:
        return tuple(v.to(x.dtype) for v in values)  # pyright: ignore[reportReturnType]
    return tuple(v.to(x.dtype).view(-1, *(1 for _ in x.shape[1:])) for v in values)  # pyright: ignore[reportReturnType]


def null_like(null_context: Tensor | None, context: Tensor) -> Tensor:
    """What stands for no context, in the shape of the context (B, ...); None: zeros, for a floating context."""
    if null_context is None:
        if not context.is_floating_point():
            raise ValueError(
                "null_context is required for a context of labels: give the label that stands for none, as in "
                "FlowMatching(..., null_context=torch.tensor(NUMBER_OF_CLASSES))"
            )
        return torch.zeros_like(context)
    if null_context.shape not in (context.shape[1:], (1, *context.shape[1:])):
        raise ValueError(
            f"null_context must have the shape of one context, {tuple(context.shape[1:])}; got "
            f"{tuple(null_context.shape)}"
        )
    return null_context.to(context).expand_as(context)


@final
class GuidedVelocity:
    """velocity(t, x, context) with classifier-free guidance: v(null) + guidance (v(context) - v(null)).

    Ho & Salimans 2022, "Classifier-free diffusion guidance", as velocities: Zheng et al. 2023, "Guided flows". guidance
    = 1 is the field itself, under its context.
    """

    def __init__(self, field: Field, guidance: float) -> None:
        self.field, self.guidance = field, guidance

    def __call__(self, t: Tensor, x: Tensor, context: Tensor, null: Tensor) -> Tensor:
        time = t if t.ndim == 0 else torch.cat([t, t])
        both = self.field(time, torch.cat([x, x]), torch.cat([context, null]))
        conditional, unconditional = both.split(len(x))
        return unconditional + self.guidance * (conditional - unconditional)


@final
class VelocityOnPath:
    """The velocity on another path than that of the training, without new training.

    Lipman et al. 2024, "Flow matching guide and code", section 4.8.3: both paths pass through the same points up to a
    factor, where their ratios alpha / sigma are equal.
    """

    def __init__(self, field: Field, trained: AffinePath, path: AffinePath) -> None:
        self.field, self.trained, self.path = field, trained, path

    def __call__(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        ratio = self.path.log_ratio(t)
        time = self.trained.time(ratio).clamp(self.trained.start, self.trained.end)
        alpha, sigma, alpha_dot, sigma_dot = coefficients(self.path, t, x)
        alpha_trained, sigma_trained, *_ = coefficients(self.trained, time, x)
        factor = torch.hypot(alpha, sigma) / torch.hypot(alpha_trained, sigma_trained)
        scaled = x / factor
        data, noise = predictions(self.trained, time, scaled, self.field(time, scaled, *args))
        return alpha_dot * data + sigma_dot * noise
