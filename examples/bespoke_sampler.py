"""A sampler that is learned for one flow: its times and scales, trained by the exact gradient through the solver.

Shaul et al. 2024, "Bespoke solvers for generative flow models": with a change of time t(r) and scale s(r), the midpoint
rule for x(r) = s(r) x(t(r)) at even r is a new method for the same flow, and any values of t, s and their derivatives
at its 2n nodes give one that converges. The 8n values are its parameters, 80 for ten steps.

python examples/bespoke_sampler.py --steps 5
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

import odenet
from odenet.nn import FlowMatching, MLPField


def eight_gaussians(n: int) -> Tensor:
    """Points around eight centres on a circle, (n, 2)."""
    angle = torch.randint(8, (n,)) * (torch.pi / 4)
    return 2.0 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(n, 2)


class BespokeSampler(nn.Module):
    """x0 (B, D) -> x1 (B, D) in `steps` midpoint steps of the changed flow; two evaluations of the field each."""

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
        super().__init__()
        self.velocity, self.steps = velocity, steps
        nodes = 2 * steps
        # at r = 0, 1/2n, 2/2n, ...; with these values it is the midpoint rule itself
        self.time_steps = nn.Parameter(torch.zeros(nodes))  # logarithms of t's increments, up to a common factor
        self.log_speed = nn.Parameter(torch.zeros(nodes))  # of dt/dr
        self.log_scale = nn.Parameter(torch.zeros(nodes))  # of s at r > 0; s(0) = 1
        self.scale_speed = nn.Parameter(torch.zeros(nodes))  # ds/dr / s

    def forward(self, x0: Tensor) -> Tensor:
        zero = self.log_scale.new_zeros(1)
        times = torch.cat([zero, self.time_steps.softmax(0).cumsum(0)])
        scales = torch.cat([zero, self.log_scale]).exp()

        def changed(r: Tensor, x: Tensor) -> Tensor:
            node = round(2 * self.steps * float(r))
            velocity = self.velocity(times[node], x / scales[node])
            return self.scale_speed[node] * x + self.log_speed[node].exp() * scales[node] * velocity

        x1 = odenet.solve(changed, x0, [0.0, 1.0], method="midpoint", step=1.0 / self.steps).y1
        return x1 / scales[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--flow-iterations", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    flow = FlowMatching(MLPField(2, (64, 64, 64), "silu"))
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(args.flow_iterations):
        optimizer.zero_grad()
        flow.loss(eight_gaussians(args.batch)).backward()
        optimizer.step()
    flow.requires_grad_(False)

    sampler = BespokeSampler(flow.velocity, args.steps)
    optimizer = torch.optim.Adam(sampler.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations)
    for iteration in range(1, args.iterations + 1):
        x0 = torch.randn(args.batch, 2)
        exact = flow.sample(x0=x0, rtol=1e-5, atol=1e-5)
        optimizer.zero_grad()
        loss = (sampler(x0) - exact).square().sum(1).mean().sqrt()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % 100 == 0:
            print(f"iteration {iteration}: error {loss.item():.4f}")

    x0 = torch.randn(4096, 2)
    exact = flow.sample(x0=x0, rtol=1e-6, atol=1e-6)

    def error(x1: Tensor) -> float:
        return (x1 - exact).square().sum(1).mean().sqrt().item()

    n = args.steps
    errors = {"euler": error(flow.sample(x0=x0, method="euler", steps=2 * n))}
    errors |= {m: error(flow.sample(x0=x0, method=m, steps=n)) for m in ("midpoint", "heun")}
    errors |= {m: error(flow.sample(x0=x0, method=m, steps=2 * n)) for m in ("dpmpp_2m", "unipc_2")}
    with torch.no_grad():
        errors["bespoke"] = error(sampler(x0))
    count = sum(p.numel() for p in sampler.parameters())
    print(f"RMS error with {2 * n} evaluations; the learned sampler has {count} parameters")
    for name, value in errors.items():
        print(f"  {name:9} {value:.4f}")
    print("RESULT", json.dumps(errors))


if __name__ == "__main__":
    main()
