"""Kernels that a call launches on the GPU, and how often it makes the host wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..fields import Field, build
from ..markdown import number, table
from ..results import attempt
from . import contenders
from .floor import mean

# what CUDA's runtime and driver call them; a copy to the host waits through one of the synchronisations
_LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "GraphLaunch")
_SYNCS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "CtxSynchronize")


@dataclass(frozen=True)
class Launches:
    """Of one training step. steps: accepted ones of its forward solve, where the library says."""

    field: str
    label: str
    launches: int | None = None
    syncs: int | None = None
    steps: float | None = None
    note: str = ""


def count(events: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """Launches and host syncs among (name, how often)."""
    launches = syncs = 0
    for name, times in events:
        if name.startswith("cu"):
            launches += times * any(part in name for part in _LAUNCHES)
            syncs += times * any(part in name for part in _SYNCS)
    return launches, syncs


def profile(work: Callable[[], object]) -> tuple[int, int]:
    """The same of a call, which ends with a sync of its own that is not counted."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        work()
    launches, syncs = count((e.key, e.count) for e in seen.key_averages())
    return launches, max(0, syncs - 2)  # that of the call, and the profiler's


def measure(field: Field, seed: int, device: str) -> list[Launches]:
    """One row for each contender on PyTorch; the profiler does not see inside the others."""
    problem = build(field, seed, device)
    rows = []
    for contender in contenders.of(field):
        if contender.label.startswith(("diffrax", "SciPy")):
            continue
        row = Launches(field.name, contender.label)
        runs, note = attempt(lambda c=contender: c.start(problem))
        if runs is None or runs.train is None:
            rows.append(replace(row, note=note))
            continue
        train = runs.train
        done, note = attempt(train)  # compiles, warms up
        found, reason = attempt(lambda t=train: profile(t)) if done is not None else (None, "")
        steps = mean(done.stats["accepted"]) if done is not None and "accepted" in done.stats else None
        launches, syncs = found or (None, None)
        rows.append(replace(row, launches=launches, syncs=syncs, steps=steps, note=note or reason))
    return rows


def part(rows: Sequence[Launches]) -> str:
    """Markdown."""
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
    return f"## Launches and host syncs\n\n{how}\n\n{table(columns, lines)}"
