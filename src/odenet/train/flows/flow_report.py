"""The table at the end of a flow's training: the flow beside the baselines on the same rows, as files and in print."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write, write_csv
from ..user_error import UserError
from .baselines import NAMES, Rows, baselines, missing
from .density_data import DensityData
from .flow_model import log_prob

Row = dict[str, Any]
_PASSES = 80  # over the data, at most: flow matching takes more, of steps that cost less
_SINGULAR = 1e-10  # of the correlation matrix: what is left of a column, given the others, is 1e-5 of its deviation
_FLOWS = {"cnf": "continuous flow (CNF)", "matching": "continuous flow (flow matching)"}
# by the name in comparison.csv
_COLUMNS: dict[str, tuple[str, Any]] = {
    "model": ("model", str),
    "parameters": ("parameters", "{:,}".format),
    "test_nll": ("test nll (nats)", "{:.3f}".format),
    "standard_error": ("standard error", "{:.3f}".format),
    "bits_per_dim": ("bits/dim", "{:.3f}".format),
    "seconds": ("seconds of training", "{:.1f}".format),
}
_QUICK = "--quick: the numbers only show that it runs."
_NOTE = (
    "Negative log-likelihood of the test data, its mean and the standard error of that, in nats, in the units of the "
    "data: smaller is better."
)


def chosen(names: str) -> list[str]:
    """The baselines of --baselines: all, none, or names with commas between them."""
    if names in ("all", "none"):
        return list(NAMES) if names == "all" else []
    found = [name.strip() for name in names.split(",")]
    unknown = [name for name in found if name not in NAMES]
    if {"all", "none"} & set(unknown):
        raise UserError(f"--baselines {names}: all and none stand alone; else take some of {', '.join(NAMES)}")
    if unknown:
        raise UserError(f"--baselines {unknown[0]!r} is unknown. Known: all, none, {', '.join(NAMES)}")
    return found


def report(
    net: nn.Module,
    settings: Any,
    data: DensityData,
    val: Tensor,
    folder: Path,
    seconds: float | None,
) -> tuple[list[dict[str, str]], list[Path]]:
    """The table in words, and the files comparison.csv, .json and .md. val: z of validation, (N, D).

    seconds: of the flow's training; None where that is not known, as it was resumed.
    """
    names, z = chosen(settings.baselines), data.samples("test")
    if settings.quick:
        _say(_QUICK)
    parameters = sum(p.numel() for p in net.parameters())
    flow = _row(_FLOWS[settings.model], parameters, log_prob(net, z).double(), z, data, seconds)
    rows = [flow, *_of_baselines(names, settings, data, val, z)]
    rows += _truth(data, z)
    shown = {name: column for name, column in _COLUMNS.items() if name in flow}
    table = [
        {title: "" if row[name] is None else show(row[name]) for name, (title, show) in shown.items()} for row in rows
    ]
    return table, [
        write_csv(folder / "comparison.csv", rows),
        write(folder / "comparison.json", json.dumps(rows, indent=2) + "\n"),
        write(folder / "comparison.md", _page(table, settings)),
    ]


def _of_baselines(names: list[str], s: Any, data: DensityData, val: Tensor, z: Tensor) -> list[Row]:
    if line := missing(names, data.dim):
        _say(line)
    given = Rows(lambda epoch: data.samples("train", epoch), val, z, s.batch_size, min(s.epochs, _PASSES), s.seed)
    rows: list[Row] = []
    for made in baselines(names, given):
        _say(f"{NAMES[made.name]}: trained in {made.seconds:.1f} s")
        rows.append(_row(NAMES[made.name], made.parameters, made.log_prob, z, data, made.seconds))
    return rows


def _truth(data: DensityData, z: Tensor) -> list[Row]:
    """The density that the data are drawn from, where it is known: no model is better, in the mean."""
    if data.toy is None or data.toy.log_prob is None:
        return []
    true = data.toy.log_prob(data.in_data_units("test"))
    return [_row("the density itself", None, true - data.transform.log_det(z.double()), z, data, None)]


def _row(
    model: str, parameters: int | None, log_prob: Tensor, z: Tensor, data: DensityData, seconds: float | None
) -> Row:
    """log_prob: of z (N, D), (N,)."""
    nll, z = -data.nats(log_prob, z.double()), z.double()
    error = float(nll.std()) / math.sqrt(len(nll)) if len(nll) > 1 else None
    row: Row = {"model": model, "parameters": parameters, "test_nll": float(nll.mean()), "standard_error": error}
    if data.quanta.all():
        row["bits_per_dim"] = float(data.bits_per_dim(log_prob, z).mean())
    return {**row, "seconds": seconds}


def _page(table: list[dict[str, str]], s: Any) -> str:
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    how = (
        f"At most {s.epochs} epochs of batch {s.batch_size}, width {s.hidden}, {s.depth} hidden layers, seed {s.seed}; "
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads."
    )
    if s.quick:
        how += f" {_QUICK}"
    return f"# {Path(s.data).name}\n\n{how}\n\n{body}\n{_NOTE}\n"


def _say(line: str) -> None:
    print(f"odenet: {line}", file=sys.stderr)


def independent(data: DensityData, name: str) -> None:
    """Refuse rows whose columns depend on each other linearly, and fewer rows than columns: the density is unbounded.

    Raises:
        UserError: it names the columns.
    """
    z = data.transform.to_model(data.in_data_units("train"))
    if len(z) <= data.dim:
        raise UserError(
            f"{name} has {len(z)} rows to train on and {data.dim} columns: a density needs more rows than columns"
        )
    z = (z - z.mean(0)) / z.std(0, correction=0)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    if float(values[0]) < _SINGULAR:
        weights = vectors[:, 0].abs()
        which = [repr(c) for c, w in zip(data.columns, weights, strict=True) if w > 0.05 * weights.max()]
        listed = ", ".join(which[:6]) + (f" and {len(which) - 6} more" if len(which) > 6 else "")
        raise UserError(
            f"{name}: columns {listed} depend on each other linearly, so their density is unbounded: leave one out"
        )
