"""A variational latent ODE on noisy spirals: a recurrent encoder, dynamics in a latent space, a decoder.

python examples/torchdiffeq/latent_ode.py --iterations 500
"""

import argparse
import json
import math
import time

import torch
import torchdiffeq
from torch import Tensor, nn


def spirals(count: int, t: Tensor) -> Tensor:
    """Spirals in and out, each with a phase of its own: (count, len(t), 2), at the same times t."""
    outward = torch.rand(count, 1) < 0.5
    turn = 2 * math.pi * t
    angle = torch.where(outward, turn, -turn) + math.pi * torch.rand(count, 1)
    radius = torch.where(outward, 0.5 + 0.5 * t, 1.5 / (1 + 0.5 * t))
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


class Encoder(nn.Module):
    """Reads a series from its end to its start, and says mean and log variance of the latent state there."""

    def __init__(self, latent: int, hidden: int = 25) -> None:
        super().__init__()
        self.cell = nn.RNNCell(2, hidden)
        self.out = nn.Linear(hidden, 2 * latent)

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.zeros(len(series), self.cell.hidden_size)
        for i in reversed(range(series.shape[1])):
            h = self.cell(series[:, i], h)
        mean, log_variance = self.out(h).chunk(2, -1)
        return mean, log_variance


class Dynamics(nn.Module):
    """The latent field."""

    def __init__(self, latent: int, hidden: int = 20) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, latent)
        )
        self.nfe = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(z)


class LatentODE(nn.Module):
    """Encoder, dynamics and decoder."""

    def __init__(self, latent: int, noise: float) -> None:
        super().__init__()
        self.encoder = Encoder(latent)
        self.dynamics = Dynamics(latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 20), nn.ReLU(), nn.Linear(20, 2))
        self.noise = noise

    def decode(self, z0: Tensor, t: Tensor, solve) -> Tensor:
        return self.decoder(solve(self.dynamics, z0, t, rtol=1e-4, atol=1e-5)).transpose(0, 1)

    def loss(self, series: Tensor, t: Tensor, solve) -> Tensor:
        """The negative evidence lower bound of a series, averaged."""
        mean, log_variance = self.encoder(series)
        z0 = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.decode(z0, t, solve) - series) / self.noise
        negative_log_likelihood = 0.5 * (error.square() + math.log(2 * math.pi * self.noise**2)).sum((1, 2))
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return (negative_log_likelihood + divergence).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adjoint", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--iterations", type=int, default=110)
    parser.add_argument("--count", type=int, default=200, help="of spirals")
    parser.add_argument("--points", type=int, default=40, help="of a spiral")
    parser.add_argument("--latent", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    solve = torchdiffeq.odeint_adjoint if args.adjoint else torchdiffeq.odeint

    t = torch.linspace(0.0, 2.0, args.points)
    clean = spirals(args.count, t)
    noisy = clean + args.noise * torch.randn_like(clean)
    model = LatentODE(args.latent, noise=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    def error() -> float:
        """Mean square distance of what the means decode to from the spirals without noise."""
        with torch.no_grad():
            return (model.decode(model.encoder(noisy)[0], t, solve) - clean).square().sum(-1).mean().item()

    before = error()
    model.dynamics.nfe = 0
    start = time.perf_counter()
    bound = math.nan
    for iteration in range(1, args.iterations + 1):
        optimizer.zero_grad()
        loss = model.loss(noisy, t, solve)
        loss.backward()
        optimizer.step()
        bound = loss.item()
        if iteration % 20 == 0:
            print(f"iteration {iteration}: negative evidence lower bound {bound:.2f}")
    seconds, nfe = time.perf_counter() - start, model.dynamics.nfe

    after = error()
    print(f"mean square error of the reconstruction: {before:.4f} before, {after:.4f} after")
    result = {"loss_before": before, "loss": after, "negative_elbo": bound}
    print("RESULT", json.dumps({**result, "nfe": nfe, "seconds": seconds}))


if __name__ == "__main__":
    main()
