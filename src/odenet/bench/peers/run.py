"""`odenet bench peers`: every field, every contender, and the work-precision diagram."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from .. import machine
from ..fields import Field, choose
from ..precision import run as precision
from ..results import Tell
from . import child, contenders, figure, measure, table
from .floor import Floor
from .rows import Row
from .targets import targets

WEIGHED = ("wide", "conv", "long")  # fields on which memory is measured
PRECISION = "work_precision"  # beside the fields' names, in `only`


@dataclass(frozen=True)
class Settings:
    """seed: of weights and states. device: cpu or cuda. quick: a smoke run whose numbers say nothing.

    only: names of fields, or "work_precision"; all where it is empty. name: of the files.
    """

    seed: int
    device: str
    quick: bool
    command: str
    only: tuple[str, ...] = ()
    name: str = "peers"


def _apart(rows: list[Row], field: Field, s: Settings, tell: Tell) -> list[Row]:
    """The rows with what is measured in processes of their own. A smoke run: once, on its first field."""
    jobs = [i for i, r in enumerate(rows) if r.train is not None]
    if s.quick:
        jobs = jobs[:1] if field == choose(True, s.only)[0] else []
    rows = list(rows)
    for done, i in enumerate(jobs):
        tell(f"{field.name}, starts and memory", done, len(jobs))
        contender = contenders.by_label(rows[i].label)
        starts, note = {}, ""
        if s.quick or (contender.compiled and field.mlp):
            starts, note = child.cold(field, contender, s.seed, s.device, s.quick)
        grown, reason = None, ""
        if s.quick or field.name in WEIGHED:
            grown, reason = child.memory(field, contender, s.seed, s.device, s.quick)
        notes = "; ".join(n for n in (rows[i].note, note, reason) if n)
        rows[i] = replace(rows[i], **starts, memory=grown, note=notes)
    if jobs:
        tell(f"{field.name}, starts and memory", 1, 1)
    return rows


def run(s: Settings, tell: Tell) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and give each file's name and content; the tables anew after every field, so that a long run shows."""
    facts = machine.describe(s.device)
    yield f"{s.name}.json", json.dumps(asdict(s) | {"machine": facts}, indent=2) + "\n"
    fields = choose(s.quick, s.only)
    rows: list[Row] = []
    floors: dict[str, Floor | None] = {}
    for i, field in enumerate(fields):
        found, floors[field.name] = measure.measure(field, s.seed, s.device, 2 if s.quick else 7, tell)
        rows += _apart(found, field, s, tell)
        done = fields[: i + 1]
        ratios = targets(rows, done)
        yield f"{s.name}.csv", table.numbers(rows, floors)
        yield (
            f"{s.name}.md",
            table.page(rows, done, floors, ratios, facts, s.command, s.quick, f"{s.name}.png", _title(s)),
        )
    if fields:
        yield f"{s.name}.png", figure.draw(rows, fields, floors)
    if s.name == "peers" and (not s.only or PRECISION in s.only):
        yield from precision.run(s.command, s.quick, facts, tell)


def _title(s: Settings) -> str:
    return "Side by side on a GPU" if s.device == "cuda" else "Side by side"
