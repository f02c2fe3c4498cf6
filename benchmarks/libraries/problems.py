"""Problems: a vector field, an initial state, output times, a tolerance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet.nn import ConvField

Made = tuple[Callable[..., Tensor], Tensor, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Field:
    """The description of a problem.

    kind: the formula of f, for libraries that need it in another form. make: draws f(t, y, *args), y0 and args.
    tolerance: rtol and atol. outputs: the number of output times, evenly spaced in (0, end]. per_sample: each row is
    a problem of its own. mlp: the field counts in the geometric means.
    """

    name: str
    text: str
    kind: str
    make: Callable[[], Made]
    end: float
    tolerance: float = 1e-6
    outputs: int = 1
    per_sample: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class Problem:
    """A field with its weights, in float32. ts: (T,). The loss is the sum of the squares of y at ts[1:]."""

    field: Field
    f: Any
    y0: Tensor
    args: tuple[Tensor, ...]
    ts: Tensor

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the weights by name, in the order of the parameters."""
        return dict(self.f.named_parameters()) if isinstance(self.f, nn.Module) else {}

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Return y0, the weights and args: a training step computes the gradient of the loss to them."""
        return (self.y0, *self.weights.values(), *self.args)

    def double(self) -> Problem:
        """Return the problem in float64."""
        f = copy.deepcopy(self.f).double() if isinstance(self.f, nn.Module) else self.f
        y0, *args = (x.detach().double().requires_grad_() for x in (self.y0, *self.args))
        return Problem(self.field, f, y0, tuple(args), self.ts.double())


class MLP(nn.Module):
    """Linear(dim, hidden)-Softplus-Linear(hidden, dim)-Tanh."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Softplus(), nn.Linear(hidden, dim), nn.Tanh())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Flow(nn.Module):
    """dz/dt by a network of (z, t), and d(log p)/dt = -trace(df/dz). The state is (B, 3).

    The trace is exact: the tangents of both directions go through the layers. Every library does the same arithmetic,
    and none computes derivatives of its own inside f.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        z = y[:, :2]
        time = t.to(y.dtype).reshape(-1, 1).expand(len(y), 1)
        a = torch.tanh(self.one(torch.cat([z, time], 1)))
        b = torch.tanh(self.two(a))
        tangents = (1 - a * a)[:, None] * self.one.weight[:, :2].t()  # (B, 2, hidden)
        tangents = (1 - b * b)[:, None] * (tangents @ self.two.weight.t())
        trace = (tangents * self.three.weight).sum((1, 2))
        return torch.cat([self.three(b), -trace[:, None]], 1)


class Spiral(nn.Module):
    """dy/dt = y^3 A + 0.1 net(y^3), near the spiral in the example of the Neural ODE paper."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        cube = y**3
        return cube @ self.A + 0.1 * self.net(cube)


def lotka_volterra(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
    """Return the derivatives of prey and predators, (B, 2). rates: (B, 4)."""
    prey, predators = y[..., 0], y[..., 1]
    meetings = prey * predators
    return torch.stack(
        [rates[..., 0] * prey - rates[..., 1] * meetings, rates[..., 2] * meetings - rates[..., 3] * predators], -1
    )


def mlp_field(name: str, batch: int, dim: int, hidden: int, end: float) -> Field:
    text = f"MLP, batch {batch}, dim {dim}, hidden {hidden}, t1 {end:g}"
    return Field(name, text, "mlp", lambda: (MLP(dim, hidden), torch.randn(batch, dim), ()), end, mlp=True)


def _conv_field(batch: int, channels: int, side: int) -> Field:
    def make() -> Made:
        return ConvField(channels), torch.randn(batch, channels, side, side), ()

    text = f"the MNIST ODE-Net's block, batch {batch}, {channels} maps of {side}x{side}, t1 1"
    return Field("conv", text, "conv", make, 1.0, tolerance=1e-3)


def _flow_field(batch: int, hidden: int) -> Field:
    def make() -> Made:
        return Flow(hidden), torch.cat([torch.randn(batch, 2), torch.zeros(batch, 1)], 1), ()

    text = f"continuous normalizing flow in the plane with its exact trace, batch {batch}, hidden {hidden}, t1 1"
    return Field("cnf", text, "cnf", make, 1.0)


def _lotka_field(systems: int) -> Field:
    def make() -> Made:
        rates = torch.tensor([1.5, 1.0, 1.0, 3.0]) * (0.5 + torch.rand(systems, 4))
        return lotka_volterra, 0.5 + torch.rand(systems, 2), (rates,)

    text = f"{systems} Lotka-Volterra systems with different rates, t1 5"
    return Field("lotka_volterra", text, "lotka", make, 5.0, tolerance=1e-5, per_sample=True)


def _long_field(batch: int, outputs: int) -> Field:
    def make() -> Made:
        direction = nn.functional.normalize(torch.randn(batch, 2))
        return Spiral(50), (0.5 + torch.rand(batch, 1)) * direction, ()

    text = f"spiral with a small network, batch {batch}, {outputs} output times, all in the loss, t1 25"
    return Field("long", text, "spiral", make, 25.0, outputs=outputs)


FIELDS = (
    mlp_field("tiny", 64, 4, 32, 100.0),
    mlp_field("medium", 256, 64, 256, 5.0),
    mlp_field("wide", 512, 256, 1024, 3.0),
    _conv_field(64, 64, 6),
    _flow_field(512, 64),
    _lotka_field(10_000),
    _long_field(16, 1000),
)
QUICK = (
    mlp_field("tiny", 4, 2, 8, 2.0),
    mlp_field("medium", 4, 3, 8, 1.0),
    mlp_field("wide", 8, 4, 8, 1.0),
    _conv_field(2, 4, 3),
    _flow_field(4, 8),
    _lotka_field(5),
    _long_field(2, 10),
)


def choose(quick: bool, only: Sequence[str] = ()) -> list[Field]:
    """Return the fields named in `only`; all where it is empty."""
    return [field for field in (QUICK if quick else FIELDS) if not only or field.name in only]


def build(field: Field, seed: int, device: str) -> Problem:
    """Return the problem of a field, with weights and state drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        f, y0, args = field.make()
    if isinstance(f, nn.Module):
        f = f.to(device)
    y0, *args = (x.to(device).requires_grad_() for x in (y0, *args))
    return Problem(field, f, y0, tuple(args), torch.linspace(0.0, field.end, field.outputs + 1).to(device))
