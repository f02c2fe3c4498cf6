"""Quality of samples against evaluations, for the samplers of flow and diffusion models and for solvers of ODEs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import odenet
from odenet.nn.flows.samplers import flow_grid
from odenet.train.flows.toy_densities import toy_density

from ..shared.errors import value_or_error
from ..shared.plots import legend_above, png
from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import Settings, csv_text, markdown_table, number, page_head
from .distances import energy_distance, rms, wasserstein

DATA, PATHS, SEEDS = ("8gaussians", "checkerboard", "digits"), ("cond_ot", "vp"), (0, 1, 2)
# evaluations of f in a step
SAMPLERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ddim": 1, "dpmpp_2m": 1, "dpmpp_3m": 1}
SAMPLERS |= {"unipc_2": 1, "unipc_3": 1}
ADAPTIVE = ("tsit5", "dopri5")
LEARNED = ("midpoint", "dpmpp_2m")
BUDGETS, LEARNED_BUDGETS = (4, 8, 16, 32, 64), (8, 16)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
SHIFT = 3.0  # of SD3, Esser et al. 2024
ITERATIONS, GRID_ITERATIONS, TRAIN_ROWS_OF_DIGITS = 8_000, 150, 1_297
COLUMNS = ("data", "path", "seed", "sampler", "grid", "nfe", "rms", "wasserstein", "energy", "note")


@dataclass(frozen=True)
class Sampled:
    """What a sampler made of the same noise.

    rms, wasserstein: from a tight solve of the same model. energy: the energy distance from rows that are not trained
    on. grid: "uniform", "shifted", "learned", or the tolerance of adaptive steps, which `asked` evaluations stand for.
    """

    data: str
    path: str
    seed: int
    sampler: str
    grid: str
    asked: int = 0
    nfe: int | None = None
    rms: float | None = None
    wasserstein: float | None = None
    energy: float | None = None
    note: str = ""


def rows_of(name: str, seed: int, count: int) -> tuple[Any, Tensor]:
    """A function that draws n rows to train on, and `count` others."""
    generator = torch.Generator().manual_seed(seed)
    if name != "digits":
        toy = toy_density(name, "ffjord")
        return lambda n: toy.sample(n, generator), toy.sample(count, torch.Generator().manual_seed(10_000 + seed))
    from sklearn.datasets import load_digits

    rows = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 8 - 1
    rows = rows[torch.randperm(len(rows), generator=generator)]
    train = rows[:TRAIN_ROWS_OF_DIGITS]
    return lambda n: train[torch.randint(len(train), (n,), generator=generator)], rows[TRAIN_ROWS_OF_DIGITS:][:count]


def trained(name: str, path: Any, seed: int, iterations: int, batch: int, count: int) -> tuple[Any, Tensor]:
    """A flow in float64, trained in float32, and rows that it has not seen."""
    torch.manual_seed(seed)
    draw, held_out = rows_of(name, seed, count)
    dim, hidden = held_out.shape[1], 256 if name == "digits" else 128
    flow = odenet.nn.FlowMatching(odenet.nn.MLPField(dim, (hidden,) * 3, "silu"), path)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        flow.loss(draw(batch)).backward()
        optimizer.step()
        schedule.step()
    return copy.deepcopy(flow).double(), held_out.double()


def learned_grid(flow: Any, method: str, steps: int, iterations: int, seed: int) -> Tensor:
    """Times (steps + 1,) whose samples are nearest to those of a tight solve, in the mean square.

    What the solver learns of Shaul et al. 2024, "Bespoke solvers for generative flow models", without its scaling.
    """
    generator = torch.Generator().manual_seed(20_000 + seed)
    noise = torch.randn(128, flow.known_event_shape[0], dtype=torch.float64, generator=generator)
    exact = flow.sample(x0=noise, method="dopri5", rtol=1e-6, atol=1e-6)
    logits = torch.zeros(steps, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)

    def grid() -> Tensor:
        inner = logits.softmax(0).cumsum(0)[:-1] * flow.path.end
        return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), flow.path.end)])

    for _ in range(iterations):
        optimizer.zero_grad()
        (flow.rsample(x0=noise, method=method, grid=grid()) - exact).square().mean().backward()
        optimizer.step()
    return grid().detach()


def runs(flow: Any, quick: bool, seed: int) -> Iterator[tuple[str, str, int, Any]]:
    """Each run: sampler, grid, evaluations asked for, and a function that gives the options of `sample`."""
    for budget in BUDGETS[:2] if quick else BUDGETS:
        for sampler, stages in SAMPLERS.items():
            steps = budget // stages
            yield sampler, "uniform", budget, lambda n=steps: {"steps": n}
            yield sampler, "shifted", budget, lambda n=steps: {"grid": flow_grid(n, SHIFT) * flow.path.end}
    for budget in LEARNED_BUDGETS[:1] if quick else LEARNED_BUDGETS:
        for sampler in LEARNED:
            job = (flow, sampler, budget // SAMPLERS[sampler], 2 if quick else GRID_ITERATIONS, seed)
            yield sampler, "learned", budget, lambda job=job: {"grid": learned_grid(*job)}
    for tolerance in TOLERANCES[:2] if quick else TOLERANCES:
        for sampler in ADAPTIVE:
            yield sampler, f"{tolerance:g}", 0, lambda tol=tolerance: {"rtol": tol, "atol": tol}


def sample_all(data: str, path: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Train a model, and sample it in every way from the same noise."""
    iterations, batch, count = (20, 32, 50) if quick else (ITERATIONS, 512, 500 if data == "digits" else 1000)
    flow, held_out = trained(data, path, seed, iterations, batch, count)
    noise = torch.randn(held_out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(30_000 + seed))
    exact = flow.sample(x0=noise, method="dopri8", rtol=1e-9, atol=1e-9, max_steps=100_000)
    found = [{"sampler": "exact", "grid": "-", "nfe": flow.stats.nfe, "energy": energy_distance(exact, held_out)}]
    for sampler, grid, budget, options in runs(flow, quick, seed):
        x, note = value_or_error(lambda m=sampler, o=options: flow.sample(x0=noise, method=m, **o()))
        row: dict[str, Any] = {"sampler": sampler, "grid": grid, "asked": budget, "note": note}
        if x is not None:
            row |= {"nfe": flow.stats.nfe, "rms": rms(x, exact), "wasserstein": wasserstein(x, exact)}
            row |= {"energy": energy_distance(x, held_out)}
        found.append(row)
    return found


def measure(quick: bool) -> list[Sampled]:
    data, paths, seeds = (DATA[:1], PATHS[:1], SEEDS[:1]) if quick else (DATA, PATHS, SEEDS)
    jobs = [(d, p, s, quick) for d in data for p in paths for s in seeds]
    found = call_each_in_subprocess(sample_all, jobs, title="samplers")
    rows: list[Sampled] = []
    for (name, path, seed, _), (those, note) in zip(jobs, found, strict=True):
        for one in those or [{"sampler": "exact", "grid": "-", "note": note}]:
            rows.append(Sampled(name, path, seed, **one))
    return rows


def _middle(rows: Sequence[Sampled], quantity: str) -> float | None:
    """The median over the seeds."""
    values = [v for r in rows if (v := getattr(r, quantity)) is not None]
    return median(values) if values else None


def _fixed_table(rows: Sequence[Sampled], quantity: str) -> str:
    budgets = sorted({r.asked for r in rows if r.asked})
    kinds = dict.fromkeys((r.sampler, r.grid) for r in rows if r.asked)
    lines = []
    for kind in sorted(kinds, key=lambda k: [*SAMPLERS].index(k[0])):
        mine = [r for r in rows if (r.sampler, r.grid) == kind]
        cells = [number(_middle([r for r in mine if r.asked == b], quantity), ".2g") for b in budgets]
        lines.append([*kind, *cells])
    return markdown_table(["sampler", "grid", *map(str, budgets)], lines)


def _adaptive_table(rows: Sequence[Sampled]) -> str:
    lines = []
    for kind in dict.fromkeys((r.sampler, r.grid) for r in rows if r.sampler in ADAPTIVE):
        mine = [r for r in rows if (r.sampler, r.grid) == kind]
        forms = (("nfe", ".0f"), ("rms", ".2g"), ("wasserstein", ".2g"), ("energy", ".3f"))
        lines.append([*kind, *(number(_middle(mine, quantity), form) for quantity, form in forms)])
    return markdown_table(["method", "rtol = atol", "nfe", "RMS error", "2-Wasserstein", "energy distance"], lines)


def page(rows: Sequence[Sampled], settings: Settings) -> str:
    how = (
        "A sampler starts from the same noise as a tight solve (dopri8, 1e-9) of the same model, in float64. RMS error "
        "and 2-Wasserstein distance are from that solve's samples; the energy distance is from held-out rows, where no "
        f"sampler can do better than the model. Grids: uniform; shifted by {SHIFT:g} (`flow_grid`); learned: times "
        f"only, {GRID_ITERATIONS} iterations of Adam through the solver on other noise. Columns: evaluations of the "
        f"field. Medians over {len({r.seed for r in rows})} seeds of the training. A model: MLP of three hidden layers "
        f"(128; digits 256), {ITERATIONS:,} iterations."
    )
    parts = [page_head("Samplers", settings, "flows_samplers.png", "error against evaluations"), f"{how}\n"]
    for data, path in dict.fromkeys((r.data, r.path) for r in rows):
        mine = [r for r in rows if (r.data, r.path) == (data, path)]
        exact = number(_middle([r for r in mine if r.sampler == "exact"], "energy"), ".3f")
        tables = [f"RMS error\n\n{_fixed_table(mine, 'rms')}", _adaptive_table(mine)]
        tables.insert(1, f"Energy distance from data; of the tight solve: {exact}\n\n{_fixed_table(mine, 'energy')}")
        notes = sorted({f"- {r.sampler}, {r.grid}: {r.note}" for r in mine if r.note})
        parts.append(f"## {data}, path {path}\n\n" + "\n".join([*tables, *notes]))
    return "\n".join(parts)


def numbers(rows: Sequence[Sampled]) -> str:
    return csv_text(COLUMNS, [[getattr(r, name) for name in COLUMNS] for r in rows])


def draw(rows: Sequence[Sampled]) -> bytes:
    """Return the figure: a panel for each model, RMS error against evaluations."""
    models = list(dict.fromkeys((r.data, r.path) for r in rows))
    across = min(2, len(models))
    figure = Figure(figsize=(6 * across, 4 * -(-len(models) // across)), layout="constrained")
    panels = list(figure.subplots(-(-len(models) // across), across, squeeze=False).flat)
    for axes, model in zip(panels, models, strict=False):
        mine = [r for r in rows if (r.data, r.path) == model and r.rms]
        for i, sampler in enumerate((*SAMPLERS, *ADAPTIVE)):
            grids = [r for r in mine if r.sampler == sampler and (r.grid == "uniform" or not r.asked)]
            points = [
                (_middle(those, "nfe"), _middle(those, "rms"))
                for key in dict.fromkeys((r.asked, r.grid) for r in grids)
                if (those := [r for r in grids if (r.asked, r.grid) == key])
            ]
            style, colour = ("-", f"C{i}") if sampler in SAMPLERS else ("--", ("black", "grey")[i % 2])
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=".", label=sampler, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="RMS error")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(", ".join(model), loc="right", fontsize=10)
        if axes is panels[0]:
            legend_above(axes)
    return png(figure)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    rows = measure(settings.quick)
    return [
        ("flows_samplers.csv", numbers(rows)),
        ("flows_samplers.png", draw(rows)),
        ("flows_samplers.md", page(rows, settings)),
    ]
