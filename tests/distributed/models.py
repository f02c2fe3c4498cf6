"""Models and data of the checks, and what one process makes of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import odenet
from odenet.nn import NeuralODE

EASY, FAST = 1.0, 25.0  # angular velocities: some ten steps, and some hundred
OPTIONS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


class Turning(nn.Module):
    """(u, v) turns with the speed that is the third component of y, bent by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        u, v, speed = y.unbind(-1)
        turned = torch.stack([-v, u], -1) * speed.unsqueeze(-1)
        return torch.cat([turned + self.net(y[..., :2]), torch.zeros_like(y[..., :1])], -1)


class Layer(nn.Module):
    """`odenet.solve` in a module: a closure as the field, and a parameter that goes through args."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner, self.rate, self.options = Turning(), nn.Parameter(torch.tensor([0.5])), options
        self.stats: Any = None
        self.status: Any = None

    def forward(self, y0: Tensor, ts: Any = None) -> Tensor:
        def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
            return self.inner(t, y) * torch.cat([rate.expand(2), rate.new_zeros(1)])

        sol = odenet.solve(f, y0, ts or (0.0, 1.0), args=(self.rate,), **self.options)
        self.stats, self.status = sol.stats, sol.status
        return sol.y1


class Net(nn.Module):
    """A linear map, a solve, a linear map. x: (B, 3), its last column the speed."""

    def __init__(self, plain: bool = False, **options: Any) -> None:
        super().__init__()
        options = OPTIONS | options
        self.first = nn.Linear(2, 2)
        self.ode = Layer(**options) if plain else NeuralODE(Turning(), **options)
        self.last = nn.Linear(2, 1)

    def forward(self, x: Tensor, ts: Any = None) -> Tensor:
        y = self.ode(torch.cat([self.first(x[:, :2]), x[:, 2:]], -1), ts)
        return self.last((y if y.ndim == 2 else y[-1])[:, :2])


def net(**options: Any) -> Net:
    """The same in every process."""
    torch.manual_seed(0)
    return Net(**options).double()


def batch(seed: int = 1) -> list[Tensor]:
    """What each process is given: the first easy to solve, the others fast."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for rank in range(dist.get_world_size()):
        speed = torch.full((4, 1), EASY if rank == 0 else FAST, dtype=torch.float64)
        parts.append(torch.cat([torch.randn(4, 2, generator=draw, dtype=torch.float64), speed], -1))
    return parts


def loss(out: Tensor) -> Tensor:
    return (out - 0.3).square().mean()


def alone(model: Net, parts: list[Tensor], **options: Any) -> dict[str, Tensor]:
    """Gradients of one process: of the mean loss over what the processes are given."""
    model = copy.deepcopy(model)
    for part in parts:
        (loss(model(part, **options)) / len(parts)).backward()
    return gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, whole ones of parameters that are spread over the processes."""
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} has no gradient"
        whole = getattr(p.grad, "full_tensor", None)
        found[name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")] = p.grad if whole is None else whole()
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        size = float(wanted.abs().max())
        assert size > 0, name
        off = float((found[name] - wanted).abs().max()) / size
        assert off <= within, f"{name}: off by {off:.1e} of its size"


def steps_differ(model: Net) -> None:
    """The processes took very different numbers of evaluations."""
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, int(torch.as_tensor(model.ode.stats.nfe).max()))
    assert max(counts) > 5 * min(counts), counts
