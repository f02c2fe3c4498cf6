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
from .latent_example import HIDDEN, LATENT, NOISE, RNN_UNITS, ExampleModel, example_decoder, example_field
from .random_paths import draw_weights

PART = "latent"
BATCHES, TIMES, TURNS = (32, 128, 1000), 100, 5
OURS, THEIRS = "LatentODE", "torchdiffeq's example"
SAME: dict[str, float] = {"rtol": 1e-7, "atol": 1e-9}  # torchdiffeq's defaults
LOOSE: dict[str, float] = {"rtol": 1e-3, "atol": 1e-4}  # those of LatentODE
WITHOUT = f"{THEIRS}, without the solve"
KEPT = f"{OURS}, rtol {LOOSE['rtol']:g}, denormal numbers kept"
PATH = "difference of the latent path"


@dataclass(frozen=True)
class Task:
    """Spirals, and the field and the decoder of all contenders."""

    series: Series
    field: nn.Module
    decoder: nn.Module

    def odenet(self, **options: Any) -> tuple[Step, Callable[[Tensor], Tensor]]:
        """The training step, and the latent path from z0."""
        options = {"encoder": "rnn", "decoder": GaussianDecoder(self.decoder, 2, NOISE)} | options
        model = LatentODE(2, LATENT, HIDDEN, field=self.field, **options)
        weights = [p for p in model.parameters() if p.requires_grad]

        def step() -> Sequence[Tensor]:
            return torch.autograd.grad(model.loss(self.series, generator=0), weights)

        return step, lambda z0: model.flow(z0[None], self.series.t[:1].expand(len(z0), -1))[0].movedim(1, 0)

    def torchdiffeq(self, **options: Any) -> tuple[Step, Callable[[Tensor], Tensor]]:
        """The same of the example: minus the bound of the likelihood, z0 drawn anew, gradient through the solver."""
        return self._example(ExampleModel(self.field, self.decoder, **options))

    def without_solve(self) -> tuple[Step, Callable[[Tensor], Tensor]]:
        """What is left of the example where a solve takes no time: its encoder, its decoder and the bound."""
        return self._example(_WithoutSolve(self.field, self.decoder))

    def _example(self, model: ExampleModel) -> tuple[Step, Callable[[Tensor], Tensor]]:
        fixed = set(self.field.parameters()) if isinstance(model, _WithoutSolve) else set[Tensor]()
        weights = [p for p in model.parameters() if p not in fixed]

        def step() -> Sequence[Tensor]:
            return torch.autograd.grad(-model.elbo(self.series).mean(), weights)

        return step, lambda z0: model.path(z0, self.series.t[0])


def keeping_denormals(made: tuple[Step, Callable[[Tensor], Tensor]]) -> tuple[Step, Callable[[Tensor], Tensor]]:
    """The same step, where numbers below the least normal one are not rounded to zero."""
    step, path = made

    def kept() -> Sequence[Tensor]:
        torch.set_flush_denormal(False)
        try:
            return step()
        finally:
            torch.set_flush_denormal(True)

    return kept, path


class _WithoutSolve(ExampleModel):
    def path(self, z0: Tensor, ts: Tensor) -> Tensor:
        return z0.expand(len(ts), *z0.shape)


def new_task(batch: int, times: int) -> Task:
    series = import_module("odenet.train.series.spirals").spirals(batch, 100, 0)[0]
    rows = Series(series.t[:, :times].contiguous(), series.x[:, :times].contiguous())
    return Task(rows, example_field(), example_decoder())


def contenders(task: Task, quick: bool) -> dict[str, Callable[[], tuple[Step, Callable[[Tensor], Tensor]]]]:
    same, loose = (f"rtol {o['rtol']:g}" for o in (SAME, LOOSE))
    compiled: dict[str, Callable[[], Any]] = {
        f"{OURS}, {same}, compiled": lambda: task.odenet(compile=True, **SAME),
        f"{OURS}, {loose}, compiled": lambda: task.odenet(compile=True),
        f"{OURS}, attention, {loose}, compiled": lambda: task.odenet(encoder="attention", compile=True),
    }
    return {
        f"{THEIRS}, {same}": task.torchdiffeq,
        f"{THEIRS}, {loose}": lambda: task.torchdiffeq(**LOOSE),
        f"{OURS}, {same}": lambda: task.odenet(**SAME),
        f"{OURS}, {loose}": task.odenet,
        f"{OURS}, attention, {loose}": lambda: task.odenet(encoder="attention"),
        KEPT: lambda: keeping_denormals(task.odenet()),
        WITHOUT: task.without_solve,
        **({} if quick else compiled),
    }


def measure(quick: bool) -> list[Row]:
    rows: list[Row] = []
    torch.set_flush_denormal(True)  # for all but one of the contenders
    try:
        for batch in (4,) if quick else BATCHES:
            rows += batch_rows(new_task(batch, 6 if quick else TIMES), quick)
    finally:
        torch.set_flush_denormal(False)
    return rows


def batch_rows(task: Task, quick: bool) -> list[Row]:
    """Errors and times of all contenders, for each field."""
    fields, turns, batch = FIELDS[:1] if quick else FIELDS, 1 if quick else TURNS, f"batch {len(task.series):,}"
    draw_weights(task.field, *fields[0])
    paths: dict[str, Callable[[Tensor], Tensor]] = {}

    def step_of(label: str, make: Callable[[], tuple[Step, Callable[[Tensor], Tensor]]]) -> Callable[[], Step]:
        def start() -> Step:
            step, paths[label] = make()
            return step

        return start

    steps, rows = started(PART, batch, {k: step_of(k, make) for k, make in contenders(task, quick).items()})
    z0 = torch.randn(len(task.series), LATENT, generator=torch.Generator().manual_seed(0))
    for seed, scale in fields:
        draw_weights(task.field, seed, scale)
        case = f"{batch}, weights {seed}, scale {scale:g}"
        exact = tight_path(task, z0)
        with torch.no_grad():
            differences = {k: relative_difference([paths[k](z0)], [exact]) for k in steps if k != WITHOUT}
            rows += [(PART, case, k, PATH, value, "") for k, value in differences.items()]
        seconds = interleave(steps, turns, longest=120.0, title=f"latent, {case}")
        rows += [(PART, case, label, SECONDS, s, "") for label, those in seconds.items() for s in those]
    return rows


def tight_path(task: Task, z0: Tensor) -> Tensor:
    field = example_field().double()
    field.load_state_dict(task.field.state_dict())
    with torch.no_grad():
        return odenet.solve(field, z0.double(), task.series.t[0].double(), rtol=1e-10, atol=1e-12).ys


def section(rows: Sequence[Row]) -> str:
    text = f"""\
## A latent ODE

{THEIRS}, latent_ode.py, written anew: a recurrent network of {RNN_UNITS} tanh units in a Python loop backwards over
{TIMES} times, a field of three layers (ELU, latent size {LATENT}, hidden size {HIDDEN}), `odeint` (dopri5) with its
defaults rtol 1e-7, atol 1e-9, and the gradient through its steps; a step is the bound of the likelihood and its
gradient, no optimiser. Spirals of {TIMES} times, the example's own batch is 1,000. {OURS} has the same field and
decoder, `encoder="rnn"` ({HIDDEN} tanh units that see times as well) and tsit5; rtol 1e-3 with atol 1e-4 are its
defaults, rtol 1e-7 stands for atol 1e-9 too; "attention" is the encoder of that name. "without the solve": z0 at all
times, so what the example's encoder and decoder take where a solve takes no time. Gradients vanish along the rows of
recurrent encoders, and products of denormal numbers take many times as long on a CPU, by the weights:
`torch.set_flush_denormal(True)` for all but the row that says so. Geometric mean and range over
{len(FIELDS)} fields, PyTorch's default weights times 1 to 3. The difference, relative, is that of z at all times from
normal z0, from a solve in float64 with rtol 1e-10: the largest of the fields. All but that solve is float32, whose
rounding is of the size of rtol 1e-7.
"""
    found = [r for r in rows if r[0] == PART]
    parts = [text]
    for batch in dict.fromkeys(r[1].split(", weights")[0] for r in found):
        cases = [c for c in dict.fromkeys(r[1] for r in found) if c.startswith(f"{batch}, weights")]
        here = [r for r in found if r[1] == batch or r[1] in cases]
        parts += [f"### {batch.capitalize()}\n", table(here, PART, cases, f"{OURS}, rtol 0.001", (PATH,))]
    return "\n".join([*parts, first_steps(rows, PART)])
