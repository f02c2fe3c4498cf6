"""Learn gravity, restitution and the initial velocity of a bouncing ball from the times of its bounces.

python examples/torchdiffeq/bouncing_ball.py --adjoint
"""

import argparse
import json
import time

import torch
import torchdiffeq
from torch import Tensor, nn

HEIGHT = 10.0
GRAVITY, RESTITUTION, VELOCITY = 9.8, 0.8, 3.0  # to be found


def closed_form(bounces: int) -> Tensor:
    """Times of the first bounces: free fall, and after each one a parabola with a slower start."""
    speed = (VELOCITY**2 + 2 * GRAVITY * HEIGHT) ** 0.5
    times = [(VELOCITY + speed) / GRAVITY]
    for _ in range(bounces - 1):
        speed *= RESTITUTION
        times.append(times[-1] + 2 * speed / GRAVITY)
    return torch.tensor(times)


class Ball(nn.Module):
    """Free flight of (height, velocity), and what happens at the floor."""

    def __init__(self) -> None:
        super().__init__()
        self.log_gravity = nn.Parameter(torch.tensor(7.0).log())
        self.logit_restitution = nn.Parameter(torch.tensor(0.6).logit())
        self.velocity = nn.Parameter(torch.tensor(1.0))
        self.nfe = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        height, velocity = state
        return velocity, -self.log_gravity.exp() * torch.ones_like(height)

    def floor(self, t: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0].squeeze()

    def bounce(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The state just after: a little above the floor, so that the same bounce is not found again."""
        return state[0] + 1e-5, -self.logit_restitution.sigmoid() * state[1]

    def bounce_times(self, count: int, solve, tol: float) -> Tensor:
        t = torch.tensor(0.0)
        state = torch.tensor([HEIGHT]), self.velocity.reshape(1)
        times = []
        for _ in range(count):
            t, path = torchdiffeq.odeint_event(
                self, state, t, event_fn=self.floor, odeint_interface=solve, rtol=tol, atol=tol
            )
            state = self.bounce(tuple(component[-1] for component in path))
            times.append(t)
        return torch.stack(times)

    def learned(self) -> dict[str, float]:
        return {
            "gravity": self.log_gravity.exp().item(),
            "restitution": self.logit_restitution.sigmoid().item(),
            "velocity": self.velocity.item(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adjoint", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--bounces", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    solve = torchdiffeq.odeint_adjoint if args.adjoint else torchdiffeq.odeint

    wanted = closed_form(args.bounces)
    ball = Ball()
    optimizer = torch.optim.LBFGS(ball.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def loss_now() -> tuple[Tensor, Tensor]:
        times = ball.bounce_times(args.bounces, solve, args.tol)
        return (times - wanted).square().mean(), times

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = loss_now()
        loss.backward()
        return loss

    before = loss_now()[0].item()
    ball.nfe = 0
    start = time.perf_counter()
    for iteration in range(1, args.iterations + 1):
        loss = optimizer.step(closure)
        words = ", ".join(f"{name} {value:.3f}" for name, value in ball.learned().items())
        print(f"iteration {iteration}: loss {loss.item():.2e} at its start, {words} at its end")
    seconds, nfe = time.perf_counter() - start, ball.nfe

    with torch.no_grad():
        loss, times = loss_now()
    print("bounces at", *(f"{t:.4f}" for t in times.tolist()), "wanted", *(f"{t:.4f}" for t in wanted.tolist()))
    result = {"loss_before": before, "loss": loss.item(), "times": times.tolist(), **ball.learned()}
    print("RESULT", json.dumps({**result, "nfe": nfe, "seconds": seconds}))


if __name__ == "__main__":
    main()
