"""A continuous normalizing flow on a density in the plane, with the exact trace of its Jacobian.

A sample at time 1 flows back to a Gaussian at time 0: python examples/torchdiffeq/cnf.py --data circles
"""

import argparse
import json
import math
import time

import torch
import torchdiffeq
from torch import Tensor, nn


def moons(n: int) -> Tensor:
    """Two interleaved half circles, (n, 2), roughly centred."""
    angle = math.pi * torch.rand(n)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(torch.rand(n, 1) < 0.5, upper, lower) - torch.tensor([0.5, 0.25])
    return 1.5 * points + 0.1 * torch.randn(n, 2)


def circles(n: int) -> Tensor:
    """Two concentric circles, (n, 2)."""
    angle = 2 * math.pi * torch.rand(n)
    radius = torch.where(torch.rand(n) < 0.5, 2.0, 1.0)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2)


DATA = {"moons": moons, "circles": circles}


class Flow(nn.Module):
    """dz/dt by a network of (z, t), and with it d(log p)/dt = -trace(df/dz)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2)
        )
        self.nfe = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        z = state[0]
        with torch.enable_grad():
            z.requires_grad_(True)
            dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
            trace = torch.zeros(len(z))
            for i in range(z.shape[1]):
                trace = trace + torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i]
        return dz, -trace[:, None]


def log_density(flow: Flow, x: Tensor, solve, tol: float) -> Tensor:
    start = x, torch.zeros(len(x), 1)
    z, change = solve(flow, start, torch.tensor([1.0, 0.0]), method="dopri5", rtol=tol, atol=tol)
    gaussian = -0.5 * z[-1].square().sum(1) - math.log(2 * math.pi)
    return gaussian - change[-1].squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="moons")
    parser.add_argument("--adjoint", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--tol", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    solve = torchdiffeq.odeint_adjoint if args.adjoint else torchdiffeq.odeint

    flow = Flow(args.hidden)
    held_out = DATA[args.data](1000)
    optimizer = torch.optim.Adam(flow.parameters(), lr=args.lr)

    def held_out_loss() -> float:
        with torch.no_grad():
            return -log_density(flow, held_out.clone(), solve, args.tol).mean().item()

    before = held_out_loss()
    flow.nfe = 0
    start = time.perf_counter()
    for iteration in range(1, args.iterations + 1):
        optimizer.zero_grad()
        loss = -log_density(flow, DATA[args.data](args.batch), solve, args.tol).mean()
        loss.backward()
        optimizer.step()
        if iteration % 20 == 0:
            print(f"iteration {iteration}: negative log likelihood {loss.item():.4f}, {flow.nfe} evaluations")
    seconds, nfe = time.perf_counter() - start, flow.nfe

    after = held_out_loss()
    print(f"negative log likelihood of held-out points: {before:.4f} before, {after:.4f} after")
    print("RESULT", json.dumps({"loss_before": before, "loss": after, "nfe": nfe, "seconds": seconds}))


if __name__ == "__main__":
    main()
