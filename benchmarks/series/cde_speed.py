"""A training step of a neural controlled equation beside torchcde: the same field, path, batch and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from odenet.compat import torchcde as compat
from odenet.nn import NeuralCDE
from odenet.series import Series

from ..shared.measured_rows import Row, values
from ..shared.timing import interleave
from .contender_table import FIELDS, SECONDS, Step, first_steps, relative_difference, started, table
from .random_paths import CHANNELS, HIDDEN, draw_weights, random_walks

PART = "controlled"
SAMPLES, TURNS, LENGTHS = 32, 5, (20, 100)
OURS, THEIRS = "NeuralCDE", "torchcde"
OUTPUT, GRADIENT, LARGEST = "difference of the output", "difference of the gradient", "largest |z|"
RK4: dict[str, Any] = {"method": "rk4", "options": {"step_size": 1.0}}


@dataclass(frozen=True)
class Task:
    """Data, and the model whose weights all contenders have."""

    series: Series
    targets: Tensor
    model: NeuralCDE

    def step(self, model: NeuralCDE, output: Callable[[], Tensor]) -> Step:
        """The output and the gradient to all weights of the model, from the mean squared error."""
        weights = list(model.parameters())

        def step() -> Sequence[Tensor]:
            out = output()
            loss = (out - self.targets.to(out)).square().mean()
            return out.detach(), *torch.autograd.grad(loss, weights)

        return step

    def odenet(self, **options: Any) -> Step:
        """A model of these options, which shares the weights."""
        model = NeuralCDE(CHANNELS, HIDDEN, out=1, control="hermite", **options)
        model.initial, model.field, model.readout = self.model.initial, self.model.field, self.model.readout
        return self.step(model, lambda: model(self.series))

    def cdeint(self, library: Any, **options: Any) -> Step:
        """As torchcde's readme has it: coefficients are part of the data, the rest is done in every step."""
        times = torch.arange(self.series.t.shape[1], dtype=self.series.t.dtype)
        x = torch.cat([self.series.t[..., None], self.series.x], -1)
        coefficients = library.hermite_cubic_coefficients_with_backward_differences(x, times)

        def output() -> Tensor:
            path = library.CubicSpline(coefficients, times)
            z0 = self.model.initial(path.evaluate(path.interval[0]))
            z = library.cdeint(X=path, func=self.model.field, z0=z0, t=path.interval, **options)
            return self.model.readout(z[..., -1, :])

        return self.step(self.model, output)

    def torchcde(self, **options: Any) -> Step:
        return self.cdeint(import_module("torchcde"), **options)

    def exact(self) -> tuple[Sequence[Tensor], float]:
        """Output and gradient of a tight solve in float64, and the largest |z| at the knots."""
        series = Series(self.series.t.double(), self.series.x.double())
        model = NeuralCDE(CHANNELS, HIDDEN, out=1, control="hermite", method="dopri5", rtol=1e-8, atol=1e-10).double()
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            largest = float(model.row_states(model.scaled(series)).abs().max())
        return self.step(model, lambda: model(series))(), largest


def contenders(task: Task, quick: bool) -> dict[str, Callable[[], Step]]:
    compiled: dict[str, Callable[[], Step]] = {
        f"{OURS}, compiled": lambda: task.odenet(compile=True),
        f"{OURS}, bosh3, compiled": lambda: task.odenet(method="bosh3", compile=True),
    }
    return {
        OURS: task.odenet,
        f"{OURS}, bosh3": lambda: task.odenet(method="bosh3"),
        **({} if quick else compiled),
        f"{OURS}, rk4, a step for each row": lambda: task.odenet(method="rk4", step=1.0),
        "odenet.compat.torchcde": lambda: task.cdeint(compat),
        "odenet.compat.torchcde, adjoint=False": lambda: task.cdeint(compat, adjoint=False),
        THEIRS: task.torchcde,
        f"{THEIRS}, adjoint=False": lambda: task.torchcde(adjoint=False),
        f"{THEIRS}, rk4, a step for each row": lambda: task.torchcde(**RK4),
        f"{THEIRS}, rk4, a step for each row, adjoint=False": lambda: task.torchcde(adjoint=False, **RK4),
    }


def case_name(length: int, seed: int, scale: float) -> str:
    return f"T = {length}, weights {seed}, scale {scale:g}"


def measure(quick: bool) -> list[Row]:
    samples, fields, lengths, turns = (3, FIELDS[:1], (5,), 1) if quick else (SAMPLES, FIELDS, LENGTHS, TURNS)
    rows: list[Row] = []
    for length in lengths:
        model = NeuralCDE(CHANNELS, HIDDEN, out=1, control="hermite")
        series = random_walks(samples, length, 0)
        task = Task(series, torch.randn(samples, 1, generator=torch.Generator().manual_seed(0)), model)
        draw_weights(model, *fields[0])
        steps, firsts = started(PART, f"T = {length}", contenders(task, quick))
        rows += firsts
        for seed, scale in fields:
            draw_weights(model, seed, scale)
            rows += field_rows(task, steps, case_name(length, seed, scale), turns)
    return rows


def field_rows(task: Task, steps: dict[str, Step], case: str, turns: int) -> list[Row]:
    """Errors and times of all steps with the weights that the model has."""
    (output, *gradient), largest = task.exact()
    rows: list[Row] = [(PART, case, "exact", LARGEST, largest, "")]
    for label, step in steps.items():
        mine, *slopes = step()
        rows.append((PART, case, label, OUTPUT, relative_difference([mine], [output]), ""))
        rows.append((PART, case, label, GRADIENT, relative_difference(slopes, gradient), ""))
    seconds = interleave(steps, turns, longest=90.0, title=case)
    return rows + [(PART, case, label, SECONDS, s, "") for label, those in seconds.items() for s in those]


def section(rows: Sequence[Row]) -> str:
    text = f"""\
## A controlled equation

Forward, loss and backward; no optimiser. Batch {SAMPLES}, hidden size {HIDDEN}, a field of one hidden layer of 64,
{CHANNELS} channels and time; the path is torchcde's own default, the cubic Hermite spline with backward differences, on
the numbers of the rows. {THEIRS}: `cdeint` with its defaults, the adjoint method by dopri5 with rtol 1e-4, atol 1e-6,
which are the tolerances of {OURS} (tsit5, whose steps end at the knots, exact gradient) too. {OURS} makes the path in
every step, `cdeint` is given the coefficients. "rk4" has no error control.

Data are random walks from 0 whose deviation at the end is 1, with times from 0 to 1, as `fit_normalizer` scales them:
so the state stays moderate for every T. Times and ratios: geometric mean and range over {len(FIELDS)} fields, weights
drawn anew, PyTorch's default times 1 to 3. Differences, relative, from a solve in float64 with rtol 1e-8: the largest
of these fields; the gradient is that to all weights. The field has kinks (ReLU), so its derivative to the weights
jumps: the exact gradient of few large steps, which {OURS} and adjoint=False give, is then less like that of the
equation than the gradient of many small steps, as bosh3 takes them, or of an adjoint equation that has its own.
"""
    parts = [text]
    exact = [r for r in rows if r[:1] + r[2:3] == (PART, "exact")]
    kept = [r for r in rows if r[2] != "exact"]
    for length in dict.fromkeys(r[1].split(",")[0] for r in rows if r[0] == PART):
        cases = [r[1] for r in exact if r[1].startswith(f"{length},")]
        largest = [v for c in cases for v in values(rows, PART, c, "exact", LARGEST)]
        state = f" (|z| up to {min(largest):.1f} to {max(largest):.1f})" if largest else ""
        parts += [f"### {length}{state}\n", table(kept, PART, cases, OURS, (OUTPUT, GRADIENT))]
    return "\n".join([*parts, first_steps(rows, PART)])
