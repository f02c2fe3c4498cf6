"""The time to a likelihood: FFJORD's toy trained by odenet, and in FFJORD's own way.

Both start from the same weights and see the same batches in the same order, with the same optimiser. They take turns of
some iterations, so that a disturbance meets both, and their held-out nats are computed by one tight solve, outside the
time. The threshold is what FFJORD's way has at its end, less a margin: both follow the same curve up to rounding, of
which the last digits would decide whether one ever has the other's last value.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from statistics import geometric_mean, median
from typing import Any

import torch
from torch import Tensor

import odenet
from odenet.train.flows.toy_densities import toy_density

from ..shared.measured_rows import Row
from ..shared.tables import NONE, markdown_table
from .flow_contenders import BruteForce, brute_force_log_prob

DATA, SEEDS = ("8gaussians", "2spirals"), (0, 1)
HIDDEN, BATCH, TOLERANCE, LEARNING_RATE = (32, 32), 512, 1e-5, 3e-3
ITERATIONS, TURN, HELD_OUT, MARGIN = 600, 25, 2000, 0.005
OURS, THEIRS = "odenet, compiled", "torchdiffeq odeint_adjoint, brute force"


class _Runner:
    """A contender in training: its seconds so far, and its held-out nats after each turn."""

    def __init__(self, field: Any, loss: Callable[[Any], Callable[[Tensor], Tensor]], first: Tensor) -> None:
        self.field = copy.deepcopy(field)
        self.loss = loss(self.field)
        self.optimizer = torch.optim.Adam(self.field.parameters(), lr=LEARNING_RATE)
        begin = time.perf_counter()
        torch.autograd.grad(self.loss(first), list(self.field.parameters()), allow_unused=True)  # compiles
        self.first = time.perf_counter() - begin
        self.seconds, self.curve = 0.0, list[tuple[float, float]]()

    def turn(self, batches: Sequence[Tensor], held_out: Tensor) -> None:
        begin = time.perf_counter()
        for x in batches:
            self.optimizer.zero_grad()
            self.loss(x).backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - begin
        with torch.no_grad():
            nats = odenet.nn.CNF(self.field, rtol=1e-6, atol=1e-6).log_prob(held_out).mean()
        self.curve.append((self.seconds, float(nats)))


def _ours(field: Any, compiled: bool) -> Callable[[Tensor], Tensor]:
    return odenet.nn.CNF(field, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE, compile=compiled).loss


def _theirs(field: Any) -> Callable[[Tensor], Tensor]:
    func = BruteForce(field)
    return lambda x: -brute_force_log_prob(func, x.clone(), TOLERANCE).mean()


def race(quick: bool) -> list[Row]:
    """The curves of both contenders on each toy, one row for a number."""
    data, seeds, iterations = (DATA[:1], SEEDS[:1], 2) if quick else (DATA, SEEDS, ITERATIONS)
    batch, turn = (16, 1) if quick else (BATCH, TURN)
    rows: list[Row] = []
    for name in data:
        for seed in seeds:
            torch.manual_seed(seed)
            generator, toy = torch.Generator().manual_seed(seed), toy_density(name, "ffjord")
            held_out = toy.sample(HELD_OUT // (100 if quick else 1), generator)
            field, first = odenet.nn.ConcatSquashField(2, HIDDEN), toy.sample(batch, generator)
            runners = {
                OURS: _Runner(field, lambda f: _ours(f, not quick), first),
                THEIRS: _Runner(field, _theirs, first),
            }
            for _ in range(iterations // turn):
                batches = [toy.sample(batch, generator) for _ in range(turn)]
                for runner in runners.values():
                    runner.turn(batches, held_out)
            for label, runner in runners.items():
                rows.append(("race", f"{name}, seed {seed}", label, "first step", runner.first, ""))
                for i, (seconds, nats) in enumerate(runner.curve, 1):
                    case = f"{name}, seed {seed}"
                    rows.append(("race", case, label, f"seconds at {i * turn}", seconds, ""))
                    rows.append(("race", case, label, f"nats at {i * turn}", nats, ""))
    return rows


def curve(rows: Sequence[Row], case: str, label: str) -> list[tuple[float, float]]:
    """(seconds, held-out nats) after each turn."""
    mine = {r[3]: r[4] for r in rows if r[1:3] == (case, label)}
    counts = [name.removeprefix("nats at ") for name in mine if name.startswith("nats at ")]
    return [(mine[f"seconds at {n}"] or 0.0, mine[f"nats at {n}"] or 0.0) for n in counts]


def seconds_until(points: Sequence[tuple[float, float]], nats: float) -> float | None:
    """The seconds of the first turn that ends with at least so many nats."""
    return next((seconds for seconds, found in points if found >= nats), None)


def section(rows: Sequence[Row]) -> str:
    """The table: for each toy and seed, the times until the nats that FFJORD's way ends with."""
    how = (
        f"ConcatSquash field 2-{HIDDEN[0]}-{HIDDEN[1]}-2 (softplus), exact trace, dopri5 at {TOLERANCE:g}, batch "
        f"{BATCH}, Adam at {LEARNING_RATE:g}, {ITERATIONS} iterations; same weights, same batches, turns of {TURN} "
        f"iterations. Threshold: the held-out nats (mean of {HELD_OUT}) that {THEIRS} has at its end, less {MARGIN:g}. "
        "Seconds until each first has them, without evaluation and without the first step, which compiles: it stands "
        "beside."
    )
    lines, ratios = [], []
    for case in dict.fromkeys(r[1] for r in rows if r[4] is not None):
        ours, theirs = curve(rows, case, OURS), curve(rows, case, THEIRS)
        threshold = theirs[-1][1] - MARGIN
        mine, other = seconds_until(ours, threshold), seconds_until(theirs, threshold)
        first = {r[2]: r[4] or 0.0 for r in rows if r[1] == case and r[3] == "first step"}
        if mine and other:
            ratios.append(other / mine)
        cells = [NONE if v is None else f"{v:.1f}" for v in (mine, first[OURS], other)]
        ratio = f"{other / mine:.2f}" if mine and other else NONE
        lines.append([case, f"{threshold:.3f}", f"{ours[-1][1]:.3f}", *cells, ratio])
    head = [
        "toy",
        "threshold",
        "odenet at its end",
        "odenet, s",
        "its first step, s",
        "torchdiffeq, s",
        "ratio",
    ]
    text = f"## The time to a likelihood\n\n{how}\n\n{markdown_table(head, lines)}"
    if not ratios:
        return text
    values = (min(ratios), median(ratios), max(ratios), geometric_mean(ratios))
    return text + "\nRatio: least {:.2f}, median {:.2f}, largest {:.2f}, geometric mean {:.2f}.\n".format(*values)
