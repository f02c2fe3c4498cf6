"""A training step of a latent ODE beside torchdiffeq's example of one: the same spirals, field and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import odenet
from odenet.nn import LatentODE
from odenet.nn.latent.decoders import GaussianDecoder
from odenet.series import Series

from ..shared.measured_rows import Row
from ..shared.timing import interleave
from .contender_table import FIELDS, SECONDS, Step, first_steps, relative_difference, started, table
from .random_paths import draw_weights

PART = "latent"
BATCH, TIMES, LATENT, HIDDEN, RNN_UNITS, NOISE, TURNS = 1000, 100, 4, 20, 25, 0.3, 5
OURS, THEIRS = "LatentODE", "torchdiffeq's example"
SAME: dict[str, float] = {"rtol": 1e-7, "atol": 1e-9}  # torchdiffeq's defaults
LOOSE: dict[str, float] = {"rtol": 1e-3, "atol": 1e-4}  # those of LatentODE
PATH = "difference of the latent path"


class ExampleEncoder(nn.Module):
    """A recurrent network of tanh units, from the last row to the first, and means and log variances of z0."""

    def __init__(self) -> None:
        super().__init__()
        self.update, self.out = nn.Linear(2 + RNN_UNITS, RNN_UNITS), nn.Linear(RNN_UNITS, 2 * LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(len(x), RNN_UNITS)
        for row in reversed(x.unbind(1)):
            h = torch.tanh(self.update(torch.cat([row, h], 1)))
        mean, log_variance = self.out(h).chunk(2, 1)
        return mean, log_variance


@dataclass(frozen=True)
class Task:
    """Spirals, and the field and the decoder of all contenders."""

    series: Series
    field: nn.Module
    decoder: nn.Module

    def odenet(self, **options: Any) -> tuple[Step, Callable[[Tensor], Tensor]]:
        """The training step, and the latent path from z0."""
        decoder = GaussianDecoder(self.decoder, 2, NOISE)
        model = LatentODE(2, LATENT, HIDDEN, encoder="rnn", field=self.field, decoder=decoder, **options)
        weights = [p for p in model.parameters() if p.requires_grad]

        def step() -> Sequence[Tensor]:
            return torch.autograd.grad(model.loss(self.series, generator=0), weights)

        return step, lambda z0: model.flow(z0[None], self.series.t[:1].expand(len(z0), -1))[0].movedim(1, 0)

    def torchdiffeq(self, **options: Any) -> tuple[Step, Callable[[Tensor], Tensor]]:
        """The same of the example: minus the bound of the likelihood, z0 drawn anew, gradient through the solver."""
        odeint: Any = import_module("torchdiffeq").odeint
        encoder, x, ts = ExampleEncoder(), self.series.x, self.series.t[0]
        weights = [p for module in (encoder, self.field, self.decoder) for p in module.parameters()]

        def step() -> Sequence[Tensor]:
            mean, log_variance = encoder(x)
            z0 = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            values = self.decoder(odeint(self.field, z0, ts, **options)).movedim(0, 1)
            likelihood = torch.distributions.Normal(values, NOISE).log_prob(x).sum((1, 2))
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
            return torch.autograd.grad((divergence - likelihood).mean(), weights)

        return step, lambda z0: odeint(self.field, z0, ts, **options)


def new_task(batch: int, times: int) -> Task:
    series = import_module("odenet.train.series.spirals").spirals(batch, 100, 0)[0]
    rows = Series(series.t[:, :times].contiguous(), series.x[:, :times].contiguous())
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
    return Task(rows, odenet.nn.MLPField(LATENT, (HIDDEN, HIDDEN), "elu", time=False), decoder)


def contenders(task: Task, quick: bool) -> dict[str, Callable[[], tuple[Step, Callable[[Tensor], Tensor]]]]:
    same, loose = (f"rtol {o['rtol']:g}" for o in (SAME, LOOSE))
    compiled: dict[str, Callable[[], Any]] = {
        f"{OURS}, {same}, compiled": lambda: task.odenet(compile=True, **SAME),
        f"{OURS}, {loose}, compiled": lambda: task.odenet(compile=True),
    }
    return {
        f"{THEIRS}, {same}": task.torchdiffeq,
        f"{THEIRS}, {loose}": lambda: task.torchdiffeq(**LOOSE),
        f"{OURS}, {same}": lambda: task.odenet(**SAME),
        f"{OURS}, {loose}": task.odenet,
        **({} if quick else compiled),
    }


def measure(quick: bool) -> list[Row]:
    batch, times, fields, turns = (4, 6, FIELDS[:1], 1) if quick else (BATCH, TIMES, FIELDS, TURNS)
    task = new_task(batch, times)
    draw_weights(task.field, *fields[0])
    paths: dict[str, Callable[[Tensor], Tensor]] = {}

    def step_of(label: str, make: Callable[[], tuple[Step, Callable[[Tensor], Tensor]]]) -> Callable[[], Step]:
        def start() -> Step:
            step, paths[label] = make()
            return step

        return start

    steps, rows = started(PART, "first", {k: step_of(k, make) for k, make in contenders(task, quick).items()})
    z0 = torch.randn(batch, LATENT, generator=torch.Generator().manual_seed(0))
    for seed, scale in fields:
        draw_weights(task.field, seed, scale)
        case = f"weights {seed}, scale {scale:g}"
        exact = tight_path(task, z0)
        with torch.no_grad():
            rows += [(PART, case, k, PATH, relative_difference([paths[k](z0)], [exact]), "") for k in steps]
        seconds = interleave(steps, turns, longest=120.0, title=f"latent, {case}")
        rows += [(PART, case, label, SECONDS, s, "") for label, those in seconds.items() for s in those]
    return rows


def tight_path(task: Task, z0: Tensor) -> Tensor:
    field = odenet.nn.MLPField(LATENT, (HIDDEN, HIDDEN), "elu", time=False).double()
    field.load_state_dict(task.field.state_dict())
    with torch.no_grad():
        return odenet.solve(field, z0.double(), task.series.t[0].double(), rtol=1e-10, atol=1e-12).ys


def section(rows: Sequence[Row]) -> str:
    cases = [c for c in dict.fromkeys(r[1] for r in rows if r[0] == PART) if c != "first"]
    text = f"""\
## A latent ODE

{THEIRS}, latent_ode.py, written anew: a recurrent network of {RNN_UNITS} tanh units in a Python loop backwards over
{TIMES} times, a field of three layers (ELU, latent size {LATENT}, hidden size {HIDDEN}), `odeint` (dopri5) with its
defaults rtol 1e-7, atol 1e-9, and the gradient through its steps; a step is the bound of the likelihood and its
gradient, no optimiser. {BATCH:,} spirals of {TIMES} times. {OURS} has the same field and decoder, `encoder="rnn"` (a
GRU of {HIDDEN} units that sees times as well) and tsit5; rtol 1e-3 with atol 1e-4 are its defaults, rtol 1e-7 stands
for atol 1e-9 too. Geometric mean and range over {len(FIELDS)} fields, PyTorch's default weights times 1 to 3. The
difference, relative, is that of z at all times from {BATCH:,} normal z0, from a solve in float64 with rtol 1e-10: the
largest of the fields. All but that solve is float32, whose rounding is of the size of rtol 1e-7.
"""
    return "\n".join([text, table(rows, PART, cases, f"{OURS}, rtol 0.001", (PATH,)), first_steps(rows, PART)])
