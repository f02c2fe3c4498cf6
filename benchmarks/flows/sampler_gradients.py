"""Gradients through a sampler: memory, time, and what they are for.

D-Flow (Ben-Hamu et al. 2024, "D-Flow: differentiating through flows for controlled generation") moves the noise x0
until the sample has a low loss, which takes d loss / d x0 through all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import odenet

from ..shared.errors import NotApplicableError
from ..shared.peak_memory import GLIBC, RETURN_FREED_MEMORY, limit_memory, memory_growth
from ..shared.plots import png
from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import MIB, Settings, csv_text, markdown_table, number, page_head
from ..shared.timing import interleave
from .sampler_quality import rows_of, trained

GRADIENTS: dict[str, Callable[[], Any]] = {
    "discrete": lambda: "discrete",
    "discrete, checkpoints=8": lambda: odenet.Discrete(checkpoints=8),
    "reversible": lambda: "reversible",
    "adjoint": lambda: "adjoint",
    "backprop": lambda: "backprop",
}
METHOD, STEPS = "midpoint", (20, 80, 320)
BATCH, DIM, HIDDEN, TURNS = 128, 64, (512, 512, 512), 5
GUIDED_STEPS, GUIDED_ITERATIONS, TARGETS = 20, 20, 8
COLUMNS = ("part", "gradient", "steps", "quantity", "value", "note")


@dataclass(frozen=True)
class Cost:
    """Growth of the peak memory in bytes, seconds of each turn, and the relative difference from backprop."""

    gradient: str
    steps: int
    growth: int | None = None
    seconds: Sequence[float] = ()
    difference: float | None = None
    note: str = ""


def gradient_to_noise(label: str, steps: int, quick: bool) -> Callable[[], Tensor]:
    """A function that samples and returns the gradient of the mean square to x0."""
    torch.manual_seed(0)
    batch, hidden = (4, (8,)) if quick else (BATCH, HIDDEN)
    flow = odenet.nn.FlowMatching(odenet.nn.MLPField(DIM, hidden, "silu"))
    for p in flow.parameters():
        p.requires_grad_(False)  # D-Flow moves the noise alone
    x0 = torch.randn(batch, DIM, requires_grad=True)

    def work() -> Tensor:
        y = flow.rsample(x0=x0, method=METHOD, steps=steps, gradient=GRADIENTS[label]())
        return torch.autograd.grad(y.square().mean(), x0)[0]

    return work


def growth_here(label: str, steps: int, quick: bool) -> int:
    """The growth of the peak memory by one gradient, after a small one that loads libraries."""
    torch.set_num_threads(1)
    limit_memory("cpu")
    gradient_to_noise(label, 2, quick)()
    try:
        return memory_growth(gradient_to_noise(label, steps, quick))
    except RuntimeError as error:
        if "memory" in str(error) and "alloc" in str(error):
            raise NotApplicableError("needs more memory than it may take") from None
        raise


def times(steps: int, quick: bool) -> dict[str, Any]:
    """Seconds of each gradient, turn by turn, and its difference from backprop."""
    calls = {label: gradient_to_noise(label, steps, quick) for label in GRADIENTS}
    seconds = interleave(calls, 2 if quick else TURNS, longest=120.0)
    exact = calls["backprop"]()
    differences = {label: float((call() - exact).norm() / exact.norm()) for label, call in calls.items()}
    return {"seconds": seconds, "differences": differences}


def measure_costs(quick: bool) -> list[Cost]:
    rows: list[Cost] = []
    env = RETURN_FREED_MEMORY if GLIBC else None
    for steps in (3,) if quick else STEPS:
        timed, note = call_in_subprocess(times, steps, quick)
        timed = timed or {"seconds": {}, "differences": {}}
        for label in tqdm(list(GRADIENTS)[: 1 if quick else None], f"memory, {steps} steps", disable=None):
            growth, problem = call_in_subprocess(growth_here, label, steps, quick, env=env)
            seconds, difference = timed["seconds"].get(label, ()), timed["differences"].get(label)
            rows.append(Cost(label, steps, growth, seconds, difference, problem or note))
    return rows


def guided(quick: bool) -> dict[str, Any]:
    """Digits whose upper halves are given: the noise is moved by L-BFGS until the samples have them.

    Returns the root mean squared error of the given half for independent noise, for the noise that begins, and for
    the noise found, the error of the other half, and the images.
    """
    iterations, batch, count = (5, 16, 4) if quick else (8_000, 256, 500)
    flow = trained("digits", "cond_ot", 0, iterations, batch, count)[0].float().requires_grad_(False)
    targets = rows_of("digits", 0, count)[1][: 2 if quick else TARGETS]
    given = slice(0, targets.shape[1] // 2)

    def sample(noise: Tensor) -> Tensor:
        checkpointed = odenet.Discrete(checkpoints=4)
        return flow.rsample(x0=noise, method=METHOD, steps=GUIDED_STEPS, gradient=checkpointed)

    def errors(x: Tensor, part: slice) -> list[float]:
        return (x[:, part] - targets[:, part]).square().mean(1).sqrt().tolist()

    # as in D-Flow: begin where the target flows back to, mixed with noise
    torch.manual_seed(1)
    with torch.no_grad():
        half = targets.clone()
        half[:, given.stop :] = -1.0
        back = flow.cnf(rtol=1e-4, atol=1e-4).to_base(half)[0]
        start = 0.5**0.5 * (back + torch.randn_like(back))
        before = sample(start)
    found = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=2 if quick else GUIDED_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (sample(found)[:, given] - targets[:, given]).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        after = sample(found)
    other = slice(given.stop, None)
    return {
        "before": errors(before, given),
        "after": errors(after, given),
        "other half before": errors(before, other),
        "other half after": errors(after, other),
        "images": [x.clamp(-1, 1).round(decimals=3).tolist() for x in (targets, before, after)],
    }


def page(rows: Sequence[Cost], guide: dict[str, Any] | None, note: str, settings: Settings) -> str:
    head = page_head("Gradients through a sampler", settings, "flows_sampler_gradients.png", "digits, given and found")
    how = (
        f"d loss / d x0 through `FlowMatching.rsample(method='{METHOD}', steps=N)`, MLP {DIM}-{HIDDEN[0]} x "
        f"{len(HIDDEN)}-{DIM}, batch {BATCH}, weights fixed. Memory: growth of the peak of a process by one gradient, "
        "in MiB, freed memory given back at once, one thread; a batch of states is "
        f"{BATCH * DIM * 4 / MIB:.2f} MiB. Time: median (range) in ms, in turns. Difference: from backprop, relative."
    )
    sections = [head, f"## Cost\n\n{how}\n"]
    for steps in dict.fromkeys(r.steps for r in rows):
        lines = []
        for r in (r for r in rows if r.steps == steps):
            ms = [v * 1e3 for v in r.seconds]
            time = f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})" if ms else "-"
            memory = number(None if r.growth is None else r.growth / MIB, ".1f")
            lines.append([r.gradient, memory, time, number(r.difference, ".0e"), r.note])
        columns = ["gradient", "memory, MiB", "time, ms", "difference", "note"]
        sections.append(f"### {steps} steps\n\n{markdown_table(columns, lines)}")
    text = (
        f"D-Flow on digits: {TARGETS} held-out digits of which the upper half is given. One L-BFGS run of at most "
        f"{GUIDED_ITERATIONS} iterations moves the noise through {GUIDED_STEPS} steps, from a mixture of noise and of "
        "where the half, its rest empty, flows back to. Root mean squared error of pixels in [-1, 1]: median (range)."
    )
    lines = [] if guide is None else [[k, _middle(v)] for k, v in guide.items() if k != "images"]
    sections.append(f"## Use\n\n{text}\n\n{markdown_table(['quantity', 'error'], lines)}")
    if note:
        sections.append(note)
    return "\n".join(sections)


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def numbers(rows: Sequence[Cost], guide: dict[str, Any] | None) -> str:
    lines: list[list[Any]] = []
    for r in rows:
        lines.append(["cost", r.gradient, r.steps, "growth, bytes", r.growth, r.note])
        lines += [["cost", r.gradient, r.steps, "seconds", s, r.note] for s in r.seconds]
        lines.append(["cost", r.gradient, r.steps, "difference", r.difference, r.note])
    for quantity, values in (guide or {}).items():
        if quantity != "images":
            lines += [["use", "discrete", GUIDED_STEPS, quantity, v, ""] for v in values]
    return csv_text(COLUMNS, lines)


def draw(images: Sequence[Sequence[Sequence[float]]]) -> bytes:
    """Return the figure: targets, samples of the first noise, samples of the noise found."""
    figure = Figure(figsize=(1.1 * len(images[0]), 3.6), layout="constrained")
    panels = figure.subplots(3, len(images[0]), squeeze=False)
    for row, those, title in zip(panels, images, ("digit", "before", "after"), strict=True):
        for axes, pixels in zip(row, those, strict=True):
            axes.imshow(torch.tensor(pixels).view(8, 8).numpy(), cmap="Greys", vmin=-1, vmax=1)
            axes.axhline(3.5, color="C1", lw=0.8)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(title)
    return png(figure)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    guide, note = call_in_subprocess(guided, settings.quick)
    rows = measure_costs(settings.quick)
    files: list[tuple[str, str | bytes]] = [
        ("flows_sampler_gradients.csv", numbers(rows, guide)),
        ("flows_sampler_gradients.md", page(rows, guide, note, settings)),
    ]
    if guide is not None:
        files.append(("flows_sampler_gradients.png", draw(guide["images"])))
    return files
