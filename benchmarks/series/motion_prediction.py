"""Values of the hopper's motions at times that are not given: between the given ones, and after them.

Rubanova et al. 2019, "Latent ODEs for irregularly-sampled time series", section 4.3 and table 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from odenet.series import Series
from odenet.train.user_error import UserError

from ..shared.errors import NotApplicableError
from ..shared.subprocesses import call_each_in_subprocess, call_in_subprocess
from ..shared.tables import Settings, csv_text, markdown_table, page_head
from .score_lines import mean_and_spread
from .series_models import VARIANTS, build, present
from .series_training import Examples, Split, evaluate, train, values_at, values_loss

COUNT, ROWS = 1000, 100
GIVEN = (0.1, 0.2, 0.3, 0.5)
TASKS = ("interpolation", "extrapolation")
SEEDS, ITERATIONS = 3, 500
# table 3, in units of 0.01: 10,000 series
PUBLISHED = {
    "RNN Δt": ((2.454, 1.714, 1.250, 0.785), (7.259, 6.792, 6.594, 30.571)),
    "GRU-D": ((1.968, 1.421, 1.134, 0.748), (38.130, 20.041, 13.049, 5.833)),
    "ODE-RNN": ((1.647, 1.209, 0.986, 0.665), (13.508, 31.950, 15.465, 26.463)),
    "RNN-VAE": ((6.514, 6.408, 6.305, 6.100), (2.378, 2.135, 2.021, 1.782)),
    "Latent ODE (RNN encoder)": ((2.477, 0.578, 2.768, 0.447), (1.663, 1.653, 1.485, 1.377)),
    "Latent ODE (ODE encoder)": ((0.360, 0.295, 0.300, 0.285), (1.441, 1.400, 1.175, 1.258)),
}


@dataclass(frozen=True)
class Error:
    """Mean squared errors of a model: at all times that are asked for, and at those of them that were not given."""

    task: str
    model: str
    given: float
    seed: int = 0
    mse: float | None = None
    unseen: float | None = None
    seconds: float | None = None
    note: str = ""


def motions(count: int, folder: str) -> Tensor:
    """(count, 200, 14), in the scale of the paper's program: less the least value of a channel, over the greatest."""
    try:
        x = import_module("odenet.train.series.hopper").hopper(count, folder).x
    except UserError as error:
        raise NotApplicableError(str(error)) from None
    return (x - x.amin((0, 1))) / x.amax((0, 1))


def prepare(count: int, folder: str) -> int:
    return len(motions(count, folder))


def examples(task: str, x: Tensor, given: float, seed: int) -> tuple[Split, Tensor]:
    """Series with some rows and the values that are asked for, and which rows of the test part are given, (B, Q).

    interpolation: 100 rows from a random one on are asked for, a part of them is given. extrapolation: a part of the
    first 100 rows is given, and the last 100 are asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(ROWS, dtype=x.dtype)
    if task == "interpolation":
        start = torch.randint(x.shape[1] - ROWS + 1, (len(x), 1, 1), generator=generator)
        window = target = x.gather(1, (start + torch.arange(ROWS)[:, None]).expand(-1, -1, x.shape[2]))
        ts = t
    else:
        window, target, ts = x[:, :ROWS], x[:, ROWS : 2 * ROWS], t + ROWS
    series = Series(t, window).dropped(1 - given, generator)
    whole = Examples(series, target, ts.expand(len(x), -1))
    order = torch.randperm(len(x), generator=generator)
    train_count, val = round(0.64 * len(x)), round(0.16 * len(x))
    parts = order.split([train_count, val, len(x) - train_count - val])
    split = Split(*(whole[index] for index in parts))
    shown = (split.test.series.t[:, None] == ts[:, None]) & split.test.series.rows[:, None]
    return split, shown.any(-1)


def interpolated(series: Series, ts: Tensor) -> Tensor:
    """Straight lines between rows, (B, Q, C), at times (B, Q); constant before the first and behind the last row."""
    before, after = _around(series, ts)
    t0, t1 = series.t.gather(1, before), series.t.gather(1, after)
    ratio = ((ts - t0) / torch.where(t1 > t0, t1 - t0, 1.0)).clamp(0.0, 1.0)[..., None]
    return _row(series, before) * (1 - ratio) + _row(series, after) * ratio


def last_value(series: Series, ts: Tensor) -> Tensor:
    """The last row up to each time, (B, Q, C); the first one before it."""
    return _row(series, _around(series, ts)[0])


def _around(series: Series, ts: Tensor) -> tuple[Tensor, Tensor]:
    times = torch.where(series.rows, series.t, torch.inf)
    row = torch.searchsorted(times, ts.contiguous(), right=True) - 1
    return row.clamp(min=0), (row + 1).minimum(series.length[:, None] - 1)


def _row(series: Series, index: Tensor) -> Tensor:
    return series.x.gather(1, index[..., None].expand(-1, -1, series.num_channels))


def mean_of_training(data: Split) -> Tensor:
    return data.train.target.mean((0, 1)).expand_as(data.test.target)


def _of_rows(rule: Callable[[Series, Tensor], Tensor]) -> Callable[[Split], Tensor]:
    def predict(data: Split) -> Tensor:
        assert data.test.ts is not None
        return rule(data.test.series, data.test.ts)

    return predict


BASELINES: dict[str, Callable[[Split], Tensor]] = {
    "mean of the training values": mean_of_training,
    "last value": _of_rows(last_value),
    "straight lines": _of_rows(interpolated),
}


def score(
    task: str, model: str, given: float, seeds: int, iterations: int, count: int, folder: str
) -> list[dict[str, Any]]:
    """Errors of a model, one for each seed."""
    x = motions(count, folder)
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        data, shown = examples(task, x, given, seed)
        cost: dict[str, Any] = {}
        if model in BASELINES:
            predicted = BASELINES[model](data)
        else:
            torch.manual_seed(seed)
            made = build(model, x.shape[-1], x.shape[-1])
            cost["seconds"] = train(
                made, data, values_loss, seed, min(64, len(data.train)), iterations=iterations
            ).seconds
            predicted = evaluate(made, data.test, values_at)
        error = (predicted - data.test.target).square().mean(-1)
        found.append({"seed": seed, "mse": float(error.mean()), "unseen": float(error[~shown].mean()), **cost})
    return found


def measure(quick: bool, folder: str) -> list[Error]:
    seeds, iterations, count = (1, 3, 60) if quick else (SEEDS, ITERATIONS, COUNT)
    cases = [("interpolation", given) for given in (GIVEN[-1:] if quick else GIVEN)] + [("extrapolation", GIVEN[-1])]
    models = (*BASELINES, *present(), *VARIANTS)
    jobs = [(task, model, given, seeds, iterations, count, folder) for task, given in cases for model in models]
    call_in_subprocess(prepare, count, folder)  # so that the motions are made once
    results: list[Error] = []
    for job, (values, note) in zip(jobs, call_each_in_subprocess(score, jobs, title="hopper"), strict=True):
        results += [Error(*job[:3], **value) for value in values or ()]
        results += [Error(*job[:3], note=note)] * bool(note)
    return results


HOW = f"""\
Mean squared error, in units of 0.01, of the 14 values of the hopper of dm-control, in the scale of the paper's
program (less the least value of a channel, over its greatest). {COUNT:,} motions of 200 rows, 64 : 16 : 20.
Interpolation: 100 rows from a random one on are asked for, and a part of them is given. Extrapolation: a part of the
first 100 rows is given, and the other 100 are asked for. ± is the standard deviation over {SEEDS} seeds. Each model
takes {ITERATIONS} steps of Adam, of batches of 64, on the error at all times that are asked for; hidden size 32.
Seconds: for these, on one thread, over all columns. The solves of `NeuralCDE` and `LogODE` take a midpoint step for
each row or window. Recurrent models see no row after the time that is asked for, and know the value where a row is
given. In brackets: the error at the other times.

"paper": table 3 of Rubanova et al. 2019, of 10,000 motions. Their recurrent models are
trained to predict the next row, and their program gives the first third of 200 rows in extrapolation."""


def _cell(rows: Sequence[Error], task: str, given: float) -> str:
    here = [r for r in rows if (r.task, r.given) == (task, given) and r.mse is not None]
    cell = mean_and_spread([100 * (r.mse or 0.0) for r in here], ".3f")
    if task == "extrapolation" or not here:
        return cell
    return f"{cell} ({mean(100 * (r.unseen or 0.0) for r in here):.3f})"


def page(results: Sequence[Error], settings: Settings) -> str:
    cases = list(dict.fromkeys((r.task, r.given) for r in results))
    head = ["model", *(f"{task} {100 * given:.0f} %" for task, given in cases), "seconds", "note"]
    lines: list[list[str]] = []
    for model in dict.fromkeys(r.model for r in results):
        rows = [r for r in results if r.model == model]
        seconds = mean_and_spread([r.seconds for r in rows], ".0f")
        notes = "; ".join(dict.fromkeys(r.note for r in rows if r.note))
        lines.append([model, *(_cell(rows, *case) for case in cases), seconds, notes])
    for name, numbers in PUBLISHED.items():
        known = [f"{numbers[TASKS.index(task)][GIVEN.index(given)]:.3f}" for task, given in cases]
        lines.append([f"{name}, paper", *known, "", ""])
    return "\n".join([page_head("Motions of the hopper", settings), f"{HOW}\n", markdown_table(head, lines)])


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    results = measure(settings.quick, settings.data_dir)
    table = csv_text(tuple(Error.__dataclass_fields__), [list(asdict(r).values()) for r in results])
    return [("series_hopper.csv", table), ("series_hopper.md", page(results, settings))]
