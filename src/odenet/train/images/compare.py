"""Train the Neural ODE paper's networks on the same images, measure them, print its table and draw its figures."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...errors import SolveError
from ...nn import Classifier
from ...nn.classifier import KINDS
from .. import figures as generic
from ..errors import UserError
from ..files import locked, write
from ..processes import Processes, first_process
from ..run import PATIENCE, Trained, train
from ..tasks.images import Images, ImageSettings
from ..trained import SETTINGS
from . import figures
from .cost import Cost, cost

COLUMNS = (
    "net",
    "test error",
    "parameters",
    "block memory",
    "forward evaluations",
    "backward evaluations",
    "seconds a step",
)
NOTE = (
    "Block memory: peak bytes of tensors alive during one forward and backward pass of the block, beyond its input and "
    "weights. Evaluations: of the field, or residual blocks; RK-Net keeps its graph, so its backward pass makes none."
)


@dataclass(frozen=True)
class Row:
    """One network of the table. test_error in per cent."""

    net: str
    test_error: float
    cost: Cost

    def cells(self) -> tuple[str, ...]:
        c = self.cost
        return (
            KINDS[self.net],
            f"{self.test_error:.2f} %",
            f"{c.parameters / 1e6:.2f} M" if c.parameters > 1e5 else f"{c.parameters / 1e3:.1f} k",
            f"{c.block_bytes / 2**20:.1f} MiB",
            str(c.nfe),
            str(c.backward_nfe),
            f"{c.seconds:.3f}",
        )


def compare(s: ImageSettings, out: Path, resume: bool, processes: Processes, command: str) -> list[Path]:
    """Everything of `odenet compare`; gives the files that it wrote. Of several processes only the first writes."""
    if not first_process():
        _train(s, out, resume, processes)
        return []
    with locked(out):
        if not resume and (out / SETTINGS).exists():
            raise UserError(f"--out {out} holds a run already: add --resume to go on with it, or choose another --out")
        own = {"task": "images", "settings": s.as_dict(), "info": None, "data": None}
        write(out / SETTINGS, json.dumps(own, indent=2) + "\n")
        trained = _train(s, out, resume, processes)
        return _measured(trained, s, out, command)


def _train(s: ImageSettings, out: Path, resume: bool, processes: Processes) -> dict[str, Trained]:
    trained = {}
    for kind, label in KINDS.items():
        start = time.perf_counter()
        begun = resume and (out / kind / SETTINGS).exists()
        trained[kind] = train(Images(replace(s, net=kind)), "images", out / kind, begun, processes)
        took = "already" if trained[kind].resumed else f"in {time.perf_counter() - start:.0f} s"
        epochs = len(trained[kind].history)
        early = f"; stopped after {epochs} of {s.epochs} epochs, the last {PATIENCE} without a better validation error"
        if first_process():
            print(f"{label}: trained {took}{early if epochs < s.epochs else ''}", file=sys.stderr)
    return trained


def _measured(trained: dict[str, Trained], s: ImageSettings, out: Path, command: str) -> list[Path]:
    """The table and the figures of the trained networks."""
    data = Images(s).images
    nets: dict[str, Any] = {kind: each.net for kind, each in trained.items()}
    batch = min(s.batch_size, 32 if s.quick else 128)
    try:
        repeats = 2 if s.quick else 5
        rows = [Row(k, trained[k].test["test_error"], cost(net, data, s.batch_size, repeats)) for k, net in nets.items()]
        odenet: Classifier = nets["odenet"]
        drawn = {
            "training": generic.training({KINDS[k]: each.history for k, each in trained.items()}, Images.MONITOR),
            "memory": figures.memory(odenet, data, s.channels, batch, s.quick),
            "trade_off": figures.trade_off(odenet, data, min(batch, 32), s.method, s.quick),
            **figures.trajectories(odenet, data),
        }
    except SolveError as error:
        raise UserError(
            f"the nets are trained, but a solve to measure them failed: {error} Try another --tolerance or --method, "
            "with another --out"
        ) from None
    _show(rows, f"{Path(s.data).name}: {len(data.splits['test'][1])} test images")
    pictures = [generic.write_png(figure, out / f"{name}.png") for name, figure in drawn.items()]
    flat = [{"net": row.net, "test_error_percent": row.test_error, **asdict(row.cost)} for row in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, list(flat[0]))
    table.writeheader()
    table.writerows(flat)
    written = [path for each in trained.values() for path in each.files]
    return [
        *written,
        write(out / "results.csv", text.getvalue()),
        write(out / "results.json", json.dumps(flat, indent=2) + "\n"),
        write(out / "results.md", _page(rows, s, command, pictures, trained)),
        *pictures,
    ]


def _show(rows: list[Row], title: str) -> None:
    table = Table(title=title)
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=120).print(table)


def _page(rows: list[Row], s: ImageSettings, command: str, pictures: list[Path], trained: dict[str, Trained]) -> str:
    """results.md: the command, its settings, the table and the figures."""
    run = {KINDS[kind]: len(each.history) for kind, each in trained.items()}
    epochs = f"{s.epochs} epochs"
    if any(n < s.epochs for n in run.values()):
        each = ", ".join(f"{label} {n}" for label, n in run.items())
        epochs = f"at most {s.epochs} epochs, run until the validation error stopped falling ({each})"
    how = (
        f"{epochs}, batch {s.batch_size}, {s.channels} channels, learning rate up to {s.lr:g}, {s.method} at tolerance "
        f"{s.tolerance:g}, seed {s.seed}; PyTorch {torch.__version__}, {torch.get_num_threads()} threads."
    )
    head = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"
    body = "".join(f"| {' | '.join(row.cells())} |\n" for row in rows)
    images = "".join(f"\n![{path.stem.replace('_', ' ')}]({path.name})\n" for path in pictures)
    return f"# {Path(s.data).name}\n\n```\n{command}\n```\n\n{how}\n\n{head}{body}\n{NOTE}\n{images}"
