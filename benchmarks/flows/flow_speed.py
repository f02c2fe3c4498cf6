"""Speed of training: a step of a continuous flow, a step with a coupling, and the time to a likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

import odenet
from odenet.train.flows.toy_densities import toy_density

from ..shared.errors import value_or_error
from ..shared.measured_rows import COLUMNS, Row, milliseconds, note_lines, ratio_line, values
from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import NONE, Settings, csv_text, markdown_table, page_head
from ..shared.timing import interleave
from . import likelihood_race
from .coupling_quality import VelocityNet
from .flow_contenders import COMPILED, CONTENDERS, Step

# seed and scale of the weights: the larger, the more steps
FIELDS = ((0, 1.0), (1, 1.5), (2, 2.0), (3, 2.5), (4, 3.0), (5, 4.0))
TOLERANCE, BATCH, HIDDEN, TURNS = 1e-6, 512, 64, 7
BATCHES, DIMS = (64, 256, 1024), (2, 64)
OURS, THEIRS = "odenet FlowMatching", "torchcfm ExactOptimalTransport"


def _fill(field: nn.Module, seed: int, scale: float) -> None:
    """Draw the weights anew, in place: no contender compiles again."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in field.parameters():
            bound = scale * (p.shape[-1] if p.ndim == 2 else HIDDEN) ** -0.5
            p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound)


def step_times(quick: bool) -> list[Row]:
    """Seconds of a step of every contender on every field, and of its first step, which compiles."""
    batch, fields, turns = (16, FIELDS[:1], 2) if quick else (BATCH, FIELDS, TURNS)
    field = odenet.nn.MLPField(2, (8, 8) if quick else (HIDDEN, HIDDEN))
    x = torch.randn(batch, 2, generator=torch.Generator().manual_seed(0))
    _fill(field, *fields[0])
    rows: list[Row] = []
    steps: dict[str, Step] = {}
    for label, start in CONTENDERS.items():
        if quick and "compiled" in label:
            continue
        begin = time.perf_counter()
        step, note = value_or_error(lambda start=start: _started(start, field, x))
        rows.append(("step", "first", label, "seconds", time.perf_counter() - begin if step else None, note))
        if step is not None:
            steps[label] = step
    for seed, scale in fields:
        _fill(field, seed, scale)
        case = f"weights {seed}, scale {scale:g}"
        seconds = interleave(steps, turns, longest=60.0)
        exact = next(iter(steps.values()))()()
        for label, those in seconds.items():
            gradient = steps[label]()()
            error = max(float((a - b).norm() / b.norm()) for a, b in zip(gradient, exact, strict=True))
            rows += [("step", case, label, "seconds", s, "") for s in those]
            rows.append(("step", case, label, "difference of the gradient", error, ""))
    return rows


def _started(start: Callable[..., Step], *args: Any) -> Step:
    step = start(*args, TOLERANCE)
    step()
    return step


def coupling_times(quick: bool) -> list[Row]:
    """Seconds of a training step with exact optimal transport: network, Adam and data are the same."""
    rows: list[Row] = []
    for dim in DIMS[:1] if quick else DIMS:
        for batch in BATCHES[:1] if quick else BATCHES:
            steps, notes = {}, {}
            for label, start in ((OURS, _odenet_coupling), (THEIRS, _torchcfm_coupling)):
                steps[label], notes[label] = value_or_error(lambda s=start, a=(dim, batch): s(*a))
            seconds = interleave({k: s for k, s in steps.items() if s}, 2 if quick else TURNS, longest=60.0)
            for label, note in notes.items():
                case = f"{dim}-D, batch {batch}"
                rows += [("coupling", case, label, "seconds", s, note) for s in seconds.get(label, [None])]
    return rows


def _coupling_step(dim: int, batch: int, loss: Callable[[Any, Any, Any], Any]) -> Callable[[], object]:
    torch.manual_seed(0)
    net, generator = VelocityNet(dim), torch.Generator().manual_seed(0)
    optimizer, toy = torch.optim.Adam(net.parameters()), toy_density("8gaussians", "otcfm")

    def step() -> float:
        x1 = toy.sample(batch, generator) if dim == 2 else 1 + torch.rand(batch, dim, generator=generator)
        x0 = torch.randn(batch, dim, generator=generator)
        optimizer.zero_grad()
        value = loss(net, x0, x1)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def _odenet_coupling(dim: int, batch: int) -> Callable[[], object]:
    kept: list[odenet.nn.FlowMatching] = []

    def loss(net: Any, x0: Any, x1: Any) -> Any:
        if not kept:
            kept.append(odenet.nn.FlowMatching(net, coupling="ot"))
        return kept[0].loss(x1, x0)

    return _coupling_step(dim, batch, loss)


def _torchcfm_coupling(dim: int, batch: int) -> Callable[[], object]:
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def loss(net: Any, x0: Any, x1: Any) -> Any:
        t, x, u = matcher.sample_location_and_conditional_flow(x0, x1)
        return (net(t, x) - u).square().mean()

    return _coupling_step(dim, batch, loss)


def measure(quick: bool) -> list[Row]:
    """Each part has a process of its own, one after the other: times need the machine for themselves."""
    rows: list[Row] = []
    for part, function in (("step", step_times), ("coupling", coupling_times), ("race", likelihood_race.race)):
        found, note = call_in_subprocess(function, quick)
        rows += [tuple(row) for row in found] if found else [(part, "-", "-", "-", None, note)]
    return rows


def _comparison(rows: Sequence[Row], part: str, base: str) -> str:
    """A table of times, and one of the ratios of medians to `base`."""
    mine = [r for r in rows if r[0] == part]
    cases = [c for c in dict.fromkeys(r[1] for r in mine) if c != "first"]
    labels = list(dict.fromkeys(r[2] for r in mine))
    times = [[x, *(milliseconds(values(mine, part, c, x, "seconds")) for c in cases)] for x in labels]
    ratios = []
    for label in labels:
        pairs = [[values(mine, part, c, x, "seconds") for x in (label, base)] for c in cases]
        ratios.append([label, *ratio_line([median(a) / median(b) for a, b in pairs if a and b])])
    head = ["time over that of " + base, "least", "median", "largest", "geometric mean"]
    return f"{markdown_table(['contender', *cases], times)}\n{markdown_table(head, ratios)}"


def _first_steps(rows: Sequence[Row]) -> str:
    lines = []
    for _, _, label, _, seconds, note in (r for r in rows if r[:2] == ("step", "first")):
        errors = [r[4] for r in rows if r[2:4] == (label, "difference of the gradient") and r[4] is not None]
        error = f"{max(errors):.0e}" if errors else NONE
        lines.append([label, NONE if seconds is None else f"{seconds:.2f}", error, note])
    return markdown_table(["contender", "first step, s", "largest difference of the gradient", "note"], lines)


def page(rows: Sequence[Row], settings: Settings) -> str:
    step = (
        f"MLP 2-{HIDDEN}-{HIDDEN}-2 (tanh, time as an input), exact trace, batch {BATCH}, rtol = atol = {TOLERANCE:g}, "
        "dopri5 where not said. ms, median (range) of turns that the contenders take one after the other; loss and "
        "gradient, no optimiser. The weights of PyTorch's default, times a scale. The first step compiles; it is not "
        f"in the times. Difference: of the gradient, from that of {COMPILED}, relative, the worst weight of all fields."
    )
    coupling = (
        "Loss, gradient and Adam, MLP with three hidden layers of 64 (SELU); x0 is drawn for both. ms, as above. "
        "torchcfm draws pairs from the plan with replacement, odenet takes its permutation."
    )
    steps = f"{_comparison(rows, 'step', COMPILED)}\n{_first_steps(rows)}"
    sections = [
        page_head("Speed of flows", settings),
        f"## A training step of a continuous flow\n\n{step}\n\n{steps}",
        f"## A training step with optimal transport\n\n{coupling}\n\n{_comparison(rows, 'coupling', OURS)}",
        likelihood_race.section([r for r in rows if r[0] == "race"]),
    ]
    return "\n".join([*sections, *note_lines(rows)]) + "\n"


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    rows = measure(settings.quick)
    return [("flows_speed.csv", csv_text(COLUMNS, rows)), ("flows_speed.md", page(rows, settings))]
