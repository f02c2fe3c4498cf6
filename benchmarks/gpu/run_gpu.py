"""Runs the benchmark `gpu`: peers on a GPU, then kernel launches and synchronisations of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..libraries.contenders import contenders_on
from ..libraries.problems import Field, build, choose
from ..peers import run_peers
from ..peers.peer_rows import mean_count
from ..shared.errors import value_or_error
from ..shared.tables import Settings, markdown_table, number

# names in CUDA's runtime and driver; a copy to the host waits in one of the synchronisations
_LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "GraphLaunch")
_SYNCS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "CtxSynchronize")


@dataclass(frozen=True)
class Launches:
    """Counts of one training step. steps: the accepted ones of its forward solve; None where they are not counted."""

    field: str
    label: str
    launches: int | None = None
    syncs: int | None = None
    steps: float | None = None
    note: str = ""


def count(events: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """Return launches and synchronisations among events, (name, number of times)."""
    launches = syncs = 0
    for name, times in events:
        if name.startswith("cu"):
            launches += times * any(part in name for part in _LAUNCHES)
            syncs += times * any(part in name for part in _SYNCS)
    return launches, syncs


def profile(work: Callable[[], object]) -> tuple[int, int]:
    """Return launches and synchronisations of a call, without the synchronisation at its end."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    launches, syncs = count((e.key, e.count) for e in profiler.key_averages())
    return launches, max(0, syncs - 2)  # that of the call, and the profiler's


def measure(field: Field, seed: int) -> list[Launches]:
    """Return a row for each contender on PyTorch; the profiler does not see inside the others."""
    problem, rows = build(field, seed, "cuda"), []
    for contender in contenders_on(field):
        if contender.label.startswith(("diffrax", "SciPy")):
            continue
        row = Launches(field.name, contender.label)
        solver, note = value_or_error(lambda c=contender: c.start(problem))
        train = solver.train if solver else None
        if train is not None:
            output, note = value_or_error(train)  # compiles, warms up
            if output is not None:
                counts, note = value_or_error(lambda t=train: profile(t))
                launches, syncs = counts or (None, None)
                steps = mean_count(output.stats["accepted"]) if "accepted" in output.stats else None
                row = replace(row, launches=launches, syncs=syncs, steps=steps)
        rows.append(replace(row, note=note))
    return rows


def section(rows: Sequence[Launches]) -> str:
    """Return the Markdown section."""
    how = (
        "One training step under torch.profiler, after one that compiled what there is to compile: kernels and graphs "
        "launched, and calls in which the host waits for the GPU, without the last. Per step: of an accepted one."
    )
    lines = []
    for r in rows:
        each = [None if n is None or not r.steps else n / r.steps for n in (r.launches, r.syncs)]
        cells = [number(r.launches, "d"), number(r.syncs, "d"), number(r.steps, ".0f")]
        lines.append([r.field, r.label, *cells, *(number(x, ".1f") for x in each), r.note])
    columns = ["field", "contender", "launches", "host syncs", "steps", "launches a step", "syncs a step", "note"]
    return f"## Launches and host syncs\n\n{how}\n\n{markdown_table(columns, lines)}"


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file."""
    text = ""
    for name, content in run_peers.run(settings, "gpu"):
        yield name, content
        text = str(content) if name == "gpu.md" else text
    fields = choose(settings.quick, settings.only)
    rows = [row for field in fields for row in measure(field, settings.seed)]
    yield "gpu.md", f"{text}\n{section(rows)}"
