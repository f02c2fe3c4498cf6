"""Latent ODEs whose likelihood has a closed form, and series for the tests of `LatentODE`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from odenet.nn import LatentODE
from odenet.nn.latent import GaussianDecoder
from odenet.series import Series, from_lists

NOISE = 0.4
MATRIX = torch.tensor([[-0.3, -1.5], [1.2, 0.1]], dtype=torch.float64)
WEIGHT = torch.tensor([[1.0, 0.3], [-0.5, 0.8]], dtype=torch.float64)


def ragged(dtype: torch.dtype = torch.float64) -> Series:
    """Four series of two channels: of three rows with a gap, one row, no row, and two rows without any value."""
    nan = float("nan")
    ts = [[0.0, 1.0, 2.5], [0.5], [], [1.0, 4.0]]
    xs = [[[1.0, 2.0], [nan, 3.0], [4.0, 5.0]], [[1.0, 1.0]], torch.zeros(0, 2), [[nan, nan], [nan, nan]]]
    return from_lists(ts, xs, dtype=dtype)


class LinearField(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


class Features(nn.Module):
    """An encoder that gives the same features to each series, or those that are set."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features)

    def forward(self, series: Series) -> Tensor:
        return self.features.expand(len(series), -1)


def linear_gaussian(mean: Tensor, std: Tensor, matrix: Tensor, weight: Tensor, **options: object) -> LatentODE:
    """dz/dt = matrix z, values weight z + 0.2 with noise `NOISE`, and q = N(mean, std) (B or 1, latent)."""
    latent = mean.shape[-1]
    net = nn.Linear(latent, len(weight))
    nn.init.constant_(net.bias, 0.2)
    with torch.no_grad():
        net.weight.copy_(weight)
    raw = (std - 1e-6).expm1().log()  # what softplus maps to std
    tight = {"rtol": 1e-9, "atol": 1e-11} | options
    decoder = GaussianDecoder(net, len(weight), NOISE)
    encoder = Features(torch.cat([mean, raw], -1))
    model = LatentODE(
        len(weight), latent, 2 * latent, encoder=encoder, field=LinearField(matrix), decoder=decoder, **tight
    )
    model.posterior = nn.Identity()
    return model.double()


def observation_map(model: LatentODE, series: Series, sample: int) -> tuple[Tensor, Tensor, Tensor]:
    """H, b, values with x = H z0 + b + noise for the observed values of a sample, in normalised units."""
    scaled = model.normalizer(series)
    net = model.decoder.net
    n = int(series.length[sample])
    flow = torch.linalg.matrix_exp(scaled.t[sample, :n, None, None] * model.flow.field.matrix)  # (n, L, L)
    maps = (net.weight @ flow)[series.mask[sample, :n]]
    offsets = net.bias.expand(n, -1)[series.mask[sample, :n]]
    return maps, offsets, scaled.x[sample, :n][series.mask[sample, :n]]


def exact_log_likelihood(model: LatentODE, series: Series) -> Tensor:
    """log p(series), (B,): all values of a sample are jointly normal."""
    out = []
    for sample in range(len(series)):
        maps, offsets, values = observation_map(model, series, sample)
        if not len(values):
            out.append(values.new_zeros(()))
            continue
        cov = maps @ maps.T + NOISE**2 * torch.eye(len(values), dtype=maps.dtype)
        units = (series.mask[sample].sum(0) * model.normalizer.std.log()).sum()
        out.append(MultivariateNormal(offsets, cov).log_prob(values) - units)
    return torch.stack(out).detach()
