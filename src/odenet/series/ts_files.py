"""Files in the format .ts of the UEA and UCR archive of time series classification.

Bagnall et al. 2018, "The UEA multivariate time series classification archive";
https://www.timeseriesclassification.com. A header of lines that begin with @, then one line for each sample: its
channels are separated by colons, the values of a channel by commas, "?" is a missing value, and the class stands last.
With @timeStamps true a value is (time,value).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .from_tables import from_lists
from .series import Series

_PAIR = re.compile(r"\(([^()]*),([^(),]*)\)")


class LabelledSeries(NamedTuple):
    """labels: (B,), numbers of the classes, or targets of a regression. classes: their names, none for a regression."""

    series: Series
    labels: Tensor
    classes: tuple[str, ...]


def read_ts(path: str | Path, dtype: torch.dtype | None = None) -> LabelledSeries:
    """The series and labels of a .ts file. Without time stamps the rows are at 0, 1, 2 and so on.

    Raises ValueError with the number of the line where it is not of this format.
    """
    path = Path(path)
    header: dict[str, str] = {}
    ts: list[Any] = []
    xs: list[Any] = []
    labels: list[str] = []
    data = False
    for number, line in _lines(path):
        if line.startswith("@"):
            name, _, value = line[1:].partition(" ")
            header[name.lower()] = value.strip()
            data = name.lower() == "data"
        elif not data:
            raise ValueError(f"{path}, line {number}: data before the line @data")
        else:
            t, x, label = _sample(path, number, line, header)
            ts.append(t)
            xs.append(x)
            labels.append(label)
    if not data:
        raise ValueError(f"{path} has no line @data: it is no .ts file")
    series = from_lists(ts, xs, dtype=dtype)
    _, *names = header.get("classlabel", "false").split() or [""]
    if header.get("targetlabel", "false").lower().startswith("true"):
        return LabelledSeries(series, torch.tensor([float(v) for v in labels], dtype=series.x.dtype), ())
    classes = tuple(names)
    if absent := sorted(set(labels) - set(classes)):
        raise ValueError(f"{path} has samples of class {absent[0]!r}, which its line @classLabel does not name")
    return LabelledSeries(series, torch.tensor([classes.index(v) for v in labels]), classes)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if (line := line.strip()) and not line.startswith(("#", "%")):
                yield number, line


def _sample(
    path: Path, number: int, line: str, header: dict[str, str]
) -> tuple[list[list[float]], list[list[float]], str]:
    stamped = header.get("timestamps", "false").lower() == "true"
    *channels, label = line.split(":")
    wanted = header.get("dimensions") or ("1" if header.get("univariate", "").lower() == "true" else None)
    if wanted is not None and len(channels) != int(wanted):
        raise ValueError(f"{path}, line {number}: {len(channels)} channels, where {wanted} are announced")
    ts: list[list[float]] = []
    xs: list[list[float]] = []
    try:
        for channel in channels:
            pairs = _PAIR.findall(channel) if stamped else list(enumerate(v for v in channel.split(",") if v.strip()))
            ts.append([float(t) for t, _ in pairs])
            xs.append([float("nan") if v.strip() in ("?", "NaN") else float(v) for _, v in pairs])
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None
    return ts, xs, label.strip()
