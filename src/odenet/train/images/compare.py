"""Train the Neural ODE paper's networks on the same images, measure them, print its table and draw its figures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import SolveError
from ...nn.classifier import KINDS
from ..files import locked, write, write_csv
from ..processes import first_process
from ..run import PATIENCE, Trained, train
from ..tasks.images import Images, ImageSettings
from ..trained import SETTINGS
from ..training_figure import training_figure, write_png
from ..user_error import UserError
from . import image_figures as figures
from .costs import cost
from .data import ImageData

# of the table, by the name in results.csv
COLUMNS: dict[str, tuple[str, Any]] = {
    "net": ("net", KINDS.__getitem__),
    "test_error_percent": ("test error", "{:.2f} %".format),
    "parameters": ("parameters", lambda n: f"{n / 1e6:.2f} M" if n > 1e5 else f"{n / 1e3:.1f} k"),
    "block_bytes": ("block memory", lambda n: f"{n / 2**20:.1f} MiB"),
    "nfe": ("forward evaluations", str),
    "backward_nfe": ("backward evaluations", str),
    "seconds": ("seconds a step", "{:.3f}".format),
}
NOTE = (
    "Block memory: peak bytes of tensors alive during one forward and backward pass of the block, beyond its input and "
    "weights. Evaluations: of the field, or residual blocks; RK-Net keeps its graph, so its backward pass makes none."
)
Row = dict[str, Any]
Compared = tuple[list[Row], list[Path]]  # the table as it is shown, and the files


def compare(s: ImageSettings, out: Path, resume: bool, processes: Mapping[str, Any], command: str) -> Compared:
    """Everything of `odenet compare`; of several processes only the first writes, and the others give nothing."""
    data = Images(s).images  # fails before a file is written if the data are wrong
    if not first_process():
        _train(s, out, resume, processes)
        return [], []
    with locked(out):
        record = {"task": "images", "settings": asdict(s), "info": None, "data": None}
        write(out / SETTINGS, json.dumps(record, indent=2) + "\n")
        return _measured(_train(s, out, resume, processes), data, s, out, command)


def _train(s: ImageSettings, out: Path, resume: bool, processes: Mapping[str, Any]) -> dict[str, Trained]:
    trained = {}
    for kind, label in KINDS.items():
        start = time.perf_counter()
        begun = resume and (out / kind / SETTINGS).exists()
        trained[kind] = train(Images(replace(s, net=kind)), "images", out / kind, begun, processes)
        took = "already" if trained[kind].already else f"in {time.perf_counter() - start:.0f} s"
        epochs = len(trained[kind].history)
        early = f"; stopped after {epochs} of {s.epochs} epochs, the last {PATIENCE} without a better validation error"
        if first_process():
            print(f"{label}: trained {took}{early if epochs < s.epochs else ''}", file=sys.stderr)
    return trained


def _measured(trained: dict[str, Trained], data: ImageData, s: ImageSettings, out: Path, command: str) -> Compared:
    """The table and the figures of the trained networks."""
    batch, repeats = min(s.batch_size, 32 if s.quick else 128), 2 if s.quick else 5
    nets: dict[str, Any] = {kind: each.net for kind, each in trained.items()}
    try:
        rows: list[Row] = [
            {"net": kind, "test_error_percent": each.test["test_error"]} | cost(nets[kind], data, s.batch_size, repeats)
            for kind, each in trained.items()
        ]
        drawn = {
            "training": training_figure({KINDS[k]: each.history for k, each in trained.items()}, Images.MONITOR),
            "memory": figures.memory(nets["odenet"], data, s.channels, batch, s.quick),
            "trade_off": figures.trade_off(nets["odenet"], data, min(batch, 32), s.method, s.quick),
            **figures.trajectories(nets["odenet"], data),
        }
    except SolveError as error:
        raise UserError(
            f"the nets are trained, but a solve to measure them failed: {error} Try another --method"
        ) from None
    table = [{title: show(row[name]) for name, (title, show) in COLUMNS.items()} for row in rows]
    pictures = [write_png(figure, out / f"{name}.png") for name, figure in drawn.items()]
    return table, [
        *(path for each in trained.values() for path in each.files),
        write_csv(out / "results.csv", rows),
        write(out / "results.json", json.dumps(rows, indent=2) + "\n"),
        write(out / "results.md", _page(table, s, command, pictures, [len(each.history) for each in trained.values()])),
        *pictures,
    ]


def _page(table: list[Row], s: ImageSettings, command: str, pictures: list[Path], epochs: list[int]) -> str:
    """results.md: the command, its settings, the table and the figures."""
    how = (
        f"{', '.join(map(str, epochs))} of at most {s.epochs} epochs, batch {s.batch_size}, {s.channels} channels, "
        f"learning rate up to {s.lr:g}, {s.method} at tolerance {s.tolerance:g}, seed {s.seed}; "
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads."
    )
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    images = "".join(f"\n![{path.stem.replace('_', ' ')}]({path.name})\n" for path in pictures)
    return f"# {Path(s.data).name}\n\n```\n{command}\n```\n\n{how}\n\n{body}\n{NOTE}\n{images}"
