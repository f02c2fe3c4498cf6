"""A latent ODE learns spirals from noisy points at irregular times (Chen et al. 2018, section 5.1)."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from odenet.nn import LatentODE
from odenet.series import Series

NOISE = 0.3


def spirals(count: int, kept: int, seed: int) -> tuple[Series, Tensor, Tensor]:
    """Pieces of 100 points of two spirals, one clockwise, of which `kept` are observed; all times, all true points."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.linspace(0.0, 6 * pi, 1000)
    back = 6 * pi + 1.0 - angle
    inward = torch.stack([15.0 / back * back.cos() - 5.0, 15.0 / back * back.sin()], -1)
    outward = torch.stack([0.3 * angle * angle.cos() + 5.0, 0.3 * angle * angle.sin()], -1)
    rows = torch.randint(100, 900, (count, 1), generator=generator) + torch.arange(100)
    inwards = torch.rand(count, 1, 1, generator=generator) < 0.5
    truth = torch.where(inwards, inward[rows], outward[rows])
    x = truth + NOISE * torch.randn(truth.shape, generator=generator)
    chosen = torch.rand(count, 100, generator=generator).argsort(1)[:, :kept].sort(1).values
    series = Series(angle[:100][chosen], x.gather(1, chosen[..., None].expand(-1, -1, 2)))
    return series, angle[:100], truth


@pytest.mark.slow
@pytest.mark.parametrize("kept", [30, 50, 100])
def test_spirals(kept: int) -> None:
    torch.manual_seed(0)
    series, _, _ = spirals(300, kept, seed=0)
    seen, ts, truth = spirals(100, kept, seed=1)
    model = LatentODE(2, latent=4, encoder="attention").fit_normalizer(series)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        batch = series[torch.randint(300, (100,))]
        optimizer.zero_grad()
        model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (model(seen, ts) - truth).square().mean().sqrt().item()
        mean_predictor = (model.normalizer.mean - truth).square().mean().sqrt().item()
        prediction = model.reconstruct(seen, ts, samples=50, generator=0)
    assert error < 0.1 * mean_predictor
    new = truth + NOISE * torch.randn(truth.shape)
    covered = ((new > prediction.quantiles[0]) & (new < prediction.quantiles[2])).float().mean().item()
    assert covered > 0.85  # of observations that were not seen; 0.9 is asked for
    assert prediction.std.mean().item() < 2.0 * NOISE
