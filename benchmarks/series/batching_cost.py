"""Times of each sample's own against the union of all times: what a training step of an ODE-RNN costs.

With the union every sample is evolved through the times of all others, as where one solve has one list of times. The
less the times of the samples coincide, the more of them the union has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from odenet.nn.recurrent import ODERNN
from odenet.series import Series

from ..shared.tables import Settings, csv_text, markdown_table, page_head
from ..shared.timing import interleave
from . import latent_batching

SAMPLES, ROWS, CHANNELS, HIDDEN, TURNS = 32, 20, 4, 32, 5
SHARES = (1.0, 0.9, 0.75, 0.5, 0.0)
OWN, UNION = "own times", "union of times"
COLUMNS = ("share", "rows", "batch", "seconds")


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step where this share of a sample's times is common to all, and rows of both batches."""

    share: float
    rows: dict[str, int]
    seconds: dict[str, list[float]]


def series_with_common_times(share: float, samples: int, rows: int, generator: torch.Generator) -> Series:
    """Random values at times in [0, 1]: the first is 0, and round(share * rows) of them are the same in all samples."""
    common = round(share * rows)
    times = torch.rand(samples, rows, generator=generator)
    times[:, :common] = times[:1, :common].clone()
    times[:, 0] = 0.0
    x = torch.randn(samples, rows, CHANNELS, generator=generator)
    return Series(times.sort(1).values, x)


def training_step(model: ODERNN, series: Series, targets: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters())
    end = torch.ones(1)

    def step() -> None:
        optimizer.zero_grad()
        (model(series, end)[:, 0] - targets).square().mean().backward()
        optimizer.step()

    return step


def costs(quick: bool) -> Iterator[Cost]:
    samples, rows, shares, turns = (4, 3, SHARES[::4], 1) if quick else (SAMPLES, ROWS, SHARES, TURNS)
    generator = torch.Generator().manual_seed(0)
    for share in shares:
        own = series_with_common_times(share, samples, rows, generator)
        batches = {OWN: own, UNION: own.union()}
        targets = torch.randn(samples, 1, generator=generator)
        steps = {name: training_step(ODERNN(CHANNELS, HIDDEN, out=1), s, targets) for name, s in batches.items()}
        seconds = interleave(steps, turns, title=f"share {share}")
        yield Cost(share, {name: s.t.shape[1] for name, s in batches.items()}, seconds)


def page(found: list[Cost], flows: list[latent_batching.FlowCost], settings: Settings) -> str:
    lines: list[list[str]] = []
    for cost in found:
        own, union = median(cost.seconds[OWN]), median(cost.seconds[UNION])
        lines.append(
            [
                f"{cost.share:.0%}",
                str(cost.rows[OWN]),
                str(cost.rows[UNION]),
                f"{1e3 * own:.1f}",
                f"{1e3 * union:.1f}",
                f"{union / own:.1f}",
            ]
        )
    columns = ["times in common", "rows: own", "rows: union", "ms: own", "ms: union", "union / own"]
    text = (
        f"\nA training step of `ODERNN({CHANNELS}, {HIDDEN})` on {SAMPLES} samples: forward to time 1, backward and "
        "Adam, medians. Two midpoint steps a gap, so both grow with the rows.\n\n"
    )
    head = page_head("Own times and the union of times", settings)
    return head + text + markdown_table(columns, lines) + latent_batching.section(flows)


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    found, flows = list(costs(settings.quick)), list(latent_batching.costs(settings.quick))
    rows = [
        (cost.share, cost.rows[name], name, seconds)
        for cost in found
        for name in (OWN, UNION)
        for seconds in cost.seconds[name]
    ]
    yield "series_batching.csv", csv_text(COLUMNS, rows)
    yield "series_latent_batching.csv", csv_text(latent_batching.COLUMNS, latent_batching.rows(flows))
    yield "series_batching.md", page(found, flows, settings)
