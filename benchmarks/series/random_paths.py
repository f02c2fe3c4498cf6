"""Random data and random weights for measurements of speed."""

from __future__ import annotations

import torch
from torch import nn

from odenet.series import Series

CHANNELS, HIDDEN = 3, 32


def random_walks(samples: int, length: int, seed: int) -> Series:
    """Times evenly from 0 to 1, shared, and random walks whose deviation at the end is 1, however long."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(samples, length, CHANNELS, generator=generator) * (length - 1) ** -0.5
    return Series(torch.linspace(0.0, 1.0, length), steps.cumsum(1))


def draw_weights(module: nn.Module, seed: int, scale: float) -> None:
    """Draw the weights of all linear layers anew, PyTorch's times a scale, in place: nothing compiles again."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for weight in module.parameters():
            weight.mul_(scale)
