"""Markdown tables, page heads and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .machine import describe_machine

NONE = "-"
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Settings of a run: the seed of weights and states, the device, and the command that repeats it.

    quick: small problems and few repetitions, whose numbers mean nothing. only: the fields of peers to measure; empty
    for all. data_dir: the folder of data that no package brings.
    """

    command: str
    seed: int = 0
    device: str = "cpu"
    quick: bool = False
    only: tuple[str, ...] = ()
    data_dir: str = ""

    def as_json(self) -> str:
        """Return the settings and the machine as JSON."""
        return json.dumps(asdict(self) | {"machine": describe_machine(self.device)}, indent=2) + "\n"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # a pipe in a note would end its cell
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def target_met(value: float | None, target: float | None) -> str:
    """Return "yes" for a value that is at most its target."""
    if target is None:
        return ""
    return NONE if value is None else "yes" if value <= target else "no"


def page_head(title: str, settings: Settings, figure: str = "", caption: str = "") -> str:
    """Return the title, the command, the machine and the figure of a page."""
    facts = ", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in describe_machine(settings.device).items())
    smoke = "A smoke run (--quick): too small and too short for its numbers to mean anything.\n\n" * settings.quick
    image = f"\n![{caption}]({figure})\n" if figure else ""
    return f"# {title}\n\n```\n{settings.command}\n```\n\n{smoke}{facts}.\n{image}"


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
