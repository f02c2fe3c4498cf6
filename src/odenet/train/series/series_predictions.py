"""The rows of `odenet predict` for a run of series."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...series import Series
from ..user_error import UserError, first_line
from .archive import ts_file
from .predictors import ClassPredictor, ValuePredictor
from .series_table import layout_from, read_series

_BATCH = 256


@torch.no_grad()
def predict_files(
    net: nn.Module, info: Mapping[str, Any], files: Sequence[Path], times: Tensor | None
) -> list[dict[str, Any]]:
    """Rows by file and series; those of values by time too. times: (Q,) in float64, or None: those of its rows."""
    timed = isinstance(net, ValuePredictor)
    if times is not None and not timed:
        raise UserError("--times is for runs that interpolate or forecast: leave it out")
    rows: list[dict[str, Any]] = []
    device = next(net.parameters()).device
    for file in files:
        series = _read(file, info)
        names = list(series.ids or range(len(series)))
        if empty := [name for name, some in zip(names, series.mask.any(2).any(1).tolist(), strict=True) if not some]:
            _say(f"{file}: {len(empty)} series without any value, such as {empty[0]!r}: what is said of it is a guess")
        ts = series.t if times is None else times.expand(len(series), -1)
        counts = series.length if times is None else torch.full_like(series.length, len(times))
        if timed:
            _warn_beyond(file, info, series, torch.where(torch.arange(ts.shape[1]) < counts[:, None], ts, -math.inf))
        for start in range(0, len(series), _BATCH):
            chosen = slice(start, start + _BATCH)
            part = _narrowed(file, series[chosen].trimmed()).to(device)
            keys = [{"file": str(file), "id": name} for name in names[chosen]]
            if timed:
                asked = ts[chosen, : int(counts[chosen].max())]
                rows += _value_rows(net, info, part, keys, asked, counts[chosen])
            else:
                rows += _label_rows(net, info, part, keys)
    return rows


def _read(file: Path, info: Mapping[str, Any]) -> Series:
    """The series of a file that has the channels of the run, in float64: predictions keep the file's times."""
    if file.is_dir():
        raise UserError(f"{file} is a folder: give a file .csv, .parquet or .ts")
    if file.suffix.lower() == ".ts":
        series = ts_file(file, torch.float64).series
    else:
        series = read_series(file, layout_from(info["layout"], info["channels"]), torch.float64, trained=True).series
    if series.num_channels != len(info["channels"]):
        raise UserError(
            f"{file} has {series.num_channels} channels, and the run was trained on {len(info['channels'])}"
        )
    given, wanted = 0 if series.static is None else series.static.shape[1], len(info["scales"]["static_mean"])
    if given != wanted:
        raise UserError(f"{file} has {given} static features, and the run was trained on {wanted}")
    return series


def _warn_beyond(file: Path, info: Mapping[str, Any], series: Series, ts: Tensor) -> None:
    """A line where a run says values behind the times of its training, or further ahead than it learned to.

    ts: (B, Q), minus infinity where nothing is asked for.
    """
    latest, last = float(ts.max()), info["last_time"]
    if float(torch.tensor(latest, dtype=torch.float32)) > last:  # as the times of training were kept
        _say(f"{file}: times to {latest:g} are beyond those of training, which end at {last:g}: do not trust them")
    given = torch.where(series.mask.any(2), series.t, -math.inf).amax(1)
    ahead = (ts.amax(1) - given)[given.isfinite()]
    if info["ahead"] and len(ahead) and float(ahead.max()) > info["ahead"] * (1 + 1e-5):
        _say(
            f"{file}: times to {float(ahead.max()):g} behind the last row with a value are further ahead than the "
            f"{info['ahead']:g} of training: do not trust them"
        )


def _say(line: str) -> None:
    print(f"odenet: {line}", file=sys.stderr)


def _narrowed(file: Path, series: Series) -> Series:
    """In the dtype of the networks."""
    try:
        return series.to(torch.float32)
    except ValueError as error:
        raise UserError(f"{file}: {first_line(error)}") from None


def _label_rows(
    net: nn.Module, info: Mapping[str, Any], series: Series, keys: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    output = net(series)
    if not isinstance(net, ClassPredictor):
        return [{**key, "prediction": value} for key, value in zip(keys, output.tolist(), strict=True)]
    classes = info["classes"]
    rows: list[dict[str, Any]] = []
    for key, p in zip(keys, output.softmax(1).tolist(), strict=True):
        by_class = {f"p({name})": value for name, value in zip(classes, p, strict=True)}
        rows.append({**key, "class": classes[p.index(max(p))], **by_class})
    return rows


def _value_rows(
    net: ValuePredictor,
    info: Mapping[str, Any],
    series: Series,
    keys: Sequence[dict[str, Any]],
    ts: Tensor,
    counts: Tensor,
) -> list[dict[str, Any]]:
    """ts: times in float64, (B, Q), of which the first `counts`, (B,), are asked for."""
    # rows without a value are times to predict at, and say nothing
    mean, std = net(series.select(series.mask.any(2)), ts.to(series.t))
    rows: list[dict[str, Any]] = []
    for i, key in enumerate(keys):
        for j in range(int(counts[i])):
            row = {**key, "time": float(ts[i, j])}
            for c, name in enumerate(info["channels"]):
                row |= {f"{name} mean": float(mean[i, j, c]), f"{name} std": float(std[i, j, c])}
            rows.append(row)
    return rows
