"""Fit a small network to the spiral y' = A y^3, from short segments of one trajectory.

python examples/torchdiffeq/spiral.py --adjoint --method dopri5
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
import torchdiffeq
from torch import Tensor, nn


class Spiral(nn.Module):
    """The true dynamics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y**3 @ self.A


class Network(nn.Module):
    """The dynamics to be learned; counts how often it is evaluated."""

    def __init__(self, hidden: int = 50) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.zeros_(layer.bias)
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(y**3)


def segments(truth: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Starts (count, 2) and what follows them (length, count, 2)."""
    start = torch.randint(len(truth) - length, (count,))
    return truth[start], torch.stack([truth[start + i] for i in range(length)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="dopri5")
    parser.add_argument("--adjoint", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--points", type=int, default=1000, help="of the trajectory on [0, 25]")
    parser.add_argument("--segments", type=int, default=20, help="in a batch")
    parser.add_argument("--length", type=int, default=10, help="of a segment, in points")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    solve = torchdiffeq.odeint_adjoint if args.adjoint else torchdiffeq.odeint

    y0 = torch.tensor([[2.0, 0.0]])
    t = torch.linspace(0.0, 25.0, args.points)
    with torch.no_grad():
        truth = torchdiffeq.odeint(Spiral(), y0, t, method="dopri5")[:, 0]

    func = Network()
    optimizer = torch.optim.Adam(func.parameters(), lr=args.lr)

    def loss_on_all() -> float:
        with torch.no_grad():
            return (solve(func, y0, t, method=args.method)[:, 0] - truth).abs().mean().item()

    before = loss_on_all()
    print(f"loss before training {before:.4f}")
    func.nfe = 0
    start = time.perf_counter()
    for iteration in range(1, args.iterations + 1):
        optimizer.zero_grad()
        first, wanted = segments(truth, args.segments, args.length)
        loss = F.smooth_l1_loss(solve(func, first, t[: args.length], method=args.method), wanted, beta=0.02)
        loss.backward()
        optimizer.step()
        if iteration % 50 == 0:
            print(f"iteration {iteration}: batch loss {loss.item():.4f}, {func.nfe} evaluations")
    seconds, nfe = time.perf_counter() - start, func.nfe

    after = loss_on_all()
    print(f"loss after training {after:.4f}")
    print("RESULT", json.dumps({"loss_before": before, "loss": after, "nfe": nfe, "seconds": seconds}))


if __name__ == "__main__":
    main()
