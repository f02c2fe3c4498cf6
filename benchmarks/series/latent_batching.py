"""Common steps for all samples against steps of each sample's own: what the solve of a latent ODE costs.

With common steps one solve goes through the times of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from odenet.nn.fields import MLPField
from odenet.nn.latent.latent_flow import LatentFlow

from ..shared.tables import markdown_table
from ..shared.timing import interleave

LATENT, HIDDEN, TURNS = 8, 32, 5
# samples, times of each, and times of all together
CASES = ((64, 30, 30), (64, 30, 240), (64, 30, 480), (64, 30, 1920), (256, 100, 100), (256, 100, 800), (256, 100, 1600))
COMMON, OWN = "common steps", "steps of each sample"
COLUMNS = ("samples", "times of each", "times of all", "steps", "seconds")


@dataclass(frozen=True)
class FlowCost:
    """Seconds of a forward and a backward pass through the solve."""

    samples: int
    times: int
    union: int
    seconds: dict[str, list[float]]


def times_of_samples(samples: int, times: int, union: int, generator: torch.Generator) -> Tensor:
    """Increasing times in [0, 1], (samples, times), out of `union` ones."""
    every = torch.rand(union, generator=generator).sort().values
    own = torch.rand(samples, union, generator=generator).argsort(1)[:, :times]
    if union == samples * times:
        own = torch.randperm(union, generator=generator).view(samples, times)
    return every[own.sort(1).values]


def step(flow: LatentFlow, z0: Tensor, ts: Tensor) -> Callable[[], object]:
    weights = list(flow.parameters())
    return lambda: torch.autograd.grad(flow(z0, ts).square().mean(), weights)


def costs(quick: bool) -> Iterator[FlowCost]:
    generator = torch.Generator().manual_seed(0)
    for samples, times, union in ((4, 3, 6),) if quick else CASES:
        z0 = torch.randn(1, samples, LATENT, generator=generator)
        ts = times_of_samples(samples, times, union, generator)
        torch.manual_seed(0)
        field = MLPField(LATENT, (HIDDEN, HIDDEN), "elu", time=False)
        steps = {
            name: step(LatentFlow(field, None, 0.0, {"per_sample": per_sample}), z0, ts)
            for name, per_sample in ((COMMON, False), (OWN, True))
        }
        seconds = interleave(steps, 1 if quick else TURNS, title=f"latent flow, {union} times")
        yield FlowCost(samples, times, len(ts.unique()), seconds)


def rows(found: Sequence[FlowCost]) -> list[tuple[object, ...]]:
    return [(c.samples, c.times, c.union, k, s) for c in found for k, those in c.seconds.items() for s in those]


def section(found: Sequence[FlowCost]) -> str:
    lines = [
        [f"{c.samples}", f"{c.times}", f"{c.union:,}", *(f"{1e3 * median(c.seconds[k]):.1f}" for k in (COMMON, OWN))]
        for c in found
    ]
    text = (
        f"\n## The solve of a latent ODE\n\nOf `LatentODE(latent={LATENT}, hidden={HIDDEN})`, forward and backward, "
        "medians in ms, with `per_sample=False` and `True`. Times are from 0 to 1.\n\n"
    )
    return text + markdown_table(["samples", "times of each", "times of all", COMMON, OWN], lines)
