"""Planar flows against continuous ones: the figure of the Neural ODE paper's section 4, with numbers.

Each model trains for the same processor time on one thread. Adam, the learning rate and the annealing of Rezende and
Mohamed are what served both families better in trials; the paper trains each with settings of its own. A run is not
repeatable to the bit, as its number of iterations depends on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from odenet.train.flows.toy_densities import toy_density

from ..shared.plots import png
from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import NONE, Settings, csv_text, markdown_table, page_head
from .density_targets import EDGE, TARGETS, grid, log_normaliser, log_target
from .section_four_models import make, sample_and_log_prob

SIZES = (8, 32, 128)
FAMILIES = ("NF", "CNF")
DATA = ("circles", "moons")
DATA_SIZE = 64  # K and M of the maximum-likelihood comparison, as in the paper
SECONDS, BATCH, SEEDS, CELLS = 15.0, 256, 3, 80
LEARNING_RATE, TOLERANCE, TEST_TOLERANCE = 5e-3, 1e-4, 1e-6
COLUMNS = ("target", "family", "size", "seed", "quantity", "value", "iterations", "note")


@dataclass(frozen=True)
class Fit:
    """A trained model: the divergence from the target, or of data the mean test nats; None with a note.

    density: of the samples in cells of a grid, row by row of the first component.
    """

    target: str
    family: str
    size: int
    seed: int
    value: float | None = None
    iterations: int = 0
    density: Sequence[float] = ()
    note: str = ""


def train(flow: Any, loss: Callable[[float], Tensor], seconds: float) -> int:
    """Train for some seconds of the processor after one step that compiles, and return the number of iterations.

    loss: of the part of the time that has passed, in [0, 1). The learning rate falls linearly to zero.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    loss(0.0).backward()
    start, iterations = time.process_time(), 0
    while (part := (time.process_time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - part)
        optimizer.zero_grad()
        loss(part).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        iterations += 1
    return iterations


def fit_target(target: str, family: str, size: int, seed: int, seconds: float, samples: int) -> dict[str, Any]:
    """Minimise KL(q | p) on samples of q, and return the divergence, the iterations and the histogram."""
    torch.manual_seed(seed)
    flow = make(family, size, TOLERANCE, compiled=seconds > 1)

    def loss(part: float) -> Tensor:
        x, log_q = sample_and_log_prob(flow, BATCH)
        return (log_q - min(1.0, 0.01 + 2 * part) * log_target(target, x)).mean()

    iterations = train(flow, loss, seconds)
    exact = _with_tolerance(flow, family, size, TEST_TOLERANCE)
    with torch.no_grad():
        x, log_q = sample_and_log_prob(exact, samples)
        divergence = float((log_q - log_target(target, x)).double().mean()) + log_normaliser(target)
    return {"value": divergence, "iterations": iterations, "density": histogram(x)}


def fit_data(name: str, family: str, size: int, seed: int, seconds: float, samples: int) -> dict[str, Any]:
    """Maximise the likelihood of a toy's samples, drawn anew in each iteration; return the nats of others."""
    torch.manual_seed(seed)
    flow, toy = make(family, size, TOLERANCE, compiled=seconds > 1), toy_density(name, "ffjord")
    generator = torch.Generator().manual_seed(seed)
    iterations = train(flow, lambda _: -flow.log_prob(toy.sample(BATCH, generator)).mean(), seconds)
    exact = _with_tolerance(flow, family, size, TEST_TOLERANCE)
    with torch.no_grad():
        nats = exact.log_prob(toy.sample(samples, torch.Generator().manual_seed(1000 + seed)))
    return {"value": float(nats.double().mean()), "iterations": iterations}


def _with_tolerance(flow: Any, family: str, size: int, tolerance: float) -> Any:
    other = make(family, size, tolerance, compiled=False)
    other.load_state_dict(flow.state_dict())
    return other


def histogram(x: Tensor) -> list[float]:
    """The share of samples (n, 2) in each cell of [-EDGE, EDGE]^2."""
    at = ((x / EDGE + 1) / 2 * CELLS).floor().long()
    inside = ((at >= 0) & (at < CELLS)).all(1)
    counts = torch.bincount(at[inside, 0] * CELLS + at[inside, 1], minlength=CELLS**2)
    return [round(v, 7) for v in (counts / len(x)).tolist()]


def measure(quick: bool) -> tuple[list[Fit], list[Fit]]:
    """Return the fits to targets and those to data."""
    seconds, samples, seeds = (0.3, 500, 1) if quick else (SECONDS, 20_000, SEEDS)
    sizes, targets, data = (SIZES[:1], TARGETS[:1], DATA[:1]) if quick else (SIZES, TARGETS, DATA)
    jobs = [(t, f, n, s, seconds, samples) for t in targets for n in sizes for f in FAMILIES for s in range(seeds)]
    others = [(d, f, DATA_SIZE, s, seconds, samples) for d in data for f in FAMILIES for s in range(seeds)]
    fits = _fits(jobs, call_each_in_subprocess(fit_target, jobs, title="section4, targets"))
    return fits, _fits(others, call_each_in_subprocess(fit_data, others, title="section4, data"))


def _fits(jobs: Sequence[tuple[Any, ...]], found: Sequence[tuple[Any, str]]) -> list[Fit]:
    return [Fit(*job[:4], note=note, **(one or {})) for job, (one, note) in zip(jobs, found, strict=True)]


def _cell(fits: Sequence[Fit]) -> str:
    """Mean and deviation over the seeds."""
    values = [f.value for f in fits if f.value is not None]
    if not values:
        return fits[0].note if fits else NONE
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _table(fits: Sequence[Fit]) -> str:
    sizes, targets = (list(dict.fromkeys(getattr(f, name) for f in fits)) for name in ("size", "target"))
    rows = []
    for family in FAMILIES:
        for size in sizes:
            mine = [f for f in fits if (f.family, f.size) == (family, size)]
            counts = [f.iterations for f in mine if f.value is not None]
            cells = [_cell([f for f in mine if f.target == t]) for t in targets]
            label = f"{family}, {'K' if family == 'NF' else 'M'} = {size}"
            rows.append([label, *cells, f"{round(mean(counts)):,}" if counts else NONE])
    return markdown_table(["model", *targets, "iterations"], rows)


def page(fits: Sequence[Fit], data: Sequence[Fit], settings: Settings) -> str:
    seconds = 0.3 if settings.quick else SECONDS
    head = page_head(
        "Planar flows and continuous flows", settings, "flows_section4.png", "targets and fitted densities"
    )
    how = (
        f"Each model trains for {seconds:g} s of processor time on one thread, compiling not counted: Adam, learning "
        f"rate {LEARNING_RATE:g} falling to 0, batch {BATCH}. Planar flows (NF) have K layers, continuous ones (CNF) M "
        f"units with gates in time, tolerance {TOLERANCE:g}, compiled. NF of more than 8 layers begins at the "
        "identity, as many random layers map far away. The paper (Chen et al. 2018, section 4) trains each family with "
        "settings of its own. Mean and standard deviation over the seeds."
    )
    targets = (
        "KL(q | p) in nats, lower is better: on 20,000 samples of q, CNF at tolerance 1e-6, the normaliser of p by "
        "quadrature. Targets: Rezende & Mohamed 2015, table 1, with a wall at |z1| = 4. log p is annealed over the "
        "first half of the training."
    )
    nats = "Mean log-density of 20,000 held-out samples in nats, higher is better; maximum likelihood, both of size 64."
    parts = (f"## Targets known up to a factor\n\n{targets}\n\n{_table(fits)}", f"## Data\n\n{nats}\n\n{_table(data)}")
    return "\n".join([head, f"{how}\n", *parts])


def numbers(fits: Sequence[Fit], data: Sequence[Fit]) -> str:
    named = [*(("KL", f) for f in fits), *(("nats", f) for f in data)]
    rows = [[f.target, f.family, f.size, f.seed, q, f.value, f.iterations, f.note] for q, f in named]
    return csv_text(COLUMNS, rows)


def draw(fits: Sequence[Fit]) -> bytes:
    """Return the figure: a row for each target, and the first seed of each model."""
    targets, sizes = (list(dict.fromkeys(getattr(f, name) for f in fits)) for name in ("target", "size"))
    columns = [(family, size) for family in FAMILIES for size in sizes]
    figure = Figure(figsize=(1.7 * (1 + len(columns)), 1.8 * len(targets)), layout="constrained")
    panels = figure.subplots(len(targets), 1 + len(columns), squeeze=False)
    for row, target in zip(panels, targets, strict=True):
        exact = log_target(target, grid(CELLS, EDGE)[0]).exp()
        drawn = [(f"target {target}", exact)]
        for family, size in columns:
            fit = next(f for f in fits if (f.target, f.family, f.size, f.seed) == (target, family, size, 0))
            density = torch.tensor(fit.density or [0.0] * CELLS**2)
            drawn.append((f"{family} {'K' if family == 'NF' else 'M'}={size}", density))
        for axes, (title, density) in zip(row, drawn, strict=True):
            axes.imshow(density.view(CELLS, CELLS).T.numpy(), origin="lower", cmap="Blues")
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    return png(figure)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    fits, data = measure(settings.quick)
    return [
        ("flows_section4.csv", numbers(fits, data)),
        ("flows_section4.png", draw(fits)),
        ("flows_section4.md", page(fits, data, settings)),
    ]
