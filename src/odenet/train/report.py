"""The paper's table: printed, and written as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..nn.classifier import KINDS
from .files import write
from .measure import Cost
from .tasks import Settings

COLUMNS = (
    "net",
    "test error",
    "parameters",
    "block memory",
    "forward evaluations",
    "backward evaluations",
    "seconds a step",
)


@dataclass(frozen=True)
class Row:
    """One net of the table. test_error in per cent."""

    kind: str
    test_error: float
    cost: Cost

    def cells(self) -> tuple[str, ...]:
        c = self.cost
        return (
            KINDS[self.kind],
            f"{self.test_error:.2f} %",
            f"{c.parameters / 1e6:.2f} M" if c.parameters > 1e5 else f"{c.parameters / 1e3:.1f} k",
            f"{c.block_bytes / 2**20:.1f} MiB",
            str(c.nfe),
            str(c.backward_nfe),
            f"{c.seconds:.3f}",
        )


NOTE = (
    "Block memory: peak bytes of tensors alive during one forward and backward pass of the block, beyond its input and "
    "weights. Evaluations: of the field, or residual blocks; RK-Net keeps its graph, so its backward pass makes none."
)


def show(rows: list[Row], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=120).print(table)


def save(rows: list[Row], out: Path) -> list[Path]:
    """Write results.csv and results.json."""
    flat = [{"net": r.kind, "test_error_percent": r.test_error, **asdict(r.cost)} for r in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, list(flat[0]))
    table.writeheader()
    table.writerows(flat)
    write(out / "results.csv", text.getvalue())
    write(out / "results.json", json.dumps(flat, indent=2) + "\n")
    return [out / "results.csv", out / "results.json"]


def page(
    rows: list[Row],
    s: Settings,
    command: str,
    figures: list[Path],
    out: Path,
    epochs: dict[str, int],
    earlier: list[str],
) -> Path:
    """Write results.md: the command, its settings, the table and the figures.

    epochs: those that each net was trained for; earlier: the nets that an earlier command trained.
    """
    head = "| " + " | ".join(COLUMNS) + " |\n" + "|" + " --- |" * len(COLUMNS) + "\n"
    body = "".join("| " + " | ".join(row.cells()) + " |\n" for row in rows)
    how = (
        f"{_epochs(epochs, s.epochs)}, batch {s.batch_size}, {s.channels} channels, learning rate up to {s.lr:g}, "
        f"{s.method} at tolerance {s.rtol:g}, seed {s.seed}; PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads."
    )
    if earlier:
        how += f" {' and '.join(KINDS[kind] for kind in earlier)}: trained by an earlier command with these settings."
    images = "".join(f"\n![{f.stem.replace('_', ' ')}]({f.name})\n" for f in figures)
    write(out / "results.md", f"# {s.data}\n\n```\n{command}\n```\n\n{how}\n\n{head}{body}\n{NOTE}\n{images}")
    return out / "results.md"


def _epochs(run: dict[str, int], most: int) -> str:
    if all(n == most for n in run.values()):
        return f"{most} epochs"
    each = ", ".join(f"{KINDS[kind]} {n}" for kind, n in run.items())
    return f"at most {most} epochs, run until the validation error stopped falling ({each})"
