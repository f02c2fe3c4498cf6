"""Spirals in the plane, seen at some of 100 points with noise, and followed over the next 100.

Chen et al. 2018, "Neural ordinary differential equations", section 5.1, table 2 and figure 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from odenet.nn import LatentODE

from ..shared.plots import png
from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import Settings, csv_text, markdown_table, page_head
from .latent_example import LATENT, ExampleModel, example_decoder, example_field
from .motion_prediction import last_value
from .score_lines import mean_and_spread
from .series_models import build
from .series_training import Examples, Split, evaluate, train, values_at, window_loss

COUNT, WINDOW = 1000, 100
POINTS = (30, 50, 100)
SEEDS, SECONDS, RATE = 3, 100.0, 0.01
CONTENDERS: dict[str, Callable[[], Any]] = {
    "LatentODE": lambda: LatentODE(2, LATENT, 64, encoder="attention", out=2, compile=True),
    "torchdiffeq's example": lambda: ExampleModel(example_field(), example_decoder()),
    "GRUDelta": lambda: build("GRUDelta", 2, 2),
}
BASELINE = "last value"
PUBLISHED = {"RNN": (0.3937, 0.3202, 0.1813), "Latent ODE": (0.1642, 0.1502, 0.1346)}
DRAWN = 4


@dataclass(frozen=True)
class Forecast:
    """Root mean squared error over the 100 points beyond those observed, and over the observed window.

    near: the first, of the share of spirals whose next points stay near those of the training windows.
    """

    model: str
    points: int
    seed: int = 0
    rmse: float | None = None
    window: float | None = None
    near: float | None = None
    share: float | None = None
    iterations: int | None = None
    note: str = ""


def data(count: int, points: int, seed: int) -> Split:
    """Spirals and their true places at 200 times, 100 of them in the window; 64 : 16 : 20."""
    seen, truth, _ = import_module("odenet.train.series.spirals").spirals(count, points, seed)
    whole = Examples(seen, truth.x, truth.t)
    train_count, val = round(0.64 * count), round(0.16 * count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Split(*(whole[index] for index in order.split([train_count, val, count - train_count - val])))


def stays_near(split: Split) -> Tensor:
    """Whether the next 100 points of a test spiral stay in the rectangle that the training windows fill, (B,)."""
    filled, beyond = split.train.target[:, :WINDOW], split.test.target[:, WINDOW:]
    return ((beyond >= filled.amin((0, 1))) & (beyond <= filled.amax((0, 1)))).all(2).all(1)


def _rmse(predicted: Tensor, truth: Tensor) -> float:
    return float((predicted - truth).square().mean().sqrt())


def score(model: str, points: int, seeds: int, seconds: float, count: int) -> dict[str, Any]:
    """Errors, one for each seed, and what the figure shows of the first one."""
    found: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for seed in range(seeds):
        split = data(count, points, seed)
        test, cost = split.test, {}
        if model == BASELINE:
            assert test.ts is not None
            predicted = last_value(test.series, test.ts)
        else:
            torch.manual_seed(seed)
            made, batch = CONTENDERS[model](), min(64, len(split.train))
            cost["iterations"] = train(made, split, window_loss, seed, batch, RATE, seconds=seconds).iterations
            predicted = evaluate(made, test, values_at)
        beyond, window = ((predicted[:, i], test.target[:, i]) for i in (slice(WINDOW, None), slice(WINDOW)))
        near = stays_near(split)
        of_near = _rmse(*(part[near] for part in beyond)) if bool(near.any()) else None
        found.append({"seed": seed, "rmse": _rmse(*beyond), "window": _rmse(*window), **cost})
        found[-1] |= {"near": of_near, "share": float(near.double().mean())}
        if not seed:
            shown = [
                {
                    "observed": test.series.x[i, : int(test.series.length[i])].tolist(),
                    "true": test.target[i].tolist(),
                    "predicted": predicted[i].tolist(),
                }
                for i in range(min(DRAWN, len(test)))
            ]
    return {"errors": found, "shown": shown}


def measure(quick: bool) -> tuple[list[Forecast], dict[str, list[dict[str, Any]]]]:
    """Errors, and of each model what the figure shows with the fewest points."""
    seeds, seconds, count = (1, 0.5, 60) if quick else (SEEDS, SECONDS, COUNT)
    models = (BASELINE, *CONTENDERS)
    jobs = [(model, points, seeds, seconds, count) for model in models for points in POINTS]
    results: list[Forecast] = []
    shown: dict[str, list[dict[str, Any]]] = {}
    for job, (value, note) in zip(jobs, call_each_in_subprocess(score, jobs, title="spirals"), strict=True):
        results += [Forecast(*job[:2], **one) for one in (value or {"errors": ()})["errors"]]
        results += [Forecast(*job[:2], note=note)] * bool(note)
        if value and job[:2] in {(name, POINTS[0]) for name in CONTENDERS}:
            shown[job[0]] = value["shown"]
    return results, shown


HOW = f"""\
{COUNT:,} spirals, half of them clockwise, observed with Gaussian noise of deviation 0.3 at a random part of 100 points.
Root mean squared error over the next 100 points, against the true ones; in brackets over the window. 64 : 16 : 20; ±
is the standard deviation over {SEEDS} seeds. Each model trains for {SECONDS:g} s on one thread, Adam from 0.01 down
to 0, on the observed points alone: the latent ODEs by the bound of their likelihood, `GRUDelta` by the squared error
of all observed points from those before a random one. `LatentODE` has the latent size {LATENT} too, hidden size 64,
`encoder="attention"` and `compile=True`; the seconds are of the processor, and the first step, which compiles, is not
among them. torchdiffeq's example is its script latent_ode.py, written anew for points of each spiral's own, with its
sizes and tolerances. "paper": table 2 of Chen et al. 2018, whose spirals and noise are not known to be of this
scale; their RNN is trained by a Gaussian likelihood, as is their latent ODE by a bound of it."""


NEAR = """\
The same for the spirals, {share} % of them, whose next 100 points stay in the rectangle that the windows of the
training spirals fill. The others end where none was in training: the clockwise ones at a radius of up to 15, which is
at most 5.2 in a window."""


def page(results: Sequence[Forecast], settings: Settings, figure: str = "") -> str:
    head = ["model", *(f"{points}/100" for points in POINTS)]
    lines: list[list[str]] = []
    near: list[list[str]] = []
    for model in dict.fromkeys(r.model for r in results):
        rows = [r for r in results if r.model == model]
        by_points = [[r for r in rows if r.points == points] for points in POINTS]
        windows = [mean_and_spread([r.window for r in here], ".3f").split(" ")[0] for here in by_points]
        whole = [mean_and_spread([r.rmse for r in here], ".3f") for here in by_points]
        cells = [f"{one} ({window})" for one, window in zip(whole, windows, strict=True)]
        notes = "; ".join(dict.fromkeys(r.note for r in rows if r.note))
        lines.append([model, *cells, mean_and_spread([r.iterations for r in rows], ",.0f"), notes])
        near.append([model, *(mean_and_spread([r.near for r in here], ".3f") for here in by_points)])
    published = [[f"{name}, paper", *(f"{v:.4f}" for v in values)] for name, values in PUBLISHED.items()]
    lines += [[*line, "", ""] for line in published]
    shares = [100 * r.share for r in results if r.model == BASELINE and r.points == POINTS[0] and r.share is not None]
    caption = "spirals of 30 observed points, and what models make of them"
    return "\n".join(
        [
            page_head("Spirals", settings, figure, caption),
            f"{HOW}\n",
            markdown_table([*head, "iterations", "note"], lines),
            f"{NEAR.format(share=mean_and_spread(shares, '.0f'))}\n",
            markdown_table(head, near + published),
        ]
    )


def draw(shown: dict[str, list[dict[str, Any]]]) -> bytes:
    """A row of spirals for each model: observed points, the true path, the predicted one, dashed beyond the window."""
    rows, columns = len(shown), max(len(spirals) for spirals in shown.values())
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for line, (name, spirals) in zip(grid, shown.items(), strict=True):
        for axes, spiral in zip(line, spirals, strict=False):
            _draw_spiral(axes, spiral)
        line[0].set_ylabel(name)
    grid[0, 0].legend(fontsize=7)
    return png(figure)


def _draw_spiral(axes: Axes, spiral: dict[str, Any]) -> None:
    true, predicted, observed = (torch.tensor(spiral[name]).T for name in ("true", "predicted", "observed"))
    axes.plot(*true, color="#bbbbbb", linewidth=3, label="true")
    axes.plot(*predicted[:, :WINDOW], color="#00798c", label="predicted")
    axes.plot(*predicted[:, WINDOW - 1 :], color="#d1495b", linestyle="--", label="beyond the window")
    axes.plot(*observed, ".", color="black", markersize=3, label="observed")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    results, shown = measure(settings.quick)
    table = csv_text(tuple(Forecast.__dataclass_fields__), [list(asdict(r).values()) for r in results])
    name = "series_spirals.png"
    files: list[tuple[str, str | bytes]] = [
        ("series_spirals.csv", table),
        ("series_spirals.md", page(results, settings, name if shown else "")),
    ]
    return [*files, (name, draw(shown))] if shown else files
