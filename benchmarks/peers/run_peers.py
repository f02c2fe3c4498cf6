"""Runs the benchmark `peers`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tqdm import tqdm

from ..libraries.contenders import by_label, contenders_on
from ..libraries.problems import Field, build, choose
from ..shared.tables import Settings
from . import first_step, peers_report
from .comparison import compare
from .peer_rows import EvaluationCost, Row
from .targets import targets

MEMORY_FIELDS = ("wide", "conv", "long")


def _with_processes(rows: list[Row], field: Field, settings: Settings) -> list[Row]:
    """Return the rows with what is measured in child processes. A smoke run measures one row of its first field."""
    jobs = [i for i, r in enumerate(rows) if r.train is not None]
    if settings.quick:
        jobs = jobs[:1] if field == choose(True, settings.only)[0] else []
    rows = list(rows)
    for i in tqdm(jobs, f"{field.name}, first steps and memory", disable=None):
        label = rows[i].label
        starts, growth, notes = {}, None, [rows[i].note]
        if settings.quick or (by_label(label).compiled and field.mlp):
            starts, note = first_step.measure_starts(field.name, label, settings)
            notes.append(note)
        if settings.quick or field.name in MEMORY_FIELDS:
            growth, note = first_step.measure_memory(field.name, label, settings)
            notes.append(note)
        rows[i] = replace(rows[i], **starts, memory=growth, note="; ".join(filter(None, notes)))
    return rows


def run(settings: Settings, name: str = "peers") -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of each file; the tables anew after every field."""
    yield f"{name}.json", settings.as_json()
    fields = choose(settings.quick, settings.only)
    rows: list[Row] = []
    costs: dict[str, EvaluationCost | None] = {}
    for i, field in enumerate(fields):
        problem = build(field, settings.seed, settings.device)
        found, costs[field.name] = compare(problem, contenders_on(field), 2 if settings.quick else 7)
        rows += _with_processes(found, field, settings)
        done = fields[: i + 1]
        yield f"{name}.csv", peers_report.numbers(rows, costs)
        yield f"{name}.md", peers_report.page(rows, done, costs, targets(rows, done), settings, name)
    yield f"{name}.png", peers_report.draw(rows, fields, costs)
