"""Wall time of a forward and backward pass: every gradient, and diffrax's, on one field with one number of steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import odenet

from . import diffrax_side
from .contenders import AGAIN, BASE, Contender, cost_contenders
from .passes import Call, Pass, Start
from .results import Cost, Tell, attempt
from .timing import interleave

METHOD = "tsit5"  # in both libraries
STEP = 1 / 16  # a power of two: sums of it do not round, so both libraries take the same number of steps


@dataclass(frozen=True)
class Size:
    """Linear(dim, hidden)-Softplus-Linear(hidden, dim)-Tanh on a state of (batch, dim), over `steps` steps."""

    name: str
    batch: int
    dim: int
    hidden: int
    steps: int

    def describe(self) -> str:
        return f"{self.name}: batch {self.batch}, dim {self.dim}, hidden {self.hidden}, {self.steps} steps"


SIZES = (Size("small", 64, 4, 32, 100), Size("medium", 256, 64, 256, 100), Size("large", 512, 256, 1024, 20))
QUICK = (Size("small", 64, 4, 32, 20),)


def problem(size: Size, seed: int, device: str) -> tuple[nn.Sequential, Tensor]:
    """The field without its time argument, and y0; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(size.dim, size.hidden), nn.Softplus(), nn.Linear(size.hidden, size.dim), nn.Tanh()
        )
        y0 = torch.randn(size.batch, size.dim)
    return net.to(device), y0.to(device).requires_grad_()


def _start(contender: Contender, net: nn.Sequential, y0: Tensor, steps: int) -> Call:
    gradient = contender.make()
    inputs = (y0, *net.parameters())

    def one() -> Pass:
        sol = odenet.solve(lambda t, y: net(y), y0, [0.0, steps * STEP], method=METHOD, step=STEP, gradient=gradient)
        grads = torch.autograd.grad(sol.y1.square().mean(), inputs)
        if y0.is_cuda:
            torch.cuda.synchronize()
        return Pass(lambda: list(grads), sol.stats)

    return one


def starts(contenders: Sequence[Contender], net: nn.Sequential, y0: Tensor, steps: int) -> dict[str, Start]:
    """odenet's contenders and diffrax's, by label."""
    mine: dict[str, Start] = {c.label: lambda c=c: _start(c, net, y0, steps) for c in contenders}
    return mine | diffrax_side.starts(net, y0, steps, STEP)


def measure_size(
    size: Size, contenders: Sequence[Contender], seed: int, device: str, turns: int, tell: Tell
) -> list[Cost]:
    """One row a contender; one that cannot run has a note and no time."""
    net, y0 = problem(size, seed, device)
    part = f"cost, {size.name}"
    calls: dict[str, Call] = {}
    first: dict[str, Pass] = {}
    notes: dict[str, str] = {}
    for label, start in starts(contenders, net, y0, size.steps).items():
        call, notes[label] = attempt(start)
        if call is None:
            continue
        done, notes[label] = attempt(call)
        if done is not None:
            calls[label], first[label] = call, done
            if done.stats["accepted"] != size.steps:
                notes[label] = f"took {done.stats['accepted']} steps"
    seconds = interleave(
        calls, turns, shortest=0.0 if turns < 3 else 0.2, tell=lambda done, total: tell(part, done, total)
    )
    tell(part, 1, 1)
    targets = {c.label: c.target for c in contenders}
    return [_row(size.name, label, seconds, first, targets.get(label), note) for label, note in notes.items()]


def _row(
    size: str,
    label: str,
    seconds: dict[str, list[float]],
    first: dict[str, Pass],
    target: float | None,
    note: str,
) -> Cost:
    if label not in seconds:
        return Cost(size, label, target=target, note=note)
    mine, stats = seconds[label], first[label].stats
    median = statistics.median(mine)
    ratios = [_ratio(mine, seconds[base]) if base in seconds else None for base in (BASE, AGAIN)]
    difference = None
    if BASE in first and label != BASE:
        reference = first[BASE].flat()
        difference = float((first[label].flat() - reference).norm() / reference.norm())
    return Cost(
        size,
        label,
        seconds=median,
        fastest=min(mine),
        slowest=max(mine),
        ratio=ratios[0],
        ratio_again=ratios[1],
        target=target,
        nfe=stats.get("nfe"),
        backward_nfe=stats.get("backward_nfe"),
        checkpoints=stats.get("checkpoints"),
        difference=difference,
        note=note,
    )


def _ratio(mine: list[float], base: list[float]) -> float:
    """Median over the turns: in one turn both met the machine in the same state."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


def measure(seed: int, device: str, quick: bool, tell: Tell) -> list[Cost]:
    turns = 2 if quick else 9
    rows = []
    for size in QUICK if quick else SIZES:
        rows += measure_size(size, cost_contenders(size.steps), seed, device, turns, tell)
    return rows
